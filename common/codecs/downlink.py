"""How the change of the head is encoded on its way down, and added to what a client holds.

The server sends ``s * C(x)`` for the difference x between the new head and what clients hold; C is
a codec, and s minimises the error ``||x - s * C(x)||``. So whatever the codec does, clients come no
further from the head than they were; an unbiased codec alone may take them further. What is missing
is part of the next round's difference, so that errors do not add up. Where too much is missing, as
after a round that solved the head instead of improving it, the same round sends the rest likewise.

Gruntkowska, Tyurin, Richtarik: "EF21-P and Friends", arXiv 2209.15218. Differs from the paper: the
factor s, and the rest that is sent at once.
"""

from __future__ import annotations

import struct

import numpy as np

from common.codecs import decode_array
from common.codecs.codec import Codec
from common.errors import ReplyError
from common.seeding import Purpose, stream_state
from common.types import FloatArray, Layout

__all__ = ["add_change", "encode_change"]

_START = struct.Struct("<fI")  # of each part of a change: s, and the number of the codec's bytes
_MISSING = 0.25  # of the head's norm that may be missing after a change
_MOST_PARTS = 8


def encode_change(
    held: FloatArray, head: FloatArray, codec: Codec, seed: int, round_number: int
) -> bytes:
    """A change in its parts; no bytes if nothing changes.

    If the codec decodes what is not finite, so is what ``add_change`` returns.

    Args:
        held: float32 (K, d + 1), what clients hold.
        head: float32 (K, d + 1), what they shall hold, about; finite.
        codec: carries floats.
        seed: of the run.
        round_number: from 1.
    """
    parts: list[bytes] = []
    enough = _MISSING * _norm(head)
    for i in range(_MOST_PARTS):
        missing = head - held
        if not missing.any() or (parts and not _norm(missing) > enough):
            break
        state = stream_state(seed, Purpose.DOWNLINK, round_number, i)
        payload = codec.encode(missing, state)
        got = decode_array(codec, payload, Layout(missing.shape), state, "change")
        scale = _best_scale(missing, got.astype(np.float64))
        held = _sum(held, scale, got.astype(np.float32))
        parts.append(_START.pack(scale, len(payload)) + payload)
    return b"".join(parts)


def _norm(array: FloatArray) -> float:
    return float(np.sqrt(np.square(array, dtype=np.float64).sum()))


def _best_scale(wanted: FloatArray, got: FloatArray) -> np.float32:
    with np.errstate(all="ignore"):  # whoever adds the change checks what comes out
        power, product = (got * got).sum(), (got * wanted).sum()
        return np.float32(product / power if power else 0)


def _sum(held: FloatArray, scale: np.float32, array: FloatArray) -> FloatArray:
    with np.errstate(all="ignore"):  # the bytes may stand for any numbers
        return held + scale * array


def add_change(
    held: FloatArray, change: bytes, codec: Codec, seed: int, round_number: int
) -> FloatArray:
    """What a client holds after a change.

    Args:
        held: float32 (K, d + 1), what it holds before; not changed.
        change: what ``encode_change`` returns; not to be trusted.
        codec: as for ``encode_change``.
        seed: likewise.
        round_number: likewise.

    Raises:
        ReplyError: the bytes are not this codec's.
    """
    for i, (scale, payload) in enumerate(_parts(change)):
        state = stream_state(seed, Purpose.DOWNLINK, round_number, i)
        array = decode_array(codec, payload, Layout(held.shape), state, "change")
        held = _sum(held, np.float32(scale), array.astype(np.float32))
    return held


def _parts(change: bytes) -> list[tuple[float, bytes]]:
    parts: list[tuple[float, bytes]] = []
    while change:
        start, rest = change[: _START.size], change[_START.size :]
        scale, length = _START.unpack(start) if len(start) == _START.size else (0.0, 0)
        if len(start) < _START.size or length > len(rest) or len(parts) == _MOST_PARTS:
            raise ReplyError(f"change cannot be read from byte {len(change)} before its end")
        parts.append((scale, rest[:length]))
        change = rest[length:]
    return parts
