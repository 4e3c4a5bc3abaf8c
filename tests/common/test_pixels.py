"""docs/test-images: the pixels that apps in any language compare theirs with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.images import ByteArray, decode_file

FOLDER = Path(__file__).parents[2] / "docs/test-images"
SIZE = 32
IMAGES = sorted(p for p in FOLDER.iterdir() if p.suffix in (".png", ".jpg"))


def expected(name: str) -> ByteArray:
    data = (FOLDER / f"{name}.pixels").read_bytes()
    return np.frombuffer(data, np.uint8).reshape(3, SIZE, SIZE)


def off(a: ByteArray, b: ByteArray) -> tuple[float, int]:
    difference = np.abs(a.astype(int) - b)
    return float(difference.mean()), int(difference.max())


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_each_image_gives_its_pixels(path):
    mean, most = off(decode_file(path, SIZE), expected(path.stem))
    # Versions of libjpeg may differ by a level or two, as the page says; PNG has one answer.
    assert (mean, most) <= ((0.0, 0) if path.suffix == ".png" else (1.5, 8))


PAGE = (FOLDER.parent / "phone.md").read_text()
RECIPE = PAGE.partition("In Python with Pillow:\n\n```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_the_recipe_for_an_app_gives_the_pixels_that_heads_are_trained_on(path):
    recipe = RECIPE.replace('"docs/test-images/exif-6.jpg"', repr(str(path)))
    names = {}
    exec(recipe.replace("(96, 96)", "(32, 32)"), names)
    assert np.array_equal(names["images"].numpy()[0], decode_file(path, SIZE))


def test_each_image_is_on_the_page_and_has_pixels():
    page = (FOLDER / "README.md").read_text()
    assert len(IMAGES) == 18
    for path in IMAGES:
        assert f"`{path.name}`" in page or path.name.startswith("exif-")
    assert {p.stem for p in FOLDER.glob("*.pixels")} == {p.stem for p in IMAGES}
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 150_000


@pytest.mark.parametrize("orientation", range(2, 9))
def test_each_orientation_is_the_same_upright_scene(orientation):
    with Image.open(FOLDER / f"exif-{orientation}.jpg") as image:
        assert image.getexif()[0x0112] == orientation
    mean, most = off(expected(f"exif-{orientation}"), expected("upright"))
    assert mean < 1.5  # compressed anew as it lies in the file
    assert most <= 16


def test_alpha_lies_on_white_and_16_bits_keep_their_high_byte():
    alpha = expected("alpha")  # from transparent on the left to opaque on the right
    assert alpha[:, :, 0].min() >= 240
    with Image.open(FOLDER / "alpha.png") as image:
        scene = np.asarray(image.convert("RGB").resize((SIZE, SIZE), 2, box=(0, 8, 48, 56)))
    assert off(alpha[:, :, -1].T, scene[:, -1])[0] < 6
    assert off(expected("grey-16-bit"), expected("grey"))[1] <= 1
