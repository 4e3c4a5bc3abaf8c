"""Checks whether an app prepares an image as in training, and if not, finds its mistake."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.backbone.spec import IMAGENET_MEAN, IMAGENET_STD
from common.errors import DataError
from common.images import decode_file, read_image, upright

__all__ = ["Comparison", "compare_pixels"]

# Two JPEG decoders, or two roundings of a scaled image, differ by a level or two.
_CLOSE = 1.5
_MOST = 8
_MOST_PIXELS = 2048  # per side; networks for phones have a few hundred
# If an image is cut before it is scaled, it differs only at its edges, but there by more.
_EDGES = 0.75
# Levels of the mean difference that a further mistake must explain; less could be noise.
_WORTH = 0.1

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """An app's pixels beside fedhead's.

    Attributes:
        size: S, height and width.
        max_difference: in levels of 255.
        mean_difference: in levels of 255, over all pixels and colours.
        same: whether decoders and rounding explain the difference.
        mistakes: mistakes that together explain the difference; empty if no known one does.
    """

    size: int
    max_difference: float
    mean_difference: float
    same: bool
    mistakes: tuple[str, ...]


def compare_pixels(image: Path, pixels: Path) -> Comparison:
    """Compare, and look for mistakes that explain the difference.

    Args:
        image: an image, in any format that training can read.
        pixels: the app's input to the model for it: a NumPy file of shape (3, S, S) or (S, S, 3),
            or 3 * S * S bytes, one plane each of red, green and blue.

    Raises:
        DataError: a file cannot be read, or the pixels have another shape.
    """
    readings = list(_readings(pixels))
    size = readings[0][1].shape[1]
    want = decode_file(image, size).astype(np.float32)
    difference = np.abs(readings[0][1] - want)
    most, mean = float(difference.max()), float(difference.mean())
    given = readings[0][0]
    same = (mean <= _EDGES or (mean <= _CLOSE and most <= _MOST)) and not given
    mistakes: tuple[str, ...] = ()
    if not same or mean > 0:
        best = _explanation(image, size, readings)
        if best.mean <= _CLOSE and (best.parts == given or best.mean < 0.5 * mean):
            mistakes = best.parts
    return Comparison(size, most, mean, same and not mistakes, mistakes)


@dataclass(frozen=True)
class _Candidate:
    parts: tuple[str, ...]
    mean: float


def _explanation(
    image: Path, size: int, readings: list[tuple[tuple[str, ...], Pixels]]
) -> _Candidate:
    """The fewest mistakes that bring the image closest to the pixels."""
    best = _Candidate((), math.inf)
    for source, made in _renderings(image, size):
        for (turn, turned), (swap, order), (reading, got) in itertools.product(
            _TURNS, _COLOURS, readings
        ):
            mean = float(np.abs(turned(made)[order] - got).mean())
            parts = (*source, *turn, *swap, *reading)
            if mean + _WORTH * len(parts) < best.mean + _WORTH * len(best.parts):
                best = _Candidate(parts, mean)
    return best


_COLOURS: tuple[tuple[tuple[str, ...], slice], ...] = (
    ((), slice(None)),
    (("red and blue are swapped (BGR)",), slice(None, None, -1)),
)
_TURNS: tuple[tuple[tuple[str, ...], Callable[[Pixels], Pixels]], ...] = (
    ((), lambda x: x),
    (("turned left by 90 degrees",), lambda x: np.rot90(x, 1, (1, 2))),
    (("turned by 180 degrees",), lambda x: np.rot90(x, 2, (1, 2))),
    (("turned right by 90 degrees",), lambda x: np.rot90(x, 3, (1, 2))),
    (("mirrored left to right",), lambda x: x[:, :, ::-1]),
    (("mirrored top to bottom",), lambda x: x[:, ::-1]),
    (("rows and columns are swapped",), lambda x: x.swapaxes(1, 2)),
)


def _readings(path: Path) -> Iterator[tuple[tuple[str, ...], Pixels]]:
    """The file's pixels as float32 (3, S, S): first the correct reading, then other readings."""
    data = read_image(path)
    array = _array(data, path)
    if array.shape[1] > _MOST_PIXELS:
        raise DataError(f"{path}: {array.shape[1]} pixels a side, expected at most {_MOST_PIXELS}")
    if array.dtype == np.int8:  # bytes of a language without unsigned bytes
        array = array.view(np.uint8)
    planes = array if array.shape[0] == 3 else array.transpose(2, 0, 1)
    values = planes.astype(np.float32)
    if array.dtype == np.uint8:
        yield (), values
        if not data.startswith(b"\x93NUMPY"):
            side = math.isqrt(array.size // 3)
            interleaved = array.reshape(side, side, 3).transpose(2, 0, 1).astype(np.float32)
            yield ("colours are interleaved, expected three planes",), interleaved
        return
    kind = f"values are {array.dtype}, expected uint8 in 0..255"
    mean = np.array(IMAGENET_MEAN, np.float32).reshape(3, 1, 1)
    std = np.array(IMAGENET_STD, np.float32).reshape(3, 1, 1)
    yield (kind,), values
    yield (f"{kind}, and divided by 255",), values * 255
    yield (f"{kind}, and scaled to -1..1, which the model does itself",), (values + 1) * 127.5
    normalized = f"{kind}, and normalized with ImageNet's mean and std, which the model does itself"
    yield (normalized,), (values * std + mean) * 255


def _array(data: bytes, path: Path) -> Pixels:
    if not data.startswith(b"\x93NUMPY"):
        side = math.isqrt(len(data) // 3)
        if not data or 3 * side * side != len(data):
            raise DataError(f"{path}: {len(data)} bytes, expected a .npy file or 3 * S * S bytes")
        return np.frombuffer(data, np.uint8).reshape(3, side, side)
    try:
        array: Pixels = np.load(io.BytesIO(data), allow_pickle=False)
    # A false header may claim more than there is in the file, or in memory.
    except (ValueError, EOFError, OSError, MemoryError, OverflowError) as exc:
        raise DataError(f"{path}: not a readable .npy file ({exc})") from exc
    if array.ndim == 4 and len(array) == 1:  # a batch of one image
        array = array[0]
    shape = array.shape
    square = len(shape) == 3 and 3 in (shape[0], shape[2]) and 0 not in shape
    if not square or shape[1] != shape[2 if shape[0] == 3 else 0]:
        raise DataError(f"{path}: shape {shape}, expected (3, S, S) or (S, S, 3)")
    if array.dtype not in (np.uint8, np.int8) and array.dtype.kind != "f":
        raise DataError(f"{path}: values are {array.dtype}, expected uint8")
    if not (np.abs(array) <= 1e6).all():  # false for NaN, too
        raise DataError(f"{path}: some values cannot be pixels, expected uint8")
    return array


def _renderings(path: Path, size: int) -> Iterator[tuple[tuple[str, ...], Pixels]]:
    """The image as float32 (3, S, S): correct, with one mistake, and with several mistakes."""
    yield from _mistaken(path, size)
    yield (), decode_file(path, size).astype(np.float32)


def _mistaken(path: Path, size: int) -> Iterator[tuple[tuple[str, ...], Pixels]]:
    try:
        image = Image.open(path)
        image.load()
    except (Image.DecompressionBombError, OSError):  # only ``decode_file`` can read this one
        return
    with image:
        for source, opaque in _sources(image):
            width, height = opaque.size
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            crops = {
                "": (left, top, left + side, top + side),
                "squeezed to a square, expected its middle": (0, 0, width, height),
                "cut at the top left, expected its middle": (0, 0, side, side),
            }
            for crop, box in crops.items() if width != height else [("", (0, 0, width, height))]:
                for name, scaled in _scalings(opaque, size, box):
                    parts = (*source, *filter(None, (crop, name)))
                    yield parts, np.asarray(scaled, np.float32).transpose(2, 0, 1)


def _sources(image: Image.Image) -> Iterator[tuple[tuple[str, ...], Image.Image]]:
    """The image upright and opaque, and as it is if one or both steps are forgotten."""
    orientation = _orientation(image)
    if orientation not in (0, 1):
        # This comes first, because it explains a turned image better than a plain turn does.
        for source, opaque in _opaque(image):
            yield (*source, f"its EXIF orientation ({orientation}) was not applied"), opaque
    yield from _opaque(upright(image))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block has no orientation
        return 1


def _opaque(image: Image.Image) -> Iterator[tuple[tuple[str, ...], Image.Image]]:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        yield (), Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
        clipped = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")
        yield ("16-bit values are cut off at 255, expected their high byte",), clipped
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        for parts, ground in (
            ((), "white"),
            (("alpha is laid on black, expected white",), "black"),
        ):
            under = Image.new("RGBA", rgba.size, ground)
            yield parts, Image.alpha_composite(under, rgba).convert("RGB")
        yield ("alpha is dropped, expected to be laid on white",), rgba.convert("RGB")
    else:
        yield (), image.convert("RGB")


def _scalings(
    image: Image.Image, size: int, box: tuple[float, float, float, float]
) -> Iterator[tuple[str, Image.Image]]:
    sampling = Image.Resampling
    filters = {
        "": sampling.BILINEAR,
        "scaled with nearest neighbours, expected bilinear": sampling.NEAREST,
        "scaled with a bicubic filter, expected bilinear": sampling.BICUBIC,
        "scaled with a Lanczos filter, expected bilinear": sampling.LANCZOS,
        "scaled with a box filter (area), expected bilinear": sampling.BOX,
    }
    for name, resample in filters.items():
        yield name, image.resize((size, size), resample, box=box)
    left, top, right, bottom = box
    x, y = (right - left) / size, (bottom - top) / size
    # Each new pixel is computed from four old ones, however many it covers.
    plain = image.transform(
        (size, size), Image.Transform.AFFINE, (x, 0, left, 0, y, top), sampling.BILINEAR
    )
    yield "scaled without antialiasing (plain bilinear), expected with", plain
