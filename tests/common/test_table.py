"""A table of labels beside images: each row is used, or left out in words, or refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datasets import Dataset, Reading, load_dataset
from common.errors import DataError

COLOURS = {"cat": (250, 0, 0), "dog": (0, 250, 0), "owl": (0, 0, 250)}
# Where each image lies, and what it shows.
IMAGES = {
    "train/01.png": "cat", "train/02.png": "dog", "train/03.png": "owl",
    "train/deep/04.png": "cat", "train/05.png": "dog", "train/06.png": "owl",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in IMAGES.items():
        image(tmp_path / name, colour)
    return tmp_path


def image(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), COLOURS[colour]).save(path)


def write(folder: Path, *rows: Sequence[str], end: str = "\n", cell: str = ",") -> Path:
    path = folder / "labels.csv"
    path.write_bytes("".join(cell.join(row) + end for row in rows).encode())
    return path


def rows(names: Sequence[str] = tuple(IMAGES)) -> list[tuple[str, str]]:
    return [(name, IMAGES.get(name, "cat")) for name in names]


def load(path: Path, **options: object) -> Dataset:
    return load_dataset(f"csv:{path}", Reading(**{"test_fraction": 0.34, **options}))  # type: ignore[arg-type]


def colours_of(dataset: Dataset) -> list[str]:
    pixels = dataset.images(np.arange(len(dataset)), 4).mean(axis=(2, 3)).argmax(axis=1)
    return [list(COLOURS)[k] for k in pixels.tolist()]


def classes_of(dataset: Dataset) -> list[str]:
    return [dataset.classes[k] for k in dataset.labels.tolist()]


def test_images_get_the_labels_of_their_rows(folder: Path) -> None:
    dataset = load(write(folder, ("filename", "label"), *rows()))
    assert dataset.classes == ("cat", "dog", "owl")
    assert classes_of(dataset) == colours_of(dataset) == list(IMAGES.values())
    assert dataset.labels.dtype == np.int64
    both = np.sort(np.concatenate([dataset.train, dataset.test]))
    assert both.tolist() == list(range(6))
    assert len(dataset.test) == 2


@pytest.mark.parametrize(
    "spelling",
    [
        lambda name: name.rpartition("/")[2],  # the name alone
        lambda name: name.rpartition("/")[2].removesuffix(".png"),  # an id
        lambda name: name.removesuffix(".png"),
        lambda name: "./" + name,
        lambda name: name.replace("/", "\\"),
    ],
)
def test_an_image_may_be_named_by_the_end_of_its_path_or_without_suffix(
    folder: Path, spelling: object
) -> None:
    named = [(spelling(name), label) for name, label in rows()]  # type: ignore[operator]
    dataset = load(write(folder, ("id", "Class"), *named))
    assert classes_of(dataset) == colours_of(dataset) == list(IMAGES.values())


@pytest.mark.parametrize("cell", [";", "\t", ","])
def test_tables_of_spreadsheets_are_read(folder: Path, cell: str) -> None:
    path = write(
        folder, ("\ufeffimage", "Note", "label"), *((n, '"a, ""b"""', k) for n, k in rows()),
        ("", "", ""), end="\r\n", cell=cell,
    )  # fmt: skip
    dataset = load(path)
    assert classes_of(dataset) == list(IMAGES.values())
    assert set(dataset.columns["Note"].tolist()) == {'a, "b"'}


def test_accents_are_the_same_composed_or_not(folder: Path) -> None:
    image(folder / "cafe\u0301.png", "owl")
    dataset = load(write(folder, ("file", "label"), *rows(), ("caf\u00e9.png", "owl")))
    assert classes_of(dataset) == colours_of(dataset)
    assert len(dataset) == 7


def test_columns_can_be_named_and_others_may_name_clients(folder: Path) -> None:
    users = ["ann", "bob", "", "ann", "bob", "bob"]
    content = [("label", "scan", "breed", "user")]
    content += [("x", n, k, user) for (n, k), user in zip(rows(), users, strict=True)]
    path = write(folder, *content)
    dataset = load(path, label_column="breed", image_column="scan")
    assert classes_of(dataset) == colours_of(dataset)
    assert dataset.columns["user"].tolist() == ["ann", "bob", None, "ann", "bob", "bob"]
    for options, message in (
        ({}, "no column of images among label, scan, breed, user; set data.image-column"),
        ({"image_column": "Scan"}, "data.image-column='Scan' is not a column of label, scan,"),
        ({"image_column": "scan", "label_column": "y"}, "data.label-column='y' is not a column of"),
    ):
        with pytest.raises(DataError, match=message):
            load(path, **options)


def test_a_split_column_says_what_is_tested_on(folder: Path) -> None:
    def split(*words: str) -> Dataset:
        content = [(n, k, word) for (n, k), word in zip(rows(), words, strict=True)]
        return load(write(folder, ("file", "label", "Split"), *content))

    dataset = split("Train", "training", "TRAIN", "val", "test", "test_set")
    assert dataset.test.tolist() == [4, 5]
    assert dataset.train.tolist() == [0, 1, 2, 3]  # as in torchvision's data sets
    assert split("train", "train", "train", "val", "val", "valid").test.tolist() == [3, 4, 5]
    with pytest.raises(DataError, match="line 4 is of the split 'extra', expected train, valid"):
        split("train", "train", "extra", "val", "val", "val")
    with pytest.raises(DataError, match="no row is of the split train"):
        split(*["test"] * 6)
    with pytest.raises(
        DataError,
        match=r"test split has classes that its training split does not have: owl \(.*cat",
    ):
        split("train", "train", "test", "train", "train", "test")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "1", "10", "9", "1"], ("1", "9", "10")),
        (["1.0", "0.0", "0.0", "1.0", "0.0", "0.0"], ("0", "1")),
        (["True", "False", "False", "True", "False", "False"], ("False", "True")),
        (["01", "02", "02", "01", "02", "02"], ("01", "02")),
        (["1.5", "2", "2", "1.5", "2", "2"], ("1.5", "2")),
    ],
)
def test_labels_may_be_numbers_or_truths(
    folder: Path, labels: list[str], classes: tuple[str, ...]
) -> None:
    content = list(zip(IMAGES, labels, strict=True))
    assert load(write(folder, ("file", "target"), *content)).classes == classes


def test_what_is_left_out_is_counted_and_said_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedhead")
    content = [
        *rows(list(IMAGES)[:5]),
        ("07.png", "dog"),
        ("08.png", "owl"),
        ("train/06.png", ""),
    ]
    content.append(content[0])
    path = write(folder, ("file", "label"), *content)
    dataset = load(path)
    assert classes_of(dataset) == colours_of(dataset) == list(IMAGES.values())[:5]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: left out 1 of 9 rows without 'label'",
        f"{path}: left out: 2 of 8 images are not in {folder}: 07.png, 08.png",
        f"{path}: 1 images in its folder have no row with a label",
        f"{path}: 1 rows repeat another and count once",
    ]
    with pytest.raises(DataError, match="1 of 9 rows have no 'label'"):
        load(path, strict=True)
    with pytest.raises(DataError, match="1 of 7 images are not in .*: 07"):
        load(write(folder, ("file", "label"), *rows(), ("07", "cat")), strict=True)


def test_broken_images_are_named_and_skipped(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "train" / "02.png").write_text("<html>")
    dataset = load(write(folder, ("file", "label", "client"), *((*row, row[0]) for row in rows())))
    assert classes_of(dataset) == colours_of(dataset) == ["cat", "owl", "cat", "dog", "owl"]
    assert "train/02.png" not in dataset.columns["client"].tolist()
    assert "skipped 1 of 6 images" in caplog.text
    assert "02.png" in dataset.skipped[0]


def test_the_keys_follow_images_and_labels(folder: Path) -> None:
    first = load(write(folder, ("file", "label"), *rows()))
    again = load(write(folder, ("file", "label"), *rows()))
    assert (again.images_key, again.content_key) == (first.images_key, first.content_key)
    swapped = [(name, "cat" if label == "dog" else label) for name, label in rows()]
    other = load(write(folder, ("file", "label"), *swapped))
    assert other.images_key == first.images_key
    assert other.content_key != first.content_key


REFUSED = {
    "a class without images": (
        [("file", "label"), *rows(), ("7.png", "fish"), ("8.png", "fish")],
        "all images of class fish are missing",
    ),
    "another label": (
        [("file", "label"), *rows(), ("01", "dog")],
        "lines 2 and 8 both name 01.png, but with different cells",
    ),
    "nothing there": ([("file", "label"), ("7.png", "cat"), ("8.png", "dog")], "2 of 2 images"),
    "one class": ([("file", "label"), ("01", "cat"), ("04", "cat")], r"1 class \(cat\)"),
    "no labels": ([("file", "label"), ("01", ""), ("04", " ")], "2 of 2 rows have no 'label'"),
    "a header alone": ([("file", "label")], "no rows below a header"),
    "nothing": ([], "no rows below a header"),
    "a comma too many": (
        [("file", "label"), ("01", "cat"), ("02", "dog", "x")],
        "line 3 has 3 cells, expected 2",
    ),
    "an open quote": (
        [("file", "label"), ("01", '"cat'), ("02", "dog")],
        "line 3 is not a table's line",
    ),
    "a line break": (
        [("file", "label"), ("01", '"cat\n02,dog"'), ("03", "owl")],
        r"line 3 has control characters: 'cat\\n02,dog'",
    ),
    "two columns": ([("file", "label", "Label"), ("01", "cat", "dog")], "2 columns are called 'la"),
    "out of the folder": (
        [("file", "label"), ("../secret.png", "cat")],
        "line 2: '../secret.png' is not a path within the table's folder",
    ),
    "absolute": ([("file", "label"), ("/etc/passwd", "cat")], "'/etc/passwd' is not a path within"),
    "a drive": ([("file", "label"), ("C:\\a.png", "cat")], "not a path within"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_line(folder: Path, case: str) -> None:
    content, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        load(write(folder, *content))
    assert "\n" not in str(caught.value)
    assert "labels.csv" in str(caught.value)


def test_a_name_that_fits_two_images_is_refused_unless_one_lies_just_there(folder: Path) -> None:
    image(folder / "test" / "01.png", "dog")
    with pytest.raises(DataError, match=r"line 2: '01' may be .*test/01\.png or .*train/01\.png"):
        load(write(folder, ("file", "label"), ("01", "cat"), ("02", "dog")))
    image(folder / "01.png", "cat")
    dataset = load(write(folder, ("file", "label"), ("01", "cat"), ("02", "dog")))
    assert colours_of(dataset) == ["cat", "dog"]


def test_files_that_are_no_tables_are_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(DataError, match="is a folder, expected a table"):
        load(folder)
    with pytest.raises(DataError, match="no such file"):
        load(folder / "none.csv")
    (folder / "labels.csv").write_bytes("file,label\ncaf\u00e9,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="byte 14 is not UTF-8"):
        load(folder / "labels.csv")
    (folder / "labels.csv").write_bytes(b"file,label\n" + b"a" * 200_000 + b",x\n")
    with pytest.raises(DataError, match="line 2 is not a table's line"):
        load(folder / "labels.csv")
    os.mkfifo(folder / "pipe.csv")
    with pytest.raises(DataError, match="no such file"):
        load(folder / "pipe.csv")


def test_links_are_not_followed(folder: Path, tmp_path_factory: object) -> None:
    outside = tmp_path_factory.mktemp("outside")  # type: ignore[attr-defined]
    image(outside / "07.png", "cat")
    image(outside / "08.png", "cat")
    (folder / "train" / "07.png").symlink_to(outside / "07.png")
    (folder / "more").symlink_to(outside)
    dataset = load(write(folder, ("file", "label"), *rows(), ("07.png", "cat")))
    assert classes_of(dataset) == list(IMAGES.values())
    assert "07.png: a link" in dataset.skipped[0]
    with pytest.raises(DataError, match=r"08.png \(not read in it: linked folders: 1"):
        load(write(folder, ("file", "label"), *rows(), ("08.png", "cat")), strict=True)


def test_relative_tables_lie_below_root(folder: Path) -> None:
    write(folder, ("file", "label"), *rows())
    dataset = load_dataset("csv:labels.csv", Reading(root=folder, strict=True, test_fraction=0.34))
    assert len(dataset) == 6


def test_which_of_two_columns_is_read_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = [("image", "label", "class"), *((name, "a", "b") for name in list(IMAGES)[:1])]
    table += [(name, "b", "a") for name in list(IMAGES)[1:]]
    load(write(folder, *table))
    assert "gives the labels, although there is" in caplog.text


def test_a_table_that_no_memory_holds_is_one_line(folder: Path) -> None:
    with (folder / "labels.csv").open("wb") as file:
        file.truncate(20_000_000_000)
    with pytest.raises(DataError, match="over 500,000,000 bytes"):
        load(folder / "labels.csv")


def test_a_header_of_thousands_of_columns_is_no_message(folder: Path) -> None:
    path = write(folder, [f"column {i}" for i in range(100_000)], ["1"] * 100_000)
    with pytest.raises(DataError) as refused:
        load(path)
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize("name", ["a\u202etxt", "a\x9bb", "a\u2028b"])
def test_names_that_turn_or_break_text_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="control characters"):
        load(write(folder, ("image", "label"), *((p, name) for p in IMAGES)))


def test_usual_words_for_nothing_known_are_no_class(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = list(IMAGES)
    table = [*rows(names[:4]), (names[4], "NaN"), (names[5], "n/a")]
    dataset = load(write(folder, ("file", "label"), *table))
    assert dataset.classes == ("cat", "dog", "owl")
    assert "left out 2 of 6 rows without 'label' ('NaN', 'n/a' is not a label)" in caplog.text
    kept = load(write(folder, ("file", "label"), *rows(names[:4]), (names[4], "none")))
    assert kept.classes == ("cat", "dog", "none", "owl")  # without a defect, for example


def test_what_is_probably_wrong_with_a_table_is_said(folder: Path) -> None:
    for i in (7, 8):
        image(folder / f"00{i}.png", "cat")
    one_hot = [(name, *(str(int(IMAGES[name] == kind)) for kind in COLOURS)) for name in IMAGES]
    for table, line in (
        (rows(), "its first line names an image: a header such as 'image,label' is missing"),
        ([("file", *COLOURS), *one_hot], "and cat, dog, owl look like one for each class"),
        ([("file", "label"), ("7", "cat"), ("8", "dog")], "; '7' may be 007.png: "),
        ([("file", "label"), ("7.png", "cat"), ("8.png", "dog")], "; '7.png' may be 007.png: "),
    ):
        with pytest.raises(DataError) as caught:
            load(write(folder, *table))
        assert line in str(caught.value)
    with pytest.raises(DataError) as caught:
        load(write(folder, ("file", "name"), *rows()))
    assert "look like" not in str(caught.value)


def test_a_test_class_in_another_case_names_both(folder: Path) -> None:
    table = [(name, kind, "train") for name, kind in rows()[:3]]
    table += [(name, kind.upper(), "test") for name, kind in rows()[3:]]
    with pytest.raises(DataError, match=r"CAT \(there is cat\)"):
        load(write(folder, ("file", "label", "split"), *table))
