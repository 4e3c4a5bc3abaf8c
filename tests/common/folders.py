"""Folders of small images, and how tests read them."""

import io

from PIL import Image

from common.datasets import Reading, load_dataset

CATS_AND_DOGS = ("cats", "dogs")


def image(colour=(1, 2, 3)):
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image() if content is None else content)
    return path


def fill(root, classes=CATS_AND_DOGS, each=3):
    for name in classes:
        for i in range(each):
            write(root / name / f"{i}.png")
    return root


def load(path, kind="folder", **options):
    return load_dataset(f"{kind}:{path}", Reading(**{"test_fraction": 0.34, **options}))
