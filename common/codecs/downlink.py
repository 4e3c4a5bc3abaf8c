"""How the change of the head is encoded on its way down, and added to what a client holds.

The server sends ``s * C(x)`` for the change x from what clients hold to the new head; C is a codec,
and s minimises the error ``||x - s * C(x)||``. So whatever the codec does, a change brings what
clients hold no further from the head than it was; an unbiased codec alone could. What is missing is
part of the next change, and errors do not add up.

Gruntkowska, Tyurin, Richtarik: "EF21-P and Friends", arXiv 2209.15218, with the factor s added.
"""

from __future__ import annotations

import numpy as np

from common.codecs import decode_array
from common.codecs.codec import Codec
from common.errors import ReplyError
from common.seeding import Purpose, stream_state
from common.types import FloatArray, Layout

__all__ = ["add_change", "change_seed", "encode_change"]

_SCALE = np.dtype("<f4")  # of s, which stands before the codec's bytes


def change_seed(seed: int, round_number: int) -> int:
    """The codec's seed for the change that a round sends.

    Args:
        seed: of the run.
        round_number: from 1.
    """
    return stream_state(seed, Purpose.DOWNLINK, round_number)


def encode_change(change: FloatArray, codec: Codec, seed: int) -> bytes:
    """A change as s and the codec's bytes; no bytes if nothing changes.

    If the codec decodes what is not finite, so is what ``add_change`` returns.

    Args:
        change: float32 (K, d + 1), finite.
        codec: carries floats.
        seed: see ``change_seed``.
    """
    if not change.any():
        return b""
    payload = codec.encode(change, seed)
    got = decode_array(codec, payload, Layout(change.shape), seed, "change").astype(np.float64)
    with np.errstate(invalid="ignore"):  # whoever adds the change checks what comes out
        power, product = (got * got).sum(), (got * change).sum()
        scale = product / power if power else power
    return scale.astype(_SCALE).tobytes() + payload


def add_change(held: FloatArray, payload: bytes, codec: Codec, seed: int) -> FloatArray:
    """What a client holds after a change.

    Args:
        held: float32 (K, d + 1), what it holds before; not changed.
        payload: what ``encode_change`` returns; not to be trusted.
        codec: as for ``encode_change``.
        seed: likewise.

    Raises:
        ReplyError: the bytes are not this codec's.
    """
    if not payload:
        return held
    if len(payload) < _SCALE.itemsize:
        raise ReplyError(f"change takes {len(payload)} bytes, which is no change")
    scale = np.frombuffer(payload, _SCALE, 1)[0]
    array = decode_array(codec, payload[_SCALE.itemsize :], Layout(held.shape), seed, "change")
    with np.errstate(all="ignore"):  # the bytes may stand for any numbers
        return held + np.float32(scale) * array.astype(np.float32)
