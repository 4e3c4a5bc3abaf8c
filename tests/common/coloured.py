"""Folders of images whose colour tells their class, and what holds for each data set."""

import numpy as np
from PIL import Image

from common.datasets import Reading, load_dataset

COLOURS = {"cat": (250, 0, 0), "dog": (0, 250, 0), "owl": (0, 0, 250)}


def save(path, colour, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def fill(root, classes=COLOURS, each=5, kind="png"):
    """Images whose colour tells their class."""
    for name in classes:
        for i in range(each):
            red, green, blue = COLOURS[name]
            save(root / name / f"{i}.{kind}", (red, green, max(blue, i)))
    return root


def load(source, root=None, **options):
    return load_dataset(str(source), Reading(root=root, **options))


def assert_colours_match(dataset, names=("cat", "dog", "owl")):
    pixels = dataset.images(np.arange(len(dataset)), 4)
    assert pixels.shape == (len(dataset), 3, 4, 4)
    assert pixels.dtype == np.uint8
    want = [sorted(COLOURS).index(dataset.classes[k]) for k in dataset.labels]
    assert pixels.mean(axis=(2, 3)).argmax(axis=1).tolist() == want
    assert dataset.classes == names


def assert_consistent(dataset):
    both = np.sort(np.concatenate([dataset.train, dataset.test]))
    np.testing.assert_array_equal(both, np.arange(len(dataset)))
    assert dataset.labels.dtype == dataset.train.dtype == dataset.test.dtype == np.int64
    assert set(dataset.labels.tolist()) <= set(range(dataset.num_classes))


def break_two(root):
    (root / "cat" / "1.png").write_text("this is not an image")
    good = (root / "owl" / "2.png").read_bytes()
    (root / "owl" / "2.png").write_bytes(good[: len(good) // 2])
    return root
