"""Data sets of Hugging Face from files: columns, labels, splits, and no network call."""

import socket
import sys

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from tests.common.coloured import (
    COLOURS,
    assert_colours_match,
    assert_consistent,
    break_two,
    fill,
    load,
)


@pytest.fixture
def hub_cache(tmp_path_factory, monkeypatch):
    """Its own cache folder, and an alarm on the network."""
    import datasets

    def refuse(*args, **kwargs):
        raise AssertionError(f"network call: {args}")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def table(rows, **features):
    import datasets

    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def image(name):
    return Image.new("RGB", (6, 6), COLOURS[name])


@pytest.mark.usefixtures("hub_cache")
class TestHub:
    def test_image_folder_with_splits(self, tmp_path):
        fill(tmp_path / "train", each=3)
        fill(tmp_path / "test", each=2)
        dataset = load(f"hf:{tmp_path}")
        assert_consistent(dataset)
        assert_colours_match(dataset)
        assert np.bincount(dataset.labels[dataset.train]).tolist() == [3, 3, 3]
        assert np.bincount(dataset.labels[dataset.test]).tolist() == [2, 2, 2]

    def test_parquet_with_class_names_and_user_ids(self, tmp_path):
        import datasets

        names = ["cat", "dog", "owl"] * 4
        table(
            {
                "pic": [image(n) for n in names],
                "label": [["owl", "cat", "dog"].index(n) for n in names],
                "user": [f"u{i % 4}" for i in range(12)],
                "age": list(range(12)),
                "weight": [0.5] * 12,
            },
            pic=datasets.Image(),
            label=datasets.ClassLabel(names=["owl", "cat", "dog"]),
            user=datasets.Value("string"),
            age=datasets.Value("int32"),
            weight=datasets.Value("float32"),
        ).to_parquet(tmp_path / "train.parquet")
        dataset = load(f"hf:{tmp_path}", test_fraction=0.25)
        assert_consistent(dataset)
        assert_colours_match(dataset, ("owl", "cat", "dog"))
        assert len(dataset.test) == 3
        assert set(dataset.columns) == {"user", "age"}
        assert dataset.columns["user"].tolist() == [f"u{i % 4}" for i in range(12)]
        assert dataset.columns["age"].tolist() == list(range(12))

    def test_a_saved_data_set_with_string_labels(self, tmp_path):
        import datasets

        names = ["dog", "cat", "owl", "cat"] * 3
        part = table(
            {"image": [image(n) for n in names], "character": names},
            image=datasets.Image(),
            character=datasets.Value("string"),
        )
        datasets.DatasetDict(train=part, validation=part.select(range(4))).save_to_disk(
            tmp_path / "saved"
        )
        dataset = load("hf:saved", root=tmp_path)
        assert_colours_match(dataset)
        assert (len(dataset.train), len(dataset.test)) == (12, 4)

    def test_undeclared_bytes_and_integer_labels(self, tmp_path):
        import io

        import datasets

        def encoded(name):
            buffer = io.BytesIO()
            image(name).save(buffer, "PNG")
            return buffer.getvalue()

        table(
            {"img": [encoded(n) for n in COLOURS], "label": [30, 7, 100]},
            img=datasets.Value("binary"),
            label=datasets.Value("int64"),
        ).to_parquet(tmp_path / "train.parquet")
        dataset = load(f"hf:{tmp_path}", test_fraction=0.3)
        assert dataset.classes == ("7", "30", "100")
        assert dataset.labels.tolist() == [1, 0, 2]
        assert dataset.images(np.arange(3), 2)[:, :, 0, 0].tolist() == [
            list(colour) for colour in COLOURS.values()
        ]

    def test_a_test_split_without_labels_is_not_used(self, tmp_path):
        import datasets

        features = {"image": datasets.Image(), "label": datasets.Value("int64")}
        rows = {"image": [image("cat"), image("dog")] * 5, "label": [0, 1] * 5}
        datasets.DatasetDict(
            train=table(rows, **features),
            test=table({**rows, "label": [-1] * 10}, **features),
        ).save_to_disk(tmp_path)
        dataset = load(f"hf:{tmp_path}")
        assert (len(dataset.train), len(dataset.test)) == (8, 2)

    def test_broken_rows_are_named_and_skipped(self, tmp_path, caplog):
        break_two(fill(tmp_path))
        dataset = load(f"hf:{tmp_path}")
        assert len(dataset) == 13
        assert_colours_match(dataset)
        assert "skipped 2 of 15" in caplog.text
        with pytest.raises(DataError, match=r"train\[1\]"):
            load(f"hf:{tmp_path}", strict=True)

    def test_a_class_of_broken_rows_is_refused(self, tmp_path):
        fill(tmp_path)
        for path in (tmp_path / "dog").iterdir():
            path.write_text("no image")
        with pytest.raises(DataError, match="train: class dog: none of its 5 images can be read"):
            load(f"hf:{tmp_path}")

    def test_missing_columns_are_named(self, tmp_path):
        import datasets

        table({"text": ["a"], "label": [1]}, text=datasets.Value("string"),
              label=datasets.Value("int64")).to_parquet(tmp_path / "train.parquet")  # fmt: skip
        with pytest.raises(DataError, match="no column of images among text, label"):
            load(f"hf:{tmp_path}")

    def test_what_is_not_there_is_one_line_and_no_network_call(self, tmp_path):
        with pytest.raises(DataError, match="no such folder"):
            load(f"hf:{tmp_path / 'nowhere'}")
        with pytest.raises(DataError, match="set download = true to ask the Hub") as caught:
            load("hf:nobody/nothing")
        assert "\n" not in str(caught.value)
        assert "network call" not in str(caught.value)

    def test_nothing_is_printed_and_switches_go_back(self, tmp_path, capfd):
        import datasets
        from huggingface_hub import constants

        before = (constants.HF_HUB_OFFLINE, datasets.is_progress_bar_enabled())
        load(f"hf:{fill(tmp_path)}")
        assert capfd.readouterr() == ("", "")
        assert (constants.HF_HUB_OFFLINE, datasets.is_progress_bar_enabled()) == before

    def test_a_missing_package_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(Exception, match=r"pip install 'fedhead\[hub\]'"):
            load("hf:anything")
