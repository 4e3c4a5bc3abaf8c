"""A device's own folder: the server's classes, and images that are not read again."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from common.datasets import load_folder
from common.errors import DataError
from tests.common.coloured import COLOURS, break_two, fill


def device(path, **options):
    return load_folder(path, classes=sorted(COLOURS), **options)


def test_a_device_takes_the_classes_from_the_server(tmp_path):
    fill(tmp_path, ["owl"])
    dataset = load_folder(tmp_path, classes=["owl", "dog", "cat", "fish"])
    assert dataset.classes == ("owl", "dog", "cat", "fish")
    assert dataset.labels.tolist() == [0] * 5
    assert dataset.train.tolist() == [0, 1, 2, 3, 4]
    assert dataset.test.tolist() == []


def test_a_device_may_have_empty_class_folders(tmp_path):
    fill(tmp_path, ["owl"])
    (tmp_path / "dog").mkdir()
    assert len(load_folder(tmp_path, classes=["dog", "owl"])) == 5


def test_a_device_with_a_foreign_class_is_refused(tmp_path):
    with pytest.raises(DataError, match="not classes of the server: dog; its classes are cat, owl"):
        load_folder(fill(tmp_path), classes=["cat", "owl"])


def test_a_device_without_images_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="no images"):
        load_folder(tmp_path, classes=["cat", "dog"])


def test_a_device_skips_or_refuses_broken_images(tmp_path):
    break_two(fill(tmp_path))
    assert len(device(tmp_path)) == 13
    with pytest.raises(DataError, match=r"1\.png"):
        device(tmp_path, strict=True)


def test_a_devices_unchanged_images_are_not_read_again(tmp_path):
    image, memory = fill(tmp_path / "data") / "dog" / "0.png", tmp_path / "memory.json"
    first = device(tmp_path / "data", memory=memory)
    before = image.stat()
    image.write_bytes(bytes(before.st_size))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = device(tmp_path / "data", memory=memory)
    assert again.images_key == first.images_key
    assert np.array_equal(again.labels, first.labels)

    os.utime(image)
    changed = device(tmp_path / "data", memory=memory)
    assert len(changed) == len(first) - 1
    assert changed.images_key != first.images_key
    assert device(tmp_path / "data", memory=memory).skipped == changed.skipped
    (tmp_path / "data" / "owl" / "3.png").unlink()
    assert len(device(tmp_path / "data", memory=memory)) == len(first) - 2


def test_a_memory_that_cannot_be_read_is_made_again(tmp_path):
    memory = tmp_path / "memory.json"
    memory.write_text("{")
    first = device(fill(tmp_path / "data"), memory=memory)
    assert device(tmp_path / "data", memory=memory).images_key == first.images_key
    assert '"kept"' in memory.read_text()


@pytest.mark.parametrize("kept", [[], [99], [-1], [1, 0], [0.5], "all"])
def test_a_memory_of_images_that_are_not_there_is_made_again(tmp_path, kept):
    memory = tmp_path / "memory.json"
    first = device(fill(tmp_path / "data"), memory=memory)
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "kept": kept}))
    again = device(tmp_path / "data", memory=memory)
    assert (len(again), again.content_key) == (len(first), first.content_key)


def test_a_device_needs_neither_torch_nor_any_data_set_library(tmp_path):
    code = (
        "import sys; from pathlib import Path; from common.datasets import load_folder\n"
        "import common.partition\n"
        f"d = load_folder(Path({str(fill(tmp_path))!r}), classes={sorted(COLOURS)})\n"
        "d.images(d.train, 8)\n"
        "heavy = {'torch', 'torchvision', 'datasets', 'flwr_datasets', 'sklearn', 'mlxtend',"
        " 'pandas', 'matplotlib', 'scipy', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
