"""Data sets from folders: what they hold, what they refuse, and what their keys follow."""

import numpy as np
import pytest

from common.datasets import Reading
from common.datasets.base import Readable, assemble
from common.errors import DataError
from tests.common.coloured import (
    COLOURS,
    assert_colours_match,
    assert_consistent,
    break_two,
    fill,
    load,
    save,
)


def folder(path, **options):
    return load(f"folder:{path}", **options)


def test_folder_with_one_sub_folder_a_class(tmp_path):
    dataset = folder(fill(tmp_path))
    assert_consistent(dataset)
    assert_colours_match(dataset)
    assert np.bincount(dataset.labels[dataset.test]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["jpg", "webp", "BMP", "gif", "tiff"])
def test_folder_takes_any_format(tmp_path, kind):
    assert_colours_match(folder(fill(tmp_path, kind=kind)))


def test_folder_with_train_and_test(tmp_path):
    fill(tmp_path / "train", each=4)
    fill(tmp_path / "test", each=2)
    dataset = folder(tmp_path)
    assert_consistent(dataset)
    assert_colours_match(dataset)
    assert np.bincount(dataset.labels[dataset.train]).tolist() == [4, 4, 4]
    assert np.bincount(dataset.labels[dataset.test]).tolist() == [2, 2, 2]


def test_folder_with_train_and_val_and_something_else(tmp_path, caplog):
    fill(tmp_path / "train", each=2)
    fill(tmp_path / "val", each=1)
    save(tmp_path / "notes" / "page.png", (1, 2, 3))
    dataset = folder(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (6, 3)
    assert "not used: 1 outside class folders (1 in notes)" in caplog.text


def test_folder_with_train_alone_is_split(tmp_path):
    dataset = folder(fill(tmp_path / "train").parent)
    assert (len(dataset.train), len(dataset.test)) == (12, 3)


def test_train_may_be_the_name_of_a_class(tmp_path):
    for name in ("car", "train"):
        for i in range(3):
            save(tmp_path / name / f"{i}.png", (1, 2, 3))
    assert folder(tmp_path).classes == ("car", "train")


def test_a_test_class_that_train_lacks_is_refused(tmp_path):
    fill(tmp_path / "train", ["cat", "dog"])
    fill(tmp_path / "test", ["cat", "owl"])
    with pytest.raises(DataError, match="classes in test but not in train: owl"):
        folder(tmp_path)


def test_nested_folders_count_and_hidden_ones_do_not(tmp_path):
    fill(tmp_path)
    save(tmp_path / "cat" / "deep" / "deeper" / "x.png", COLOURS["cat"])
    save(tmp_path / "cat" / ".thumbs" / "x.png", COLOURS["dog"])
    save(tmp_path / ".hidden" / "x.png", COLOURS["dog"])
    save(tmp_path / "dog" / ".x.png", COLOURS["cat"])
    (tmp_path / "dog" / "notes.txt").write_text("no image, and none was promised")
    dataset = folder(tmp_path)
    assert np.bincount(dataset.labels).tolist() == [6, 5, 5]
    assert_colours_match(dataset)
    assert dataset.skipped == ()


def test_relative_folders_lie_below_root(tmp_path):
    fill(tmp_path / "pets")
    assert len(load("folder:pets", root=tmp_path)) == 15


def test_one_pixel_is_an_image(tmp_path):
    fill(tmp_path)
    save(tmp_path / "cat" / "tiny.png", COLOURS["cat"], size=(1, 1))
    dataset = folder(tmp_path)
    assert len(dataset) == 16
    assert_colours_match(dataset)


def test_broken_images_are_named_counted_and_skipped(tmp_path, caplog):
    dataset = folder(break_two(fill(tmp_path)))
    assert_consistent(dataset)
    assert_colours_match(dataset)  # labels still belong to their images
    assert np.bincount(dataset.labels).tolist() == [4, 5, 4]
    assert [("1.png" in dataset.skipped[0]), ("2.png" in dataset.skipped[1])] == [True, True]
    assert [record.name for record in caplog.records] == ["fedhead"]
    assert "skipped 2 of 15 images" in caplog.text
    assert "1.png" in caplog.text


def test_broken_images_keep_the_test_folder_apart(tmp_path):
    fill(tmp_path / "train", each=4)
    fill(tmp_path / "test", each=3)
    break_two(tmp_path / "test")
    break_two(tmp_path / "train")
    dataset = folder(tmp_path)
    assert np.bincount(dataset.labels[dataset.train]).tolist() == [3, 4, 3]
    assert np.bincount(dataset.labels[dataset.test]).tolist() == [2, 3, 2]


def test_strict_refuses_the_first_broken_image(tmp_path):
    with pytest.raises(DataError, match=r"1\.png: not an image"):
        folder(break_two(fill(tmp_path)), strict=True)


def test_nothing_readable_is_an_error(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("no")
    with pytest.raises(DataError, match="none of 2 images can be read"):
        folder(tmp_path)


def test_an_image_that_vanishes_later_is_named(tmp_path):
    dataset = folder(fill(tmp_path))
    (tmp_path / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png: cannot be read"):
        dataset.images(np.arange(15), 8)


def test_bad_folders_are_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class folders"):
        folder(tmp_path)
    fill(tmp_path, ["cat"])
    with pytest.raises(DataError, match=r"1 class \(cat\), expected at least 2"):
        folder(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"dog: class folder without images$"):
        folder(tmp_path)
    (tmp_path / "dog" / "IMG_1.dng").write_bytes(b"x")
    with pytest.raises(DataError, match=r"dog: .* \(it holds 1 \.dng\)"):
        folder(tmp_path)


def test_the_keys_follow_the_content(tmp_path):
    first = folder(fill(tmp_path / "a"))
    moved = folder(fill(tmp_path / "b"))
    assert (moved.images_key, moved.content_key) == (first.images_key, first.content_key)

    renamed = folder((tmp_path / "b" / "owl").rename(tmp_path / "b" / "zebra").parent)
    assert renamed.images_key == first.images_key
    assert renamed.content_key != first.content_key

    save(tmp_path / "a" / "cat" / "3.png", (249, 0, 0))
    changed = folder(tmp_path / "a")
    assert changed.images_key != first.images_key
    assert changed.content_key != first.content_key

    (tmp_path / "a" / "dog" / "4.png").rename(tmp_path / "a" / "cat" / "9.png")
    relabelled = folder(tmp_path / "a")
    assert relabelled.content_key != changed.content_key


def test_the_key_covers_labels_and_split():
    images = Readable.array(np.zeros((4, 2, 2), np.uint8))

    def key(labels, train, test):
        split = (np.array(train), np.array(test))
        return assemble(
            "x", ("a", "b"), np.array(labels), images, Reading(), split=split
        ).content_key

    keys = {
        key([0, 0, 1, 1], [0, 1, 2], [3]),
        key([0, 1, 0, 1], [0, 1, 2], [3]),
        key([0, 0, 1, 1], [0, 1], [2, 3]),
        key([0, 0, 1, 1], [0, 2, 3], [1]),
    }
    assert len(keys) == 4
