"""How arrays become bytes on their way: a codec is one file beside this one, and one row here."""

from __future__ import annotations

from collections.abc import Mapping

from common.codecs.codec import Array, Codec
from common.codecs.none import NONE
from common.errors import FedheadError, ProtocolError, ReplyError
from common.types import Layout
from common.words import unknown

__all__ = ["CODECS", "NONE", "Codec", "decode_array", "find_codec"]

CODECS: Mapping[str, Codec] = {codec.name: codec for codec in (NONE,)}


def find_codec(name: str) -> Codec:
    """The codec of this name.

    Raises:
        ProtocolError: there is none; names the nearest.
    """
    if name not in CODECS:
        raise ProtocolError(unknown("codec", name, CODECS))
    return CODECS[name]


def decode_array(codec: Codec, payload: bytes, layout: Layout, seed: int, what: str) -> Array:
    """One array, whatever the bytes are.

    Args:
        codec: that has written it.
        payload: as it came.
        layout: what it must be.
        seed: that it was written with.
        what: what the array is called.

    Raises:
        ReplyError: the bytes are not this codec's, or of another array.
    """
    try:
        array = codec.decode(payload, layout, seed)
    except FedheadError as exc:
        raise ReplyError(f"{what} {exc}") from exc
    except Exception as exc:
        # Foreign bytes raise many kinds; none of them may end a server.
        raise ReplyError(f"{what} cannot be decoded as {codec.name}") from exc
    if array.shape != layout.shape or array.dtype.kind != layout.kind:
        raise ReplyError(
            f"{what} decodes to {array.dtype} {array.shape}, expected {layout.kind} {layout.shape}"
        )
    return array
