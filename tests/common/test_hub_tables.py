"""Hugging Face data sets as people save them: classes by name, gaps, columns of other types."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datasets import Dataset, Reading, load_dataset
from common.errors import DataError

datasets = pytest.importorskip("datasets", reason="pip install 'fedhead[hub]'")

COLOURS = {"cat": (250, 0, 0), "dog": (0, 250, 0), "owl": (0, 0, 250)}
NAMES = ("cat", "dog", "owl", "dog")
CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': cat
          '1': dog
          '2': owl
---
"""


@pytest.fixture(autouse=True)
def hub_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def load(source: Path, **options: object) -> Dataset:
    return load_dataset(f"hf:{source}", Reading(**{"test_fraction": 0.25, **options}))  # type: ignore[arg-type]


def encoded(name: str) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), COLOURS[name]).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(
    names: Sequence[str], labels: Sequence[object], label: object, **more: Sequence[object]
) -> object:
    """Images whose colour tells the class, with a column of labels and others."""
    rows = {"image": [encoded(name) for name in names], "label": list(labels), **more}
    features = datasets.Features({"image": datasets.Image(), "label": label})
    for column, values in more.items():
        kind = type(next(value for value in values if value is not None))
        features[column] = datasets.Value({str: "string", int: "int64", float: "float64"}[kind])
    return datasets.Dataset.from_dict(rows, features=features)


def by_name(names: Sequence[str], order: Sequence[str]) -> object:
    """A table that numbers the classes in an order of its own."""
    labels = [list(order).index(name) for name in names]
    return table(names, labels, datasets.ClassLabel(names=list(order)))


def save(folder: Path, kind: str, **splits: object) -> Path:
    if kind == "saved":
        datasets.DatasetDict(splits).save_to_disk(folder)
    for split, rows in splits.items() if kind == "parquet" else ():
        folder.mkdir(exist_ok=True)
        rows.to_parquet(folder / f"{split}.parquet")  # type: ignore[attr-defined]
    return folder


def assert_colours_match(dataset: Dataset) -> None:
    pixels = dataset.images(np.arange(len(dataset)), 4).mean(axis=(2, 3)).argmax(axis=1)
    seen = [list(COLOURS)[k] for k in pixels.tolist()]
    assert [dataset.classes[k] for k in dataset.labels.tolist()] == seen


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_a_test_split_that_numbers_the_classes_otherwise_is_read_by_name(
    tmp_path: Path, kind: str
) -> None:
    folder = save(
        tmp_path / "data", kind,
        train=by_name(NAMES, ["cat", "dog", "owl"]), test=by_name(NAMES, ["owl", "cat", "dog"]),
    )  # fmt: skip
    for dataset in (load(folder), load(folder)):  # the second time from the library's cache
        assert dataset.classes == ("cat", "dog", "owl")
        assert (len(dataset.train), len(dataset.test)) == (4, 4)
        assert_colours_match(dataset)


def test_a_card_that_names_the_classes_speaks_for_all_files(tmp_path: Path) -> None:
    plain = table(NAMES, [0, 1, 2, 1], datasets.Value("int64"))
    save(tmp_path, "parquet", train=plain, test=plain)
    (tmp_path / "README.md").write_text(CARD)
    dataset = load(tmp_path)
    assert dataset.classes == ("cat", "dog", "owl")
    assert_colours_match(dataset)


def test_splits_may_write_the_classes_as_words_or_numbers_of_words(tmp_path: Path) -> None:
    words = table(NAMES, NAMES, datasets.Value("string"))
    folder = save(tmp_path / "a", "saved", train=words, test=by_name(NAMES, ["owl", "dog", "cat"]))
    assert_colours_match(load(folder))
    folder = save(tmp_path / "b", "saved", train=by_name(NAMES, ["owl", "dog", "cat"]), test=words)
    assert_colours_match(load(folder))


def test_a_test_class_that_train_lacks_is_refused_with_both_sides(tmp_path: Path) -> None:
    train = by_name(("cat", "dog"), ["cat", "dog"])
    numbers = table(("cat", "dog"), [0, 1], datasets.Value("int64"))
    for name, test, unknown in (
        ("a", by_name(("cat", "owl"), ["cat", "owl"]), "owl"),
        ("b", numbers, "0, 1"),  # nobody knows which is which
    ):
        folder = save(tmp_path / name, "saved", train=train, test=test)
        with pytest.raises(DataError) as caught:
            load(folder)
        assert str(caught.value).endswith(
            f"test has classes that train does not have: {unknown} (train has cat, dog)"
        )


def test_parquet_files_of_one_split_that_disagree_are_refused(tmp_path: Path) -> None:
    for i, order in enumerate((["cat", "dog", "owl"], ["owl", "cat", "dog"])):
        by_name(NAMES, order).to_parquet(tmp_path / f"train-0000{i}-of-00002.parquet")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"00001-of-00002\.parquet numbers the classes of 'label'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        ([True, False, False, True], "bool", ("False", "True")),
        ([0.0, 10.0, 9.0, 9.0], "float32", ("0", "9", "10")),
        ([-1, 1, 1, -1], "int64", ("-1", "1")),
    ],
)
def test_booleans_and_whole_floats_are_classes(
    tmp_path: Path, values: list[object], kind: str, classes: tuple[str, ...]
) -> None:
    part = table(NAMES, values, datasets.Value(kind))
    dataset = load(save(tmp_path / "data", "saved", train=part))
    assert dataset.classes == classes
    want = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    assert [dataset.classes[k] for k in dataset.labels] == want


def test_fractions_are_no_classes(tmp_path: Path) -> None:
    part = table(NAMES, [0.0, 1.0, 0.5, 1.0], datasets.Value("float32"))
    with pytest.raises(DataError, match=r"'label': 0\.5 is not a class, expected a whole number"):
        load(save(tmp_path / "data", "saved", train=part))


@pytest.mark.parametrize(
    ("labels", "label"),
    [
        (["cat", "dog", None, "dog", ""], "string"),
        ([0.0, 1.0, float("nan"), 1.0, None], "float64"),
        ([0, 1, -1, 1, None], ["cat", "dog"]),
    ],
)
def test_rows_without_a_label_are_left_out_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: list[object], label: object
) -> None:
    kind = datasets.ClassLabel(names=label) if isinstance(label, list) else datasets.Value(label)
    part = table((*NAMES, "cat"), labels, kind, user=["a", "b", "c", "d", "e"])
    folder = save(tmp_path / "data", "saved", train=part)
    dataset = load(folder)
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.columns["user"].tolist() == ["a", "b", "d"]
    pixels = dataset.images(np.arange(3), 2)[:, :, 0, 0].tolist()
    assert pixels == [list(COLOURS[name]) for name in ("cat", "dog", "dog")]
    assert [r.message.partition(": ")[2] for r in caplog.records] == [
        "left out 2 of 5 rows without 'label'"
    ]
    with pytest.raises(DataError, match="2 of 5 rows have no 'label'"):
        load(folder, strict=True)


def test_one_gap_in_a_test_split_does_not_drop_the_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = by_name(NAMES, ["cat", "dog", "owl"])
    holed = table(NAMES, [0, 1, -1, 1], datasets.ClassLabel(names=["cat", "dog", "owl"]))
    blank = table(NAMES, [-1] * 4, datasets.ClassLabel(names=["cat", "dog", "owl"]))
    dataset = load(save(tmp_path / "a", "saved", train=train, test=holed))
    assert (len(dataset.train), len(dataset.test)) == (4, 3)
    assert_colours_match(dataset)
    dataset = load(save(tmp_path / "b", "saved", train=train, test=blank, unsupervised=train))
    assert (len(dataset.train), len(dataset.test)) == (3, 1)
    assert "not used: test (4 rows without labels), unsupervised (4 rows)" in caplog.text


def test_a_validation_split_joins_train_where_there_is_a_test_split(tmp_path: Path) -> None:
    orders = [["cat", "dog", "owl"], ["dog", "cat", "owl"], ["owl", "dog", "cat"]]
    train, validation, test = (by_name(NAMES, order) for order in orders)
    both = save(tmp_path / "a", "saved", test=test, validation=validation, Train=train)
    dataset = load(both)
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    assert dataset.classes == ("cat", "dog", "owl")
    assert_colours_match(dataset)
    alone = load(save(tmp_path / "b", "saved", train=train, validation=validation))
    assert (len(alone.train), len(alone.test)) == (4, 4)


def test_gaps_leave_a_column_of_client_ids_known(tmp_path: Path) -> None:
    part = table(
        NAMES, NAMES, datasets.Value("string"),
        user=["a", None, "b", ""], age=[30, None, 4, 4], number=[7.0, float("nan"), 8.0, 7.0],
        weight=[0.5, 1.0, 2.0, 3.0],
    )  # fmt: skip
    columns = load(save(tmp_path / "data", "saved", train=part)).columns
    assert {name: values.tolist() for name, values in columns.items()} == {
        "user": ["a", None, "b", None], "age": [30, None, 4, 4], "number": [7, None, 8, 7]
    }  # fmt: skip


def test_columns_can_be_named(tmp_path: Path) -> None:
    part = table(NAMES, [0, 0, 0, 1], datasets.Value("int64"), species=list(NAMES))
    part = part.rename_column("image", "scan").add_column("id", [1, 2, 3, 4])  # type: ignore[attr-defined]
    folder = save(tmp_path / "data", "saved", train=part)
    assert load(folder).classes == ("0", "1")
    dataset = load(folder, label_column="species", image_column="scan")
    assert_colours_match(dataset)
    assert set(dataset.columns) == {"label", "id"}
    with pytest.raises(
        DataError, match=r"data\.label-column='breed' is not a column of labels .*lab"
    ):
        load(folder, label_column="breed")
    with pytest.raises(
        DataError, match=r"image-column='id' is not a column of images .images: scan;"
    ):
        load(folder, image_column="id")


def test_numbers_written_as_text_are_classes_in_the_order_of_numbers(tmp_path: Path) -> None:
    labels = ["10", "9", "10", "NaN", "9", "10"]
    made = table(["cat", "dog", "cat", "owl", "dog", "cat"], labels, datasets.Value("string"))
    dataset = load(save(tmp_path / "hf", "saved", train=made))
    assert dataset.classes == ("9", "10")
    assert dataset.labels.tolist() == [1, 0, 1, 0, 1]
