"""What an app may do wrong with an image, done here, and found by name."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from common.errors import DataError
from common.images import decode_file
from server.export.compare_pixels import Comparison, compare_pixels

S = 48
Array = npt.NDArray[Any]
BOX = (20, 0, 140, 120)  # the middle square of the image


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """160 x 120, smooth where colours meet and with grain, unlike any of its own turns."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    grain = rng.integers(-20, 20, (120, 160, 3))
    pixels = np.asarray(coarse.resize((160, 120), Image.Resampling.BICUBIC)).astype(int) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture
def compared(image: Image.Image, tmp_path: Path) -> Callable[..., Comparison]:
    """Compares what an app made of an image with the image."""
    image.save(tmp_path / "p.png")

    def compare(pixels: Array | bytes, image: Path = tmp_path / "p.png") -> Comparison:
        file = tmp_path / "app.npy"
        if isinstance(pixels, bytes):
            file.write_bytes(pixels)
        else:
            np.save(file, pixels)
        return compare_pixels(image, file)

    return compare


def planes(image: Image.Image) -> Array:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def scaled(image: Image.Image, resample: int = Image.Resampling.BILINEAR, box: Any = BOX) -> Array:
    return planes(image.resize((S, S), Image.Resampling(resample), box=box))


def plain_bilinear(image: Image.Image) -> Array:
    """Four neighbours of each point, written out."""
    x = np.asarray(image).astype(float)[:, 20:140]
    at = (np.arange(S) + 0.5) * 120 / S - 0.5
    low = np.floor(at).astype(int)
    part = (at - low)[:, None]
    rows = x[low] * (1 - part[:, None]) + x[low + 1] * part[:, None]
    return np.rint(rows[:, low] * (1 - part) + rows[:, low + 1] * part).transpose(2, 0, 1)


def test_the_same_pixels_are_the_same_in_each_form(compared, image):
    want = scaled(image)
    for pixels in (want, want.transpose(1, 2, 0), want[None], want.tobytes(), want.view(np.int8)):
        found = compared(pixels)
        assert found == Comparison(S, 0.0, 0.0, same=True, mistakes=())


def test_what_a_decoder_and_rounding_differ_by_is_the_same(compared, image):
    noise = np.random.default_rng(1).integers(-2, 3, (3, S, S))
    found = compared(np.clip(scaled(image) + noise, 0, 255).astype(np.uint8))
    assert found.same
    assert found.max_difference == 2


def test_an_image_that_is_cut_before_it_is_scaled_is_the_same_but_for_its_edges(
    compared, image, tmp_path
):
    framed = image.copy()
    framed.paste("black", (0, 0, 20, 120))
    framed.paste("white", (140, 0, 160, 120))
    framed.save(tmp_path / "framed.png")
    found = compared(scaled(framed.crop(BOX), box=None), tmp_path / "framed.png")
    assert found.same
    assert found.max_difference > 8


FLOATS = "values are float32, expected uint8 in 0..255"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
Mistake = Callable[[Image.Image], Array]
MISTAKES: dict[str, Mistake] = {
    "red and blue are swapped (BGR)": lambda p: scaled(p)[::-1],
    "turned left by 90 degrees": lambda p: np.rot90(scaled(p), 1, (1, 2)),
    "turned by 180 degrees": lambda p: np.rot90(scaled(p), 2, (1, 2)),
    "turned right by 90 degrees": lambda p: np.rot90(scaled(p), -1, (1, 2)),
    "mirrored left to right": lambda p: scaled(p)[:, :, ::-1],
    "mirrored top to bottom": lambda p: scaled(p)[:, ::-1],
    "rows and columns are swapped": lambda p: scaled(p).swapaxes(1, 2),
    "squeezed to a square, expected its middle": lambda p: scaled(p, box=(0, 0, 160, 120)),
    "cut at the top left, expected its middle": lambda p: scaled(p, box=(0, 0, 120, 120)),
    "scaled with nearest neighbours, expected bilinear": lambda p: scaled(p, 0),
    "scaled with a bicubic filter, expected bilinear": lambda p: scaled(p, 3),
    "scaled with a Lanczos filter, expected bilinear": lambda p: scaled(p, 1),
    "scaled with a box filter (area), expected bilinear": lambda p: scaled(p, 4),
    "scaled without antialiasing (plain bilinear), expected with": lambda p: plain_bilinear(
        p
    ).astype(np.uint8),
    FLOATS: lambda p: scaled(p).astype(np.float32),
    f"{FLOATS}, and divided by 255": lambda p: (scaled(p) / 255).astype(np.float32),
    f"{FLOATS}, and scaled to -1..1, which the model does itself": lambda p: (
        scaled(p) / 127.5 - 1
    ).astype(np.float32),
    f"{FLOATS}, and normalized with ImageNet's mean and std, which the model does itself": (
        lambda p: ((scaled(p).transpose(1, 2, 0) / 255 - MEAN) / STD).astype(np.float32)
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_by_its_name(compared, image, mistake):
    found = compared(MISTAKES[mistake](image))
    assert not found.same
    assert found.mistakes == (mistake,)


def test_several_mistakes_at_once_are_all_named(compared, image):
    squeezed = scaled(image, box=(0, 0, 160, 120))
    assert set(compared(squeezed[::-1, ::-1]).mistakes) == {
        "squeezed to a square, expected its middle",
        "red and blue are swapped (BGR)",
        "mirrored top to bottom",
    }


def test_raw_bytes_of_interleaved_colours_are_recognized(compared, image):
    found = compared(scaled(image).transpose(1, 2, 0).tobytes())
    assert found.mistakes == ("colours are interleaved, expected three planes",)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_an_orientation_that_was_ignored_is_named_with_its_number(
    compared, image, tmp_path, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "p.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "p.jpg") as stored:
        found = compared(scaled(stored), tmp_path / "p.jpg")
    assert found.mistakes == (f"its EXIF orientation ({orientation}) was not applied",)


def test_forgotten_alpha_and_16_bits_are_named(compared, image, tmp_path):
    seen = image.convert("RGBA")
    seen.putalpha(Image.linear_gradient("L").resize((160, 120)))
    seen.save(tmp_path / "alpha.png")
    black = Image.alpha_composite(Image.new("RGBA", seen.size, "black"), seen)
    found = compared(scaled(black.convert("RGB")), tmp_path / "alpha.png")
    assert found.mistakes == ("alpha is laid on black, expected white",)
    found = compared(scaled(image), tmp_path / "alpha.png")
    assert found.mistakes == ("alpha is dropped, expected to be laid on white",)
    values = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / "deep.png")
    white = np.full((3, S, S), 255, np.uint8)
    found = compared(white, tmp_path / "deep.png")
    assert found.mistakes == ("16-bit values are cut off at 255, expected their high byte",)


def test_another_image_is_not_explained(compared):
    found = compared(np.random.default_rng(5).integers(0, 256, (3, S, S)).astype(np.uint8))
    assert not found.same
    assert found.mistakes == ()


@pytest.mark.parametrize(
    ("pixels", "line"),
    [
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\), expected \(3, S, S\) or \(S, S, 3\)"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"shape \(2, 3, 4, 4\)"),
        (np.zeros((3, 4, 4), np.int64), "values are int64, expected uint8"),
        (np.full((3, 4, 4), np.nan, np.float32), "some values cannot be pixels"),
        (np.array([{}]), "not a readable .npy file"),
        (b"", "0 bytes"),
        (b"1234567", r"7 bytes, expected a .npy file or 3 \* S \* S bytes"),
        (b"\x93NUMPY\x01\x00", "not a readable .npy file"),
    ],
)
def test_pixels_that_cannot_be_meant_are_one_line(compared, pixels, line):
    with pytest.raises(DataError, match=rf"app\.npy: {line}") as caught:
        compared(pixels)
    assert "\n" not in str(caught.value)


def test_the_command_says_what_it_looks_like_and_fails(image, tmp_path, fedhead):
    image.save(tmp_path / "p.png")
    np.save(tmp_path / "app.npy", scaled(image)[::-1])
    code, out, _ = fedhead("compare-pixels", str(tmp_path / "p.png"), str(tmp_path / "app.npy"))
    assert code == 1
    assert "it looks like this: red and blue are swapped (BGR)" in out
    np.save(tmp_path / "app.npy", decode_file(tmp_path / "p.png", S))
    code, out, _ = fedhead(
        "compare-pixels", str(tmp_path / "p.png"), str(tmp_path / "app.npy"), "--json"
    )
    assert code == 0
    assert json.loads(out)["same"] is True


def test_what_is_no_file_of_pixels_is_one_line_and_never_waited_for(tmp_path):
    image, pixels = tmp_path / "a.png", tmp_path / "a.npy"
    Image.new("RGB", (8, 8)).save(image)
    os.mkfifo(pixels)
    with pytest.raises(DataError, match="not a regular file"):
        compare_pixels(image, pixels)
    pixels.unlink()
    claim = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        claim, {"descr": "|u1", "fortran_order": False, "shape": (3, 10**5, 10**5)}
    )
    pixels.write_bytes(claim.getvalue())
    with pytest.raises(DataError, match="not a readable"):
        compare_pixels(image, pixels)
    np.save(pixels, np.zeros((3, 2049, 2049), np.uint8))
    with pytest.raises(DataError, match="2049 pixels a side, expected at most 2048"):
        compare_pixels(image, pixels)
    np.save(pixels, np.full((3, 8, 8), 3e38, np.float32))
    with pytest.raises(DataError, match="cannot be pixels"):
        compare_pixels(image, pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"Exif\0\0rubbish", b"\0" * 9])
def test_a_damaged_exif_block_says_nothing(exif, tmp_path):
    image, pixels = tmp_path / "a.jpg", tmp_path / "a.npy"
    Image.new("RGB", (8, 8), (9, 99, 9)).save(image, exif=exif)
    np.save(pixels, decode_file(image, 8))
    assert compare_pixels(image, pixels).same
