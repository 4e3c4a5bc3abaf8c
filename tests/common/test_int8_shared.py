"""The codec whose numbers add up, and the zstd frames behind it and others."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.codecs import CODECS, decode_array, find_codec
from common.codecs.zstd import deflated, inflated, planes, unplaned
from common.errors import ProtocolError, ReplyError
from common.types import Layout

STEP = 0.001
CODEC = find_codec(f"int8-shared:{STEP!r}")


def there_and_back(array: np.ndarray, seed: int = 3, step: float = STEP) -> np.ndarray:
    codec = find_codec(f"int8-shared:{step!r}")
    return decode_array(codec, codec.encode(array, seed), Layout(array.shape), seed, "delta")


def test_a_step_has_one_name_and_the_kind_is_known_without_one() -> None:
    assert find_codec("int8-shared:0.001") is CODEC
    assert CODEC.name == "int8-shared:0.001"
    assert find_codec("int8-shared") is CODECS["int8-shared"]
    for codec in (CODEC, CODECS["int8-shared"]):
        assert codec.adds_up
        assert (codec.carries, codec.sized, codec.transparent, codec.through) == (
            "f", False, False, None,
        )  # fmt: skip
    for text in ("", "x", "0", "-1.0", "nan", "inf", "1e-31", "1e31"):
        with pytest.raises(ProtocolError, match=f"int8-shared:{text} has no step: expected a numb"):
            find_codec(f"int8-shared:{text}")
    for text, name in (("1e-3", "0.001"), ("1", "1.0"), (" 0.5", "0.5"), ("1_0.0", "10.0")):
        with pytest.raises(ProtocolError, match=f"must be written int8-shared:{name}"):
            find_codec(f"int8-shared:{text}")
    with pytest.raises(ProtocolError, match="int8-shared needs a step, for example"):
        find_codec("int8-shared").encode(np.zeros(1, np.float32), 0)
    with pytest.raises(ProtocolError, match="unknown codec 'drive:1', did you mean drive"):
        find_codec("drive:1")


@given(
    arrays(np.float32, (3, 5), elements=st.floats(-1, 1, width=32)),
    st.sampled_from((1e-30, 1e-3, 1.0, 1e25)),
    st.integers(0, 9),
    st.integers(0, 2**64 - 1),
)
@settings(deadline=None)
def test_what_arrives_is_one_of_the_two_next_multiples_and_none_is_cut_off(
    array: np.ndarray, step: float, decades: int, seed: int
) -> None:
    array = (array * step * 10.0**decades).astype(np.float32)
    got = there_and_back(array, seed, step).astype(np.float64)
    # One rounding to float32 beside the step.
    assert (np.abs(got - array) <= step * (1 + 1e-9) + np.abs(array) * 1e-7).all()
    codes = np.rint(got / step)
    np.testing.assert_array_equal((codes * step).astype(np.float32), got)


def test_the_sum_of_clients_is_a_whole_number_of_steps() -> None:
    rng = np.random.default_rng(0)
    deltas = rng.standard_normal((20, 4, 9)).astype(np.float32)
    # A step that is a power of two makes every multiple exact.
    total = sum(there_and_back(delta, i, 2.0**-10) for i, delta in enumerate(deltas))
    np.testing.assert_array_equal(total * 1024, np.rint(total * 1024))


def test_the_mean_over_seeds_is_the_array() -> None:
    array = np.array([[3, -0.3, 0], [1e-4, 200.0004, -0.99]], np.float32)
    total = np.zeros(array.shape)
    wide = np.tile(array.reshape(-1, 1), 10_000)  # other positions are other draws
    total = there_and_back(wide, step=0.5).mean(axis=1, dtype=np.float64).reshape(array.shape)
    assert np.linalg.norm(total - array) < 0.01 * np.linalg.norm(array)
    assert np.abs(total - array).max() < 5 * 0.25 / 100  # 5 sigma of each


@pytest.mark.parametrize(("top", "size"), [(127, 1), (128, 2), (32_767, 2), (32_768, 4)])
def test_the_largest_number_chooses_the_size(top: int, size: int) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-top, top, 5000, endpoint=True).astype(np.float32)
    array[0] = top
    payload = find_codec("int8-shared:1.0").encode(array, 0)
    np.testing.assert_array_equal(there_and_back(array, step=1.0), array)
    assert len(payload) <= 5000 * size + 1
    small = find_codec("int8-shared:1.0").encode(np.sign(array), 0)
    assert len(small) < 5000 / 3  # zstd


def test_numbers_beyond_the_largest_integer_are_refused() -> None:
    with pytest.raises(ReplyError, match=r"holds 1e\+08, more than 2\^31 steps of 0.001"):
        CODEC.encode(np.array([1, -1e8], np.float32), 0)


def test_truncated_longer_and_foreign_bytes_are_refused() -> None:
    array = np.random.default_rng(0).standard_normal((10, 256)).astype(np.float32) / 100
    layout, payload = Layout(array.shape), CODEC.encode(array, 0)
    assert payload[0] == 1
    for wrong in (b"", payload[:-1], payload[:7], payload + b"\0", payload[1:], b"\0" + payload):
        with pytest.raises(ReplyError, match="^delta (holds|is no zstd|begins)"):
            decode_array(CODEC, wrong, layout, 0, "delta")
    with pytest.raises(ReplyError, match="delta holds 3 bytes, expected 2560 or 5120 or 10240"):
        decode_array(CODEC, deflated(b"abc"), layout, 0, "delta")


@pytest.mark.parametrize("position", range(1, 60, 3))
def test_a_flipped_bit_in_a_frame_is_found(position: int) -> None:
    payload = bytearray(CODEC.encode(np.tile(np.float32(0.01), 4000), 0))
    payload[position % len(payload)] ^= 16
    with pytest.raises(ReplyError):
        decode_array(CODEC, bytes(payload), Layout((4000,)), 0, "delta")


def bomb(claim: int | None) -> bytes:
    """100 MB in a few bytes that claim another length, or none."""
    packer = zstandard.ZstdCompressor(write_content_size=claim is not None)
    frame = bytearray(packer.compress(bytes(100_000_000)))
    if claim is not None:
        at = frame.index((100_000_000).to_bytes(4, "little"))
        frame[at : at + 4] = claim.to_bytes(4, "little")
    return b"\1" + bytes(frame)


@pytest.mark.parametrize("claim", [None, 100_000_000, 6, 2**32 - 1])
def test_a_frame_takes_no_more_memory_than_it_may(claim: int | None) -> None:
    payload = bomb(claim)
    assert len(payload) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(ReplyError):
            inflated(payload, (3, 6, 12))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_that_keeps_its_length_to_itself_is_told_as_such() -> None:
    with pytest.raises(ReplyError, match="does not say how long its content is"):
        inflated(bomb(None), (3, 6, 12))


@given(st.binary(max_size=300), st.integers(0, 2))
def test_bytes_come_back_whatever_they_are(body: bytes, repeat: int) -> None:
    body *= 20**repeat
    assert inflated(deflated(body), (len(body),)) == body


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u8"])
def test_planes_come_back_in_order(dtype: str) -> None:
    bounds = np.iinfo(dtype)
    array = np.random.default_rng(0).integers(bounds.min, bounds.max, 50, dtype, endpoint=True)
    body = planes(array)
    assert body[:50] == array.astype(f"<{dtype}").view(np.uint8).reshape(50, -1)[:, 0].tobytes()
    np.testing.assert_array_equal(unplaned(body, dtype), array)
