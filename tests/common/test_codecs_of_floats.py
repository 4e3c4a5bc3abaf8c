"""Codecs whose length follows from the layout: int8, drive, eden."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from common.codecs import CODECS, decode_array, find_codec
from common.errors import ReplyError
from common.types import Layout

SIZED = [name for name, codec in CODECS.items() if codec.sized]
ROTATED = ("drive", "eden")
BITS = {"int8": 8, "drive": 1, "eden": 2}
SEEDS = np.arange(10_000, dtype=np.uint64)
NORMAL = st.floats(-1, 1, width=32, allow_subnormal=False)


def example() -> np.ndarray:
    """Numbers that any language can make: a stair with both signs and a zero row."""
    array = ((np.arange(30) * 7 % 31 - 15) / np.float32(8)).astype(np.float32).reshape(3, 10)
    array[1] = 0
    return array


def there_and_back(name: str, array: np.ndarray, seed: int = 3) -> np.ndarray:
    codec = find_codec(name)
    payload = codec.encode(array, seed)
    return decode_array(codec, payload, Layout(array.shape), seed, "delta")


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("int8", "7c10c12b306f7346"),
        ("drive", "ff537112621a6d82"),
        ("eden", "683dcfd886d53697"),
    ],
)
def test_the_bytes_of_a_seed_are_the_same_for_ever(name: str, digest: str) -> None:
    payload = find_codec(name).encode(example(), 2**63 + 12345)
    assert hashlib.sha256(payload).hexdigest()[:16] == digest


MASK = 2**64 - 1


def word(state: int, index: int) -> int:
    z = (state + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def plain_drive(row: np.ndarray, seed: int, r: int) -> tuple[float, bytes]:
    """One row's scale and bits, number by number, as another language would."""
    length = max(64, 1 << (len(row) - 1).bit_length())
    _, exponent = math.frexp(float(np.abs(row).max()))
    x = [np.float32(float(number) * 2.0**-exponent) for number in row]
    x += [np.float32(0)] * (length - len(row))
    squares = [float(number) ** 2 for number in x]
    for turn in range({64: 5, 128: 5, 256: 4}.get(length, 3)):
        for i in range(length):
            if word(word(seed, r), turn * length // 64 + i // 64) >> i % 64 & 1:
                x[i] = -x[i]
        step = 1
        while step < length:
            for i in range(length):
                if not i & step:
                    x[i], x[i + step] = x[i] + x[i + step], x[i] - x[i + step]
            step *= 2
    sizes = [abs(float(number)) for number in x]
    while len(sizes) > 1:
        half = len(sizes) // 2
        sizes = [sizes[i] + sizes[i + half] for i in range(half)]
        squares = [squares[i] + squares[i + half] for i in range(half)]
    bits = sum(1 << i for i in range(length) if x[i] < 0)
    scale = float(np.float32(squares[0] / sizes[0])) * 2.0**exponent if squares[0] else 0.0
    return scale, bits.to_bytes(length // 8, "little")


def plain_int8(rows: np.ndarray, seed: int) -> bytes:
    codes = []
    for i, number in enumerate(rows.reshape(-1)):
        scale = np.abs(rows[i // rows.shape[1]]).max() / np.float32(127)
        x = number / scale if scale else np.float32(0)
        draw = np.float32((word(seed, i) >> 40) / 2**24)
        down = np.floor(x)
        codes.append(int(np.clip(down + (draw < x - down), -127, 127)))
    scales = np.abs(rows).max(axis=1) / np.float32(127)
    return scales.astype("<f4").tobytes() + np.array(codes, np.int8).tobytes()


@pytest.mark.parametrize("width", [10, 70, 200, 300])
def test_other_languages_get_the_same_bytes_number_by_number(width: int) -> None:
    rows = np.tile(example() * np.float32(1e-7), 30)[:, :width]
    seed = 2**64 - 5
    plain = [plain_drive(row, seed, r) for r, row in enumerate(rows)]
    want = np.array([scale for scale, _ in plain], "<f4").tobytes() + b"".join(
        bits for _, bits in plain
    )
    assert find_codec("drive").encode(rows, seed) == want
    assert find_codec("int8").encode(rows, seed) == plain_int8(rows, seed)


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize(
    ("shape", "rows", "padded"),
    [((10, 256), 10, 256), ((1000, 65), 1000, 128), ((3,), 1, 64), ((2, 3, 1281), 6, 2048)],
)
def test_a_payload_is_a_scale_and_the_bits_of_each_row(
    name: str, shape: tuple[int, ...], rows: int, padded: int
) -> None:
    width = padded if name in ROTATED else shape[-1]
    payload = find_codec(name).encode(np.ones(shape, np.float32), 0)
    assert len(payload) == rows * (4 + width * BITS[name] // 8)


@pytest.mark.parametrize("name", SIZED)
@given(
    array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9).flatmap(
        lambda shape: arrays(np.float32, (3, *shape), elements=NORMAL)
    ),
    st.integers(-30, 30),
    st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_many_clients_at_once_get_the_bits_that_each_would(
    name: str, array: np.ndarray, exponent: int, seeds: list[int]
) -> None:
    codec = find_codec(name)
    array = (array * 10.0**exponent).astype(np.float32)
    before = array.copy()
    through = codec.through
    assert through is not None
    got = through(array, np.array(seeds, np.uint64))
    for one, decoded, seed in zip(array, got, seeds, strict=True):
        assert there_and_back(name, one, seed).tobytes() == decoded.tobytes()
    assert got.shape == array.shape
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("name", SIZED)
def test_clients_of_several_blocks_get_the_bits_that_each_would(name: str) -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((40, 10, 300)).astype(np.float32)
    through = find_codec(name).through
    assert through is not None
    got = through(array, SEEDS[:40])
    for client in (0, 1, 13, 39):
        np.testing.assert_array_equal(there_and_back(name, array[client], client), got[client])


@pytest.mark.parametrize("name", SIZED)
@given(
    arrays(np.float32, (2, 40), elements=NORMAL).filter(lambda a: np.abs(a).max(axis=1).min() > 0),
    st.integers(-30, 30),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=40, deadline=None)
def test_a_row_keeps_its_direction_at_every_scale(
    name: str, array: np.ndarray, exponent: int, seed: int
) -> None:
    array = (array / np.abs(array).max(axis=1, keepdims=True) * 10.0**exponent).astype(np.float32)
    x, got = array.astype(np.float64), there_and_back(name, array, seed).astype(np.float64)
    if name == "int8":
        assert (np.abs(got - x).max(axis=1) <= np.abs(x).max(axis=1) / 127 * (1 + 1e-5)).all()
    else:  # what is lost is at a right angle to the row
        np.testing.assert_allclose((x * got).sum(axis=1), (x * x).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("name", SIZED)
def test_powers_of_two_change_only_the_scales(name: str) -> None:
    array, codec = example()[[0, 2]], find_codec(name)
    once, thousand = codec.encode(array, 5), codec.encode(array * 1024, 5)
    assert once[8:] == thousand[8:]
    assert (1024 * np.frombuffer(once[:8], "<f4") == np.frombuffer(thousand[:8], "<f4")).all()


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("tiny", [0.0, 1e-45, 3e-43])
def test_rows_of_zeros_stay_zero_and_the_smallest_numbers_are_no_trouble(
    name: str, tiny: float
) -> None:
    array = np.zeros((3, 70), np.float32)
    array[1, 2] = tiny
    got = there_and_back(name, array)
    assert (got[[0, 2]] == 0).all()
    assert np.abs(got).max() <= tiny


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize(
    "row",
    [
        [1], [1, -0.5], [1, 0.999], [1, 0.999, *[0] * 98], [1, 0.999, *[0] * 198],
        [1, 0.999, *[0] * 298], [0] * 99 + [-3], [1] * 256, range(-50, 51),
    ],
    ids=["one", "two", "nearly-equal", "of-100", "of-200", "of-300", "single", "constant", "stair"],
)  # fmt: skip
def test_the_mean_over_seeds_is_the_row(name: str, row: list[float]) -> None:
    x = np.asarray(row, np.float32)
    through = find_codec(name).through
    assert through is not None
    mean = through(np.broadcast_to(x, (len(SEEDS), len(x))), SEEDS).mean(axis=0, dtype=np.float64)
    assert np.linalg.norm(mean - x) < 0.01 * np.linalg.norm(x)


@pytest.mark.parametrize("name", SIZED)
def test_the_error_of_a_normal_row_is_that_of_the_paper(name: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((100, 256)).astype(np.float32)
    error = np.square(there_and_back(name, x) - x).sum() / np.square(x).sum()
    # pi / 2 - 1 for one bit; 1 / (1 - 0.1175) - 1 for the two of Lloyd and Max; a step of uniform
    # noise, rounded at random, has the variance 1/6.
    steps = np.square(np.abs(x).max(axis=1) / 127).mean() / 6
    assert error == pytest.approx({"int8": steps, "drive": 0.571, "eden": 0.1331}[name], rel=0.05)


@pytest.mark.parametrize("name", SIZED)
def test_truncated_or_longer_bytes_are_refused(name: str) -> None:
    codec, layout = find_codec(name), Layout((3, 10))
    payload = codec.encode(example(), 1)
    for wrong in (b"", payload[:-1], payload + b"\0", bytes(4_000_000)):
        want = f"delta takes {len(wrong)} bytes, expected {len(payload)}"
        with pytest.raises(ReplyError, match=want):
            decode_array(codec, wrong, layout, 1, "delta")


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_a_scale_that_no_encoder_writes_is_refused(name: str, scale: float) -> None:
    codec = find_codec(name)
    payload = codec.encode(example(), 1)
    payload = np.array([scale], "<f4").tobytes() + payload[4:]
    with pytest.raises(ReplyError, match=f"delta has the scale {scale:g}, expected a number from"):
        decode_array(codec, payload, Layout((3, 10)), 1, "delta")


def test_a_code_that_int8_does_not_write_is_refused() -> None:
    payload = find_codec("int8").encode(example(), 1)[:-1] + b"\x80"
    with pytest.raises(ReplyError, match="delta holds the code -128, expected at least -127"):
        decode_array(find_codec("int8"), payload, Layout((3, 10)), 1, "delta")


@pytest.mark.parametrize("name", SIZED)
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_flipped_bits_give_numbers_or_a_refusal(name: str, data: st.DataObject) -> None:
    codec = find_codec(name)
    payload = bytearray(codec.encode(example(), 1))
    for at in data.draw(st.lists(st.integers(0, 8 * len(payload) - 1), min_size=1, max_size=9)):
        payload[at // 8] ^= 1 << at % 8
    try:
        got = decode_array(codec, bytes(payload), Layout((3, 10)), 1, "delta")
    except ReplyError:
        return
    assert got.dtype == np.float32
    assert not np.isnan(got).any()
