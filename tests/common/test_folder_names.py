"""Names of folders and files as disks hold them: escapes, Unicode and case."""

import os

import pytest

from common.datasets import load_folder
from common.errors import DataError
from tests.common.folders import CATS_AND_DOGS, fill, load, write

LATIN = os.fsdecode(b"caf\xe9")
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_a_name_that_is_not_utf8_is_a_name(tmp_path, caplog):
    fill(tmp_path)
    write(tmp_path / "cats" / f"{LATIN}.png")
    write(tmp_path / "cats" / f"{LATIN}\n.png", b"broken")
    for memory in (None, tmp_path / ".memory"):
        for _ in range(2):
            dataset = load_folder(tmp_path, classes=CATS_AND_DOGS, memory=memory)
            assert len(dataset) == 7
            assert dataset.skipped == (f"{tmp_path}/cats/caf\\xe9\\n.png: not an image",)
    caplog.text.encode()
    assert load(tmp_path).skipped == dataset.skipped


def test_a_class_that_is_not_utf8_is_written_with_escapes(tmp_path, caplog):
    dataset = load(fill(tmp_path, [LATIN, "a\x1b[2Jb", "plain"]))
    assert dataset.classes == ("a\\x1b[2Jb", "caf\\xe9", "plain")
    assert "caf\\xe9: the name is not plain text; it is shown with escapes" in caplog.text
    assert (
        load_folder(tmp_path, classes=dataset.classes).labels.tolist()
        == [0] * 3 + [1] * 3 + [2] * 3
    )


def test_a_decomposed_name_is_the_same_class(tmp_path):
    fill(tmp_path / "train", ["bar", DECOMPOSED])
    fill(tmp_path / "test", ["bar", COMPOSED])
    assert load(tmp_path).classes == ("bar", COMPOSED)
    for classes in (["x", COMPOSED, "bar"], ["x", DECOMPOSED, "bar"]):
        device = load_folder(tmp_path / "train", classes=classes)
        assert device.labels.tolist() == [2] * 3 + [1] * 3
        assert device.classes == tuple(classes)


def test_two_folders_of_one_name_in_unicode_are_refused(tmp_path):
    fill(tmp_path, [COMPOSED, DECOMPOSED])
    with pytest.raises(
        DataError, match=r"'cafe\\u0301' and 'caf\\xe9' are the same name in Unicode"
    ):
        load(tmp_path)
    assert len(load_folder(tmp_path, classes=[COMPOSED, "bar"])) == 6


def test_names_that_differ_in_case_are_two_and_said(tmp_path, caplog):
    assert load(fill(tmp_path, ["Cats", "cats"])).classes == ("Cats", "cats")
    assert "differ in case only: Cats, cats" in caplog.text
    with pytest.raises(DataError, match=r"not classes of the server: Cats \(there is cats\)"):
        load_folder(tmp_path, classes=CATS_AND_DOGS)
