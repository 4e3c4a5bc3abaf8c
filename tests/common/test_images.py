"""Any image becomes uint8 (3, S, S), upright, opaque and centred, or a DataError naming it."""

import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common import images
from common.errors import DataError
from common.images import check_image, decode_array, decode_bytes, decode_file


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_same_pixels(kind):
    pixels = noise(8, 8)
    got = decode_bytes(encode(Image.fromarray(pixels), kind), 8, name="x")
    np.testing.assert_array_equal(got, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("kind", "options"), [("WEBP", {"lossless": True}), ("WEBP", {}), ("JPEG", {"quality": 95})]
)
def test_a_flat_colour_survives_lossy_formats(kind, options):
    image = Image.new("RGB", (20, 20), (200, 100, 50))
    got = decode_bytes(encode(image, kind, **options), 8, name="x")
    want = np.broadcast_to(np.array([200, 100, 50])[:, None, None], (3, 8, 8))
    np.testing.assert_allclose(got, want, atol=3)


def test_grey_fills_three_equal_channels():
    pixels = noise(8, 8, 1)
    got = decode_bytes(encode(Image.fromarray(pixels)), 8, name="x")
    np.testing.assert_array_equal(got, np.stack([pixels] * 3))


def test_one_bit_images_are_black_and_white():
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert decode_bytes(encode(image), 2, name="x")[0].tolist() == [[0, 255], [255, 0]]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 0x07FF], [0x8000, 65535]], np.uint16)
    for data in (
        encode(Image.fromarray(values)),
        encode(Image.fromarray(values), "TIFF"),
        b"P5 2 2 65535\n" + values.astype(">u2").tobytes(),
    ):
        assert decode_bytes(data, 2, name="x")[1].tolist() == [[0, 7], [128, 255]]


def test_sixteen_bit_colour_keeps_the_high_byte():
    row = b"\x00" + struct.pack(">HHH", 0x1234, 0xABCD, 0xFFFF)
    assert decode_bytes(png(1, 1, 16, 2, row), 1, name="x").ravel().tolist() == [0x12, 0xAB, 0xFF]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_laid_on_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    got = decode_bytes(encode(image.convert(mode), "PNG" if mode != "PA" else "TIFF"), 1, name="x")
    assert 120 <= got[0, 0, 0] <= 135  # half black, half white


def test_palette_with_a_transparent_colour_is_laid_on_white():
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    assert decode_bytes(encode(image), 1, name="x").ravel().tolist() == [9, 9, 9]
    data = encode(image, transparency=1)
    assert decode_bytes(data, 1, name="x").ravel().tolist() == [255, 255, 255]


def test_cmyk_becomes_rgb():
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    np.testing.assert_allclose(decode_bytes(data, 1, name="x").ravel(), [255, 0, 0], atol=5)


def test_float_pixels_are_refused():
    data = encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"float\.tif.*32-bit floats"):
        decode_bytes(data, 2, name="float.tif")


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_bytes(data, 1, name="x").ravel().tolist() == [255, 0, 0]


# The EXIF standard, tag 0x0112: what must be done to the stored image to stand upright.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_obeyed(orientation):
    pixels = noise(6, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode_bytes(encode(Image.fromarray(pixels), exif=exif), 6, name="x")
    np.testing.assert_array_equal(got, UPRIGHT[orientation](pixels).transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # PIL tells; the pixels are fine
def test_a_damaged_exif_block_does_not_matter():
    data = encode(Image.new("RGB", (4, 4), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_bytes(data, 1, name="x")[0, 0, 0] > 250


@pytest.mark.parametrize(("height", "width"), [(20, 40), (60, 20)])
def test_same_as_scaling_the_shorter_side_and_cropping_the_centre(height, width):
    image = Image.fromarray(noise(height, width))
    factor = 2
    whole = image.resize((width // factor, height // factor), Image.Resampling.BILINEAR)
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    want = np.asarray(whole.crop((left, top, left + side, top + side)))
    np.testing.assert_array_equal(
        decode_bytes(encode(image), side, name="x"), want.transpose(2, 0, 1)
    )


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30))
def test_any_shape_becomes_a_square(height, width, size):
    got = decode_array(np.full((height, width, 3), 77, np.uint8), size)
    assert got.shape == (3, size, size)
    assert got.dtype == np.uint8
    assert (got == 77).all()


def test_one_pixel_and_a_very_long_strip():
    assert (decode_bytes(encode(Image.new("RGB", (1, 1), "red")), 96, name="x")[0] == 255).all()
    strip = np.zeros((1, 50_001), np.uint8)
    strip[0, 24_999:25_002] = 200  # the centre
    assert (decode_array(strip, 224)[0] == 200).all()


def test_arrays_and_files_agree(tmp_path):
    for pixels in (noise(9, 7), noise(9, 7, 1), noise(9, 7, 4)):
        path = tmp_path / "x.png"
        Image.fromarray(pixels).save(path)
        np.testing.assert_array_equal(decode_array(pixels, 5), decode_file(path, 5))


def test_array_types():
    assert decode_array(np.array([[True]]), 1).ravel().tolist() == [255] * 3
    assert decode_array(np.array([[65535]], np.uint16), 1).ravel().tolist() == [255] * 3
    assert decode_array(np.full((1, 1, 1), 5, np.uint8), 1).ravel().tolist() == [5] * 3
    with pytest.raises(DataError, match="number 3: pixels are float32"):
        decode_array(np.zeros((2, 2), np.float32), 2, name="number 3")
    for shape in [(2,), (2, 2, 2), (0, 2), (3, 4, 5)]:
        with pytest.raises(DataError, match="shape"):
            decode_array(np.zeros(shape, np.uint8), 2)


def test_input_is_not_changed():
    pixels = noise(5, 5)
    before = pixels.copy()
    decode_array(pixels, 3)
    np.testing.assert_array_equal(pixels, before)


BROKEN = {
    "text.png": b"this is not an image",
    "empty.jpg": b"",
    "half.png": encode(Image.fromarray(noise(64, 64)))[:2000],
    "half.jpg": encode(Image.fromarray(noise(64, 64)), "JPEG")[:2000],
    "half.webp": encode(Image.fromarray(noise(64, 64)), "WEBP")[:1000],
    "half.bmp": encode(Image.fromarray(noise(64, 64)), "BMP")[:2000],
    "half.gif": encode(Image.fromarray(noise(64, 64)), "GIF")[:2000],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_when_read_and_when_checked(name, tmp_path):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(DataError, match=name):
        decode_file(tmp_path / name, 8)
    with pytest.raises(DataError, match=name):
        check_image(BROKEN[name], name=name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        decode_file(tmp_path / "gone.png", 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_good_image_passes_the_check(kind):
    check_image(encode(Image.fromarray(noise(33, 65)), kind), name="x")


def resized_header(data, width, height):
    """A JPEG that says it were so large."""
    at = data.index(b"\xff\xc0") + 5  # SOF0: length, precision, height, width
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_phones_108_megapixels_are_read_at_half_the_size(kind):
    halves = Image.new("L", (12_000, 9_000))
    halves.paste(200, (6_000, 0, 12_000, 9_000))
    more = {"save_all": True, "append_images": [Image.new("L", (8, 8))]} if kind == "MPO" else {}
    data = encode(halves, kind, **more)
    check_image(data, name="x")
    got = decode_bytes(data, 8, name="x")
    np.testing.assert_allclose(got[0, :, [0, 1, 2]], 0, atol=2)  # between them it is blended
    np.testing.assert_allclose(got[0, :, [5, 6, 7]], 200, atol=2)


def test_jpegs_within_the_bound_are_not_read_at_half_the_size():
    pixels = noise(64, 64)
    data = encode(Image.fromarray(pixels), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        want = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_bytes(data, 64, name="x"), want.transpose(2, 0, 1))


def test_a_jpeg_beyond_four_times_the_bound_is_refused_before_it_is_decoded():
    data = resized_header(encode(Image.new("RGB", (8, 8)), "JPEG"), 65_000, 65_000)
    for read in (
        lambda: decode_bytes(data, 8, name="x.jpg"),
        lambda: check_image(data, name="x.jpg"),
    ):
        with pytest.raises(DataError, match=r"x\.jpg: 65000 x 65000 pixels, more than 357,913,940"):
            read()


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "MPO"])
def test_what_cameras_and_the_web_write_is_read(kind):
    got = decode_bytes(encode(Image.new("RGB", (64, 64), (200, 100, 50)), kind), 8, name="x")
    np.testing.assert_allclose(got[:, 4, 4], [200, 100, 50], atol=6)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "TGA"])
def test_what_nobody_keeps_images_in_is_not_read(kind):
    with pytest.raises(DataError, match="x: not an image"):
        decode_bytes(encode(Image.new("RGB", (64, 64)), kind), 8, name="x")


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    data = png(side, side, 8, 2, b"")
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action, Image.DecompressionBombWarning)
            with pytest.raises(DataError, match=r"bomb\.png.*89,478,485"):
                decode_bytes(data, 8, name="bomb.png")


def test_a_broken_heic_package_is_named(monkeypatch):
    monkeypatch.setattr(images, "heic_is_read", lambda: True)
    images._register_heic.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x18ftypheic" + bytes(20)
    with pytest.raises(DataError, match=r"^x: .* pillow-heif cannot be imported .*pip install"):
        decode_bytes(data, 4, name="x")


def test_what_readers_think_of_a_file_is_not_on_the_screen(tmp_path):
    whole = encode(Image.fromarray(noise(40, 40)), "TIFF", compression="tiff_deflate")
    (tmp_path / "damaged.tif").write_bytes(whole[:200] + bytes(50) + whole[250:])
    size = int.from_bytes(whole[4:8], "little") + 2 + 12 + 4  # of the second tag
    tags = bytearray(whole)
    tags[size : size + 4] = b"\xff\xff\xff\x0f"  # more than the file has
    (tmp_path / "tags.tif").write_bytes(tags)
    code = """
import sys
from pathlib import Path
from common.errors import DataError
from common.images import decode_file
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decode_file(file, 8)
    except DataError as exc:
        print(exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "damaged.tif: damaged or unsupported" in done.stdout
