"""How arrays become bytes in messages. A codec is one file in this folder, and one row here."""

from __future__ import annotations

from collections.abc import Mapping

from common.codecs.codec import Array, Codec
from common.codecs.drive import DRIVE
from common.codecs.eden import EDEN
from common.codecs.gram_int8 import GRAM_INT8
from common.codecs.int8 import INT8
from common.codecs.int8_shared import INT8_SHARED, with_step
from common.codecs.none import NONE
from common.errors import FedheadError, ProtocolError, ReplyError
from common.types import Layout
from common.words import one_line, unknown

__all__ = ["CODECS", "NONE", "Codec", "decode_array", "find_codec"]

_MOST = 120  # characters of an exception

CODECS: Mapping[str, Codec] = {
    codec.name: codec for codec in (NONE, INT8, DRIVE, EDEN, INT8_SHARED, GRAM_INT8)
}


def find_codec(name: str) -> Codec:
    """The codec of this name.

    "int8-shared" takes a step behind a colon. Without one it is found, so that its attributes can
    be asked for, but it encodes nothing.

    Raises:
        ProtocolError: there is none; the error names the nearest. Or the step is no number.
    """
    kind, colon, step = name.partition(":")
    if colon and kind == INT8_SHARED.name:
        return with_step(step)
    if name not in CODECS:
        raise ProtocolError(unknown("codec", name, CODECS))
    return CODECS[name]


def decode_array(codec: Codec, payload: bytes, layout: Layout, seed: int, what: str) -> Array:
    """Decode one array from untrusted bytes.

    Args:
        codec: the codec that wrote it.
        payload: the bytes that arrived.
        layout: the layout that it must have.
        seed: the seed that it was written with.
        what: the array's name, for errors.

    Raises:
        ReplyError: the bytes are not this codec's, or the array has another layout.
    """
    try:
        array = codec.decode(payload, layout, seed)
    except FedheadError as exc:
        raise ReplyError(f"{what} {exc}") from exc
    except Exception as exc:
        # Untrusted bytes may raise many kinds of exceptions. None of them may end a server.
        # Their text helps the author of a codec; it may hold what a client sent.
        why = one_line(f"{type(exc).__name__}: {exc}", _MOST)
        raise ReplyError(f"{what} cannot be decoded as {codec.name}: {why}") from exc
    if array.shape != layout.shape or array.dtype.kind != layout.kind:
        raise ReplyError(
            f"{what} decodes to {array.dtype} {array.shape}, expected {layout.kind} {layout.shape}"
        )
    return array
