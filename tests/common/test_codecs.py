"""The codec seam: the identity codec, and what any other is held to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from common.codecs import CODECS, NONE, Codec, decode_array, find_codec
from common.codecs.uplink import Uplink, decode_sum, encode_sum
from common.errors import ProtocolError, ReplyError
from common.types import ClientPlan, Layout

SHAPES = array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5)
ROUND = {"num_classes": 2, "num_features": 3, "seed": 7, "round_number": 4}


@given(
    st.sampled_from(["<f4", "<u4", "<u8", ">f4", ">u8"]).flatmap(
        lambda dtype: arrays(np.dtype(dtype), SHAPES)
    )
)
def test_without_a_codec_every_bit_comes_back_in_little_endian_order(array: np.ndarray) -> None:
    payload = NONE.encode(array, 0)
    assert len(payload) == array.nbytes
    kind = "f" if array.dtype.kind == "f" else "u"
    got = NONE.decode(payload, Layout(array.shape, kind), 1)
    assert got.dtype == array.dtype.newbyteorder("<")
    assert got.tobytes() == array.astype(got.dtype).tobytes()


@pytest.mark.parametrize("length", [0, 1, 20, 28, 48, 4_000_000])
def test_bytes_of_another_length_are_refused_with_both(length: int) -> None:
    with pytest.raises(ReplyError, match=f"delta takes {length} bytes, expected 24"):
        decode_array(NONE, bytes(length), Layout((2, 3)), 0, "delta")
    if length != 48:
        with pytest.raises(ReplyError, match=f"gram takes {length} bytes, expected 24 or 48"):
            decode_array(NONE, bytes(length), Layout((6,), "u"), 0, "gram")


def test_an_unknown_codec_is_named_with_the_nearest() -> None:
    assert find_codec("none") is NONE
    with pytest.raises(ProtocolError, match=r"unknown codec 'nine', did you mean none\?"):
        find_codec("nine")


def raises(*_: object) -> np.ndarray:
    raise ValueError("as zlib does on foreign bytes")


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (raises, "delta cannot be decoded as odd: ValueError: as zlib does on fo"),
        (lambda *_: np.zeros((3, 2), np.float32), r"delta decodes to float32 \(3, 2\), expected f"),
        (lambda *_: np.zeros((2, 3), np.int32), "delta decodes to int32"),
    ],
)
def test_whatever_a_codec_does_with_foreign_bytes_it_is_that_clients_trouble(
    decode: object, message: str
) -> None:
    odd = Codec("odd", lambda array, _seed: array.tobytes(), decode)  # type: ignore[arg-type]
    with pytest.raises(ReplyError, match=message):
        decode_array(odd, b"x", Layout((2, 3)), 0, "delta")


def test_each_field_of_each_client_and_round_has_a_seed_that_both_sides_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []

    def encode(array: np.ndarray, seed: int) -> bytes:
        seeds.append(seed)
        return array.tobytes()

    def decode(payload: bytes, layout: Layout, seed: int) -> np.ndarray:
        seeds.remove(seed)  # it is that of an encoding
        return NONE.decode(payload, layout, seed)

    monkeypatch.setitem(CODECS, "seeded", Codec("seeded", encode, decode))  # type: ignore[arg-type]
    plan = ClientPlan(fields=("delta", "control_delta", "fair_scale"), uplink="seeded")
    fields = {name: np.ones((2, 4), np.float32) for name in plan.fields[:2]}
    fields["fair_scale"] = np.ones(1, np.float32)
    payloads = []
    for number in (4, 5):
        uplink = Uplink(plan, **{**ROUND, "round_number": number})
        payloads += [(uplink, client, uplink.encode(client, fields)) for client in (0, 1)]
    assert len(set(seeds)) == len(seeds) == 8  # a number that divides travels as it is
    for uplink, client, payload in payloads:
        uplink.decode(client, payload)
    assert not seeds


def test_a_sum_travels_as_it_is_and_grows_as_it_must() -> None:
    total = {"moments": np.full((2, 4), 2**40, np.uint64), "gram": np.arange(10, dtype=np.uint32)}
    layouts = Uplink(ClientPlan(fields=("gram", "moments")), **ROUND).layouts
    got = decode_sum(encode_sum(total), layouts)
    for name, array in total.items():
        np.testing.assert_array_equal(got[name], array)


def test_lengths_are_those_of_what_is_encoded() -> None:
    uplink = Uplink(ClientPlan(fields=("gram", "moments")), **ROUND)
    for dtype in (np.uint32, np.uint64):
        fields = {"gram": np.ones(10, dtype), "moments": np.ones((2, 4), dtype)}
        encoded = uplink.encode(3, fields)
        assert dict(uplink.lengths(np.dtype(dtype).itemsize)) == {
            name: len(payload) for name, payload in encoded.items()
        }
