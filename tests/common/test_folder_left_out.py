"""What is left out of a folder, or not followed, is counted and named."""

import io
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datasets import load_folder
from common.errors import DataError
from common.images import decode_file
from tests.common.folders import CATS_AND_DOGS, fill, load, write

# --- what is left out ------------------------------------------------------------------------


def heic(colour=(200, 100, 50), **options):
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), colour)).save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.usefixtures("no_heic")
def test_heic_without_the_extra_is_counted_with_its_remedy(tmp_path, caplog):
    fill(tmp_path)
    for i in range(40):
        write(tmp_path / "cats" / f"IMG_{i}.HEIC", b"heic")
    write(tmp_path / "dogs" / "notes.txt", b"")
    assert len(load(tmp_path)) == 6
    assert "not used: 40 .heic (pip install 'fedhead[heic]'), 1 .txt" in caplog.text
    assert len(caplog.records) == 1
    shutil.rmtree(tmp_path / "dogs")
    write(tmp_path / "dogs" / "IMG_1.heif", b"heic")
    with pytest.raises(DataError, match=r"without images \(it holds 1 \.heif \(pip install"):
        load(tmp_path)


@pytest.mark.usefixtures("no_heic")
def test_an_heic_image_says_what_it_is_whatever_it_is_called(tmp_path):
    path = write(tmp_path / "IMG_1.jpg", heic())
    with pytest.raises(DataError, match=r"IMG_1\.jpg: an HEIC image.*pip install 'fedhead\[heic"):
        decode_file(path, 8)


def test_heic_is_read_with_the_extra(tmp_path, caplog):
    for name in CATS_AND_DOGS:
        for i in range(3):
            write(tmp_path / name / f"{i}.heic", heic())
    dataset = load(tmp_path)
    want = np.broadcast_to(np.array([200, 100, 50])[:, None, None], (6, 3, 8, 8))
    np.testing.assert_allclose(dataset.images(np.arange(6), 8), want, atol=6)
    assert caplog.text == ""


def test_thumbnails_of_other_programs_are_skipped(tmp_path, caplog):
    fill(tmp_path)
    junk = ("@eaDir", ".thumbnails", ".picasaoriginals", "pets Previews.lrdata", "#recycle")
    for folder in junk:
        write(tmp_path / "cats" / folder / "0.png" / "SYNOPHOTO_THUMB_M.jpg")
    write(tmp_path / "@eaDir" / "x.png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png"):
        write(tmp_path / "dogs" / name, b"junk")
    write(tmp_path / "dogs" / ".hidden.png")
    dataset = load(tmp_path)
    assert len(dataset) == 6
    assert "not used: 2 @eaDir/, 1 #recycle/" in caplog.text
    assert "1 hidden" in caplog.text


def test_a_class_of_which_nothing_can_be_read_is_refused(tmp_path):
    fill(tmp_path)
    for i in range(4):
        write(tmp_path / "owls" / f"{i}.jpg", b"\n<!DOCTYPE html>\n<title>404</title>")
    words = r"owls: none of its 4 images can be read \(.*0\.jpg: a web page instead of an image"
    with pytest.raises(DataError, match=words):
        load(tmp_path)
    shutil.rmtree(tmp_path / "owls")
    write(tmp_path / "cats" / "stub.png", b"version https://git-lfs.github.com/spec/v1\noid 1")
    assert len(load(tmp_path).skipped) == 1
    assert "git lfs pull" in load(tmp_path).skipped[0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_neither_split_loses_a_class(tmp_path, split):
    fill(tmp_path / "train")
    fill(tmp_path / "test", each=1)
    for path in (tmp_path / split / "dogs").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{split}/dogs: none of its . images .*an empty file"):
        load(tmp_path)


def test_a_class_is_lost_at_no_client_or_at_all(tmp_path):
    fill(tmp_path / "ann")
    fill(tmp_path / "bob")
    for path in (tmp_path / "bob" / "dogs").iterdir():
        path.write_bytes(b"")
    assert len(load(tmp_path, "folder-by-client")) == 9
    for path in (tmp_path / "ann" / "dogs").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="class dogs of .*: none of its 6 images can be read"):
        load(tmp_path, "folder-by-client")


def test_a_device_may_lose_a_class(tmp_path):
    fill(tmp_path)
    for path in (tmp_path / "dogs").iterdir():
        path.write_bytes(b"")
    assert load_folder(tmp_path, classes=CATS_AND_DOGS).labels.tolist() == [0, 0, 0]


# --- links, pipes, bounds --------------------------------------------------------------------


def strange(folder, outside):
    """What stands in an image's place and is none; gives how many."""
    write(outside / "x.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "twin.png").symlink_to("0.png")
    (folder / "outside.png").symlink_to(outside / "x.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    (folder / "around").symlink_to(folder.parent, target_is_directory=True)
    os.mkfifo(folder / "pipe.png")
    with (folder / "large.png").open("wb") as file:
        file.truncate(400_000_000)
    with socket.socket(socket.AF_UNIX) as door:
        here = Path.cwd()
        os.chdir(folder)  # a socket's address is short
        door.bind("door.png")
        os.chdir(here)
    return 10


@pytest.mark.timeout(60)
def test_only_regular_files_are_read_and_all_else_is_named(tmp_path, caplog):
    data = fill(tmp_path / "data")
    count = strange(data / "cats", tmp_path / "outside")
    server, device = load(data), load_folder(data, classes=CATS_AND_DOGS)
    for dataset in (server, device):
        assert np.bincount(dataset.labels).tolist() == [3, 3]
        assert len(dataset.skipped) == count
    words = "\n".join(server.skipped)
    assert words.count("a link, and links are not followed") == 7
    assert "pipe.png: not a regular file" in words
    assert "large.png: 400,000,000 bytes, more than 300,000,000 allowed" in words
    assert caplog.text.count("skipped 10 of 16 images") == 2
    with pytest.raises(DataError, match=r"door\.png: cannot be read \(No such device"):
        load(data, strict=True)
    for name in ("pipe.png", "door.png", "zero.png", "large.png", "gone.png"):
        with pytest.raises(DataError, match=name):
            decode_file(data / "cats" / name, 8)


def test_a_linked_class_folder_is_no_class_less(tmp_path):
    fill(tmp_path / "data")
    (tmp_path / "data" / "owls").symlink_to(tmp_path / "data" / "cats", target_is_directory=True)
    with pytest.raises(DataError, match="owls: a link, and links are not followed; put the folder"):
        load(tmp_path / "data")
    device = load_folder(tmp_path / "data", classes=("cats", "dogs", "owls"))
    assert device.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(device.skipped) == 1
    fill(tmp_path / "splits" / "train")
    (tmp_path / "splits" / "test").symlink_to(tmp_path / "data", target_is_directory=True)
    with pytest.raises(DataError, match="splits/test: a link"):
        load(tmp_path / "splits")
    (tmp_path / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    shutil.rmtree(tmp_path / "data" / "dogs")
    (tmp_path / "data" / "owls").unlink()
    fill(tmp_path / "data")
    assert len(load(tmp_path / "link")) == 6  # the data folder itself may be one


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    fill(tmp_path)
    level = os.open(tmp_path / "cats", os.O_RDONLY)
    for _ in range(20):  # deeper than a path may be long
        os.mkdir("x" * 250, dir_fd=level)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=level)
        os.close(level)
        level = inner
    os.close(level)
    dataset = load(tmp_path)
    assert len(dataset) == 6
    assert len(dataset.skipped) == 1
    assert "cannot be read (File name too long)" in dataset.skipped[0]


def test_what_is_no_folder_is_said(tmp_path):
    with pytest.raises(DataError, match=r"x\.png: a file, expected a folder"):
        load(write(tmp_path / "x.png"))
