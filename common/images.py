"""Pictures as the backbone takes them: RGB, uint8, square, channels first.

Part of the device path: PIL and NumPy only. The same functions serve training, evaluation
and ``fedhead predict``, so that a picture becomes the same pixels everywhere.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import DataError

__all__ = ["ByteArray", "check_image", "decode_array", "decode_bytes", "decode_file"]

ByteArray = npt.NDArray[np.uint8]

# PIL warns from here on and refuses at twice this; a phone's camera makes an eighth of it.
_MAX_PIXELS = 89_478_485
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def decode_file(path: Path, size: int) -> ByteArray:
    """Read one picture.

    Args:
        path: PNG, JPEG, WebP, BMP or whatever else PIL reads.
        size: side of the square, in pixels.

    Returns:
        uint8 (3, size, size), RGB: turned upright by its EXIF tag, alpha laid on white, the
        shorter side scaled to ``size`` (bilinear, antialiased), the centre of the longer kept.

    Raises:
        DataError: not a picture, damaged or too large; names the file.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DataError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    return decode_bytes(data, size, name=str(path))


def decode_bytes(data: bytes, size: int, *, name: str) -> ByteArray:
    """Like :func:`decode_file`, for an encoded picture in memory; ``name`` is for the error."""
    return _square(_open(data, name), size)


def decode_array(array: npt.NDArray[np.generic], size: int, *, name: str = "array") -> ByteArray:
    """Like :func:`decode_file`, for pixels.

    Args:
        array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16 (full range) or bool.
        size: side of the square, in pixels.
        name: for the error.

    Returns:
        uint8 (3, size, size).

    Raises:
        DataError: another shape or type.

    >>> decode_array(np.full((1, 1), 7, np.uint8), 2).tolist()[0]
    [[7, 7], [7, 7]]
    """
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise DataError(f"{name}: shape {array.shape}, expected (H, W), (H, W, 1), 3 or 4")
    if array.dtype == np.bool_:
        pixels = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        pixels = _eight_bits(array)
    elif array.dtype == np.uint8:
        pixels = array.astype(np.uint8, copy=False)
    else:
        raise DataError(f"{name}: pixels are {array.dtype}, expected uint8, uint16 or bool")
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels[:, :, 0]
    return _square(_opaque(Image.fromarray(np.ascontiguousarray(pixels))), size)


def check_image(data: bytes, *, name: str) -> None:
    """Decode an encoded picture whole and throw it away.

    Raises:
        DataError: it would not decode; names the picture.
    """
    _open(data, name, draft=True)


def _open(data: bytes, name: str, *, draft: bool = False) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        width, height = image.size
        if width * height > _MAX_PIXELS:
            raise DataError(f"{name}: {width} x {height} pixels, more than {_MAX_PIXELS:,} allowed")
        if draft:  # JPEG only: reads every coefficient, but computes an eighth of the pixels
            image.draft(None, (1, 1))
        image.load()
        return _opaque(_upright(image))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise DataError(f"{name}: more than {_MAX_PIXELS:,} pixels") from exc
    except UnidentifiedImageError as exc:
        raise DataError(f"{name}: not a picture") from exc
    # PIL's readers let through whatever a damaged file makes them do: OSError, SyntaxError,
    # ValueError, IndexError, struct.error, zlib.error, ...
    except Exception as exc:
        raise DataError(f"{name}: damaged or unsupported picture ({exc})") from exc


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image


def _eight_bits(values: npt.NDArray[np.generic]) -> ByteArray:
    """The high byte of 16-bit values: what PIL keeps of 16-bit colour."""
    high: ByteArray = (np.clip(values, 0, 65535).astype(np.uint32) >> 8).astype(np.uint8)
    return high


def _opaque(image: Image.Image) -> Image.Image:
    """Mode L or RGB."""
    if image.mode in ("L", "RGB") and not image.has_transparency_data:
        return image
    if image.mode in _SIXTEEN_BITS:  # PIL's own conversion would clip at 255
        return Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode == "F":
        raise ValueError("pixels are 32-bit floats, whose range nobody knows")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("L" if image.mode == "1" else "RGB")


def _square(image: Image.Image, size: int) -> ByteArray:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Scaling only the middle gives the same pixels as scaling all and cropping, and a strip of
    # 1 x 100,000 pixels does not blow up.
    box = (left, top, left + side, top + side)
    scaled = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    if scaled.ndim == 2:
        return np.repeat(scaled[None], 3, axis=0)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
