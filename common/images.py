"""Images as the backbone needs them: RGB, uint8, square, channels first.

Part of the device path: PIL and NumPy only. Training, evaluation and ``fedhead predict`` use the
same functions, so an image becomes the same pixels everywhere.
"""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import os
import stat
import warnings
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError, _imaging

from common.errors import DataError
from common.files import shown

__all__ = [
    "HEIC_REMEDY",
    "ByteArray",
    "check_image",
    "decode_array",
    "decode_bytes",
    "decode_file",
    "decode_image",
    "heic_is_read",
    "read_image",
    "upright",
]

ByteArray = npt.NDArray[np.uint8]

# PIL's remarks on a file stay off the screen: an undecodable file raises an error of ours.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

HEIC_REMEDY = "pip install 'fedhead[heic]'"
"""The command that lets a machine read an iPhone's images."""

# PIL warns above this size and refuses at twice this size. Most phones' images have an eighth of
# it. Cameras of 108 and 200 megapixels write JPEG; a larger JPEG is decoded at half its size.
_MAX_PIXELS = 89_478_485
_MAX_JPEG_PIXELS = 4 * _MAX_PIXELS
_MAX_BYTES = 300_000_000  # uncompressed eight-bit RGB of that many pixels, and some room
# The formats that people keep images in. Left out: PIL's readers that are not tested here, and
# those that start another program, as EPS does.
_FORMATS = ("PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF")
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
_TIFF_SIGNS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_NO_IMAGES = {
    b"version https://git-lfs": "a pointer of Git LFS instead of an image: git lfs pull",
    b"<!doctype html": "a web page instead of an image",
    b"<html": "a web page instead of an image",
}


def decode_file(path: Path, size: int) -> ByteArray:
    """Read one image.

    Args:
        path: PNG, JPEG, GIF, BMP, PPM, WebP, TIFF, JPEG 2000 or AVIF; with the extra ``heic``
            also HEIC.
        size: side of the square, in pixels.

    Returns:
        uint8 (3, size, size), RGB: turned upright by its EXIF tag, alpha laid on white, the
        shorter side scaled to ``size`` (bilinear, antialiased), the centre of the longer kept.

    Raises:
        DataError: not an image, damaged or too large; names the file.
    """
    return decode_bytes(read_image(path), size, name=shown(path))


def read_image(path: Path, *, follow_links: bool = True) -> bytes:
    """The bytes of an image file. Never waits for a pipe, never reads more than a bound.

    Args:
        path: the file.
        follow_links: whether the file may be a symbolic link.

    Raises:
        DataError: the file cannot be read, is not a regular file or is too large; names it.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{shown(path)}: not a regular file")
            if status.st_size > _MAX_BYTES:
                raise DataError(
                    f"{shown(path)}: {status.st_size:,} bytes, more than {_MAX_BYTES:,} allowed"
                )
            return file.read(status.st_size)
    except OSError as exc:
        if exc.errno == errno.ELOOP and not follow_links:
            raise DataError(f"{shown(path)}: a link, and links are not followed") from exc
        raise DataError(f"{shown(path)}: cannot be read ({exc.strerror or exc})") from exc


@lru_cache(maxsize=1)
def heic_is_read() -> bool:
    """Whether the package that reads HEIC is installed; it is not imported."""
    with suppress(ImportError):  # some module finders raise this for a missing package
        return find_spec("pillow_heif") is not None
    return False


def decode_bytes(data: bytes, size: int, *, name: str) -> ByteArray:
    """Like :func:`decode_file`, for an encoded image in memory; ``name`` is for the error."""
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


def decode_image(image: Image.Image, size: int, *, name: str = "image") -> ByteArray:
    """Like :func:`decode_file`, for an image that PIL has opened.

    Raises:
        DataError: it cannot be decoded; names it.
    """
    try:
        return _square(_opaque(upright(image)), size)
    except Exception as exc:  # as of a file, PIL's readers raise whatever they please
        raise DataError(f"{name}: damaged or unsupported image ({exc})") from exc


def check_image(data: bytes, *, name: str) -> None:
    """Check that an encoded image can be decoded completely.

    Raises:
        DataError: it cannot; names the image.
    """
    _open(data, name, draft=True)


def _open(data: bytes, name: str, *, draft: bool = False) -> Image.Image:
    try:
        image = _identified(data, name)
        width, height = image.size
        most = _MAX_PIXELS
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            most = _MAX_JPEG_PIXELS
            if draft:  # reads all coefficients, but computes only an eighth of the pixels
                image.draft(None, (1, 1))
            elif width * height > _MAX_PIXELS:
                image.draft(None, (width // 2, height // 2))
        if width * height > most:
            raise DataError(f"{name}: {width} x {height} pixels, more than {most:,} allowed")
        image.load()
        return _opaque(upright(image))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise DataError(f"{name}: more than {_MAX_PIXELS:,} pixels") from exc
    except UnidentifiedImageError as exc:
        start = data[:64].lstrip().lower()
        kinds = (kind for sign, kind in _NO_IMAGES.items() if start.startswith(sign))
        kind = next(kinds, "not an image" if data else "an empty file, not an image")
        raise DataError(f"{name}: {kind}") from exc
    # On a damaged file, PIL's readers raise nearly anything: OSError, SyntaxError,
    # ValueError, IndexError, struct.error, zlib.error, ...
    except Exception as exc:
        raise DataError(f"{name}: damaged or unsupported image ({exc})") from exc


def _identified(data: bytes, name: str) -> Image.Image:
    """Open an image by its first bytes, whatever its file name; nothing is decoded yet."""
    file = io.BytesIO(data)
    if data.startswith(b"\xff\xd8\xff"):
        # Image.open would refuse 200 megapixels before we could ask for half the size.
        return JpegImagePlugin.jpeg_factory(file)
    if data.startswith(_TIFF_SIGNS):
        _silence_libtiff()
    if not _is_heic(data):
        return Image.open(file, formats=_FORMATS)
    if not heic_is_read():
        raise DataError(f"{name}: an HEIC image, which this machine does not read: {HEIC_REMEDY}")
    try:
        _register_heic()
    except Exception as exc:  # a broken installation: a missing library, another Python's build
        raise DataError(
            f"{name}: an HEIC image, and the package pillow-heif cannot be imported ({exc}): "
            "pip install --force-reinstall pillow-heif"
        ) from exc
    return Image.open(file, formats=("HEIF",))


def _is_heic(data: bytes) -> bool:
    """Whether the brands in its box ``ftyp`` say HEIC (ISO/IEC 14496-12)."""
    if data[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(data[:4], "big"), 256)
    return any(data[i : i + 4] in _HEIC_BRANDS for i in range(8, end, 4))


@lru_cache(maxsize=1)
def _silence_libtiff() -> None:
    """Stop libtiff from writing to standard error what PIL's exception says as well."""
    with suppress(AttributeError, OSError):  # if it is linked differently, it goes on writing
        library = ctypes.CDLL(_imaging.__file__)  # libtiff is reached through PIL's module
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


@lru_cache(maxsize=1)
def _register_heic() -> None:
    import pillow_heif  # an optional package, imported only for such an image

    pillow_heif.register_heif_opener()


def upright(image: Image.Image) -> Image.Image:
    """The image, turned upright by its EXIF orientation."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels may be fine although the EXIF block is damaged
        return image


def _eight_bits(values: npt.NDArray[np.generic]) -> ByteArray:
    """The high byte of 16-bit values, as PIL does it for 16-bit colour."""
    high: ByteArray = (np.clip(values, 0, 65535).astype(np.uint32) >> 8).astype(np.uint8)
    return high


def _opaque(image: Image.Image) -> Image.Image:
    """Mode L or RGB."""
    if image.mode in ("L", "RGB") and not image.has_transparency_data:
        return image
    if image.mode in _SIXTEEN_BITS:  # PIL's conversion would clip at 255
        return Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode == "F":
        raise ValueError("pixels are 32-bit floats of unknown range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("L" if image.mode == "1" else "RGB")


def _square(image: Image.Image, size: int) -> ByteArray:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Scaling only the middle gives the same pixels as scaling everything and cropping. It also
    # keeps a strip of 1 x 100,000 pixels from becoming huge.
    box = (left, top, left + side, top + side)
    scaled = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    if scaled.ndim == 2:
        return np.repeat(scaled[None], 3, axis=0)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
