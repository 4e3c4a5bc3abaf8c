"""The codecs of the C++ device: the bytes and the bits of common.codecs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from common.codecs import decode_array, find_codec
from common.codecs.downlink import add_change, encode_change
from common.codecs.uplink import Uplink
from common.errors import ReplyError
from common.types import ClientPlan, Layout

pytestmark = pytest.mark.wide

FOLDER = Path(__file__).parent
SOURCE = FOLDER.parent.parent / "client" / "native"
CODECS = ("none", "int8", "drive")

_Array = npt.NDArray[np.float32]


class RefusedError(Exception):
    """The text of an exception from C++."""


class Native:
    """codecs.cpp, as a library."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        u64, i64, text = ctypes.c_uint64, ctypes.c_int64, ctypes.c_char_p
        floats, out = ctypes.c_void_p, ctypes.c_void_p
        self._encode, self._decode = library.encode, library.decode
        self._encode.argtypes = [text, floats, u64, u64, u64, out]
        self._encode.restype = i64
        self._decode.argtypes = [text, text, u64, out, u64, u64, u64]
        self._decode.restype = ctypes.c_bool
        self._change = library.add_change
        self._change.argtypes = [text, text, u64, out, u64, u64, i64, i64]
        self._change.restype = ctypes.c_bool
        self._state, self._why = library.uplink_state, library.why
        self._state.argtypes, self._state.restype = [i64, i64, i64], u64
        self._why.restype = text

    def encode(self, codec: str, array: _Array, seed: int) -> bytes:
        out = np.empty(1024 + 8 * array.size, np.uint8)
        size = self._encode(codec.encode(), array.ctypes.data, *array.shape, seed, out.ctypes.data)
        if size < 0:
            raise RefusedError(self._why().decode())
        return out[:size].tobytes()

    def decode(self, codec: str, payload: bytes, shape: tuple[int, int], seed: int) -> _Array:
        array = np.full(shape, np.nan, np.float32)
        size = len(payload)
        if not self._decode(codec.encode(), payload, size, array.ctypes.data, *shape, seed):
            raise RefusedError(self._why().decode())
        return array

    def add_change(
        self, codec: str, held: _Array, change: bytes, seed: int, round_number: int
    ) -> _Array:
        array, size = held.copy(), len(change)
        start = codec.encode(), change, size, array.ctypes.data
        if not self._change(*start, *held.shape, seed, round_number):
            raise RefusedError(self._why().decode())
        return array

    def uplink_state(self, seed: int, round_number: int, client: int) -> int:
        return int(self._state(seed, round_number, client))


def built(folder: Path, *flags: str) -> Native:
    if shutil.which("c++") is None:
        pytest.skip("c++ is not installed: apt-get install g++")
    library = folder / f"codecs{''.join(flags)}.so"
    command = [
        "c++", "-std=c++20", "-shared", "-fPIC", "-ffp-contract=off", *flags, f"-I{SOURCE}",
        SOURCE / "codecs.cpp", FOLDER / "codecs_probe.cpp", "-o", library,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Native(library)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return built(tmp_path_factory.mktemp("codecs"), "-O1")


def arrays(count: int) -> Iterator[_Array]:
    """Arrays (K, w) of all kinds: of few and many columns, of scales from 1e-30 to 1e30."""
    random = np.random.default_rng(0)
    for i in range(count):
        shape = (int(random.integers(1, 12)), int(np.exp(random.uniform(0, np.log(1400)))))
        array = random.normal(size=shape) * 10 ** random.uniform(-30, 30, (shape[0], 1))
        if i % 4 == 1:
            array[random.random(shape) < 0.9] = 0
        elif i % 4 == 2:
            array[0] = 0
        elif i % 4 == 3:  # one number outweighs the others
            array[:, -1] *= 1e6
        yield array.astype(np.float32)


def edges() -> Iterator[_Array]:
    """Numbers at both ends of float32, zeros with a sign, and rows longer than exact sums."""
    largest, smallest = np.finfo(np.float32).max, np.float32(1e-45)
    rows = [
        [smallest, -smallest, 0.0], [largest, smallest, -largest], [-0.0, 0.0, -0.0],
        [3e-39, 1e-45, -2e-42], [127.0, 0.5, -126.5], [1.0, 1.0, 1.0],
    ]  # fmt: skip
    yield np.array(rows, np.float32)
    yield np.random.default_rng(1).normal(size=(2, 9000)).astype(np.float32)
    yield np.zeros((3, 64), np.float32)


def assert_equal_bits(found: _Array, expected: _Array) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def assert_same(native: Native, codec: str, array: _Array, seed: int) -> None:
    python = find_codec(codec)
    payload = python.encode(array, seed)
    assert native.encode(codec, array, seed) == payload
    expected = decode_array(python, payload, Layout(array.shape), seed, "delta")
    assert_equal_bits(native.decode(codec, payload, array.shape, seed), expected)


@pytest.mark.parametrize("codec", CODECS)
def test_payloads_and_decoded_arrays_have_the_bits_of_python(native, codec):
    for i, array in enumerate([*arrays(200), *edges()]):
        assert_same(native, codec, array, i * 0x9E3779B97F4A7C15 % 2**64)


@pytest.mark.parametrize("codec", CODECS)
def test_a_heads_change_leads_to_the_bits_of_python(native, codec):
    assert_same_heads(native, codec)


def assert_same_heads(native: Native, codec: str) -> None:
    python, random = find_codec(codec), np.random.default_rng(4)
    for seed in range(20):
        held = random.normal(size=(3, 257)).astype(np.float32)
        head = held * random.normal(size=held.shape).astype(np.float32)
        change = encode_change(held, head, python, seed, 7)
        expected = add_change(held, change, python, seed, 7)
        assert_equal_bits(native.add_change(codec, held, change, seed, 7), expected)
    assert codec != "drive" or len(change) > 2 * (8 + 3 * (4 + 64))  # in several parts


def test_no_bytes_change_nothing_and_what_is_cut_off_is_refused(native):
    held, head = np.ones((2, 70), np.float32), np.full((2, 70), 3, np.float32)
    assert_equal_bits(native.add_change("drive", held, b"", 0, 1), held)
    change = encode_change(held, head, find_codec("int8"), 0, 1)
    for damaged in (change[:5], change[:-1], change + b"abc", change * 9):
        with pytest.raises(RefusedError) as refused:
            native.add_change("int8", held, damaged, 0, 1)
        with pytest.raises(ReplyError) as expected:
            add_change(held, damaged, find_codec("int8"), 0, 1)
        assert str(expected.value) == f"change {refused.value}"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-O0",), ("-O3", "-march=native", "-funroll-loops")])
def test_the_compilers_effort_changes_no_bit(flags, tmp_path):
    """With the processor's own instructions it could join a product and a sum."""
    native = built(tmp_path, *flags)
    for codec in CODECS:
        for i, array in enumerate([*arrays(50), *edges()]):
            assert_same(native, codec, array, i)
        assert_same_heads(native, codec)


@pytest.mark.parametrize("codec", ["int8", "drive"])
def test_another_seed_is_another_payload_and_the_wrong_one_decodes_to_something_else(native, codec):
    array = np.random.default_rng(2).normal(size=(3, 70)).astype(np.float32)
    payload = native.encode(codec, array, 1)
    assert native.encode(codec, array, 2) != payload
    if codec == "drive":
        error = native.decode(codec, payload, array.shape, 2) - array
        assert np.square(error).sum() > np.square(array).sum()


@pytest.mark.parametrize("names", [(0, 1, 0), (3, 7, 11), (2**31 - 1, 120, 10_000_000)])
def test_the_stream_of_a_client_is_the_servers(native, names):
    seed, round_number, client = names
    uplink = Uplink(ClientPlan(fields=("delta",), uplink="drive"), 3, 69, seed, round_number)
    array = np.random.default_rng(3).normal(size=(3, 70)).astype(np.float32)
    payload = native.encode("drive", array, native.uplink_state(*names))
    assert uplink.encode(client, {"delta": array}) == {"delta": payload}


@pytest.mark.parametrize("codec", CODECS)
def test_a_payload_of_another_length_is_refused_in_the_same_words(native, codec):
    array = np.ones((2, 70), np.float32)
    payload = native.encode(codec, array, 0)
    for cut in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(RefusedError) as refused:
            native.decode(codec, cut, array.shape, 0)
        with pytest.raises(ReplyError, match=f"takes {len(cut)} bytes"):
            decode_array(find_codec(codec), cut, Layout(array.shape), 0, "delta")
        assert f"takes {len(cut)} bytes, expected {len(payload)}" in str(refused.value)


@pytest.mark.parametrize("codec", ["int8", "drive"])
@pytest.mark.parametrize("scale", [-1.0, np.nan, np.inf])
def test_a_scale_that_no_row_has_is_refused_on_both_sides(native, codec, scale):
    array = np.ones((2, 70), np.float32)
    payload = np.float32(scale).tobytes() + native.encode(codec, array, 0)[4:]
    with pytest.raises(RefusedError, match="has the scale"):
        native.decode(codec, payload, array.shape, 0)
    with pytest.raises(ReplyError, match="has the scale"):
        decode_array(find_codec(codec), payload, Layout(array.shape), 0, "delta")


def test_a_code_that_no_number_has_is_refused_on_both_sides(native):
    payload = native.encode("int8", np.ones((1, 4), np.float32), 0)[:-1] + b"\x80"
    with pytest.raises(RefusedError, match="holds the code -128"):
        native.decode("int8", payload, (1, 4), 0)
    with pytest.raises(ReplyError, match="holds the code -128"):
        decode_array(find_codec("int8"), payload, Layout((1, 4)), 0, "delta")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", ["int8", "drive"])
def test_what_is_not_finite_is_not_sent(native, codec, value):
    array = np.ones((2, 5), np.float32)
    array[1, 3] = value
    with pytest.raises(RefusedError, match="not finite"):
        native.encode(codec, array, 0)


def test_an_unknown_codec_is_told_with_the_known_ones(native):
    with pytest.raises(RefusedError, match="no such codec: zip, expected one of none, int8, drive"):
        native.encode("zip", np.ones((1, 1), np.float32), 0)
