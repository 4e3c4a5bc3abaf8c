"""Heads in messages: as Flower's arrays, as several named heads, or as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.codecs import NONE, decode_array
from common.errors import ProtocolError, ReplyError
from common.messages.content import config_of, pack, unpack
from common.types import FloatArray, Head, Layout

__all__ = ["decode_head", "encode_head", "read_head", "read_heads", "read_shape", "write_head",
           "write_heads"]  # fmt: skip

_Arrays = Mapping[str, npt.NDArray[np.generic]]


def _named(head: Head) -> dict[str, FloatArray]:
    return {"head.weight": head.weight, "head.bias": head.bias}


def _head(arrays: _Arrays) -> Head:
    if set(arrays) != {"head.weight", "head.bias"}:
        raise ProtocolError(f"arrays are {sorted(arrays)}, expected head.bias and head.weight")
    weight, bias = arrays["head.weight"], arrays["head.bias"]
    if weight.dtype.kind != "f" or bias.dtype.kind != "f":
        raise ProtocolError(f"head has dtypes {weight.dtype} and {bias.dtype}, expected floats")
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ProtocolError(f"head.weight is {weight.shape} and head.bias {bias.shape}")
    return Head(weight.astype(np.float32), bias.astype(np.float32))


def write_head(head: Head) -> ArrayRecord:
    """The head as Flower arrays, under the keys that a stock strategy averages."""
    return ArrayRecord({key: Array(np.ascontiguousarray(a)) for key, a in _named(head).items()})


def read_head(content: RecordDict) -> Head:
    """The reverse of write_head. A stock strategy's float64 sums become float32."""
    record = content.get("arrays")
    if not isinstance(record, ArrayRecord):
        raise ProtocolError("record 'arrays' is missing")
    try:
        arrays = {str(key): array.numpy() for key, array in record.items()}
    except Exception as exc:
        # numpy raises many kinds of exceptions on untrusted bytes.
        raise ProtocolError("record 'arrays' holds an array that cannot be read") from exc
    return _head(arrays)


def write_heads(heads: Mapping[str, Head]) -> RecordDict:
    """Several named heads in one reply."""
    packed = pack({name: head.matrix for name, head in heads.items()})
    return RecordDict({"report": ConfigRecord({"arrays": packed})})


def read_heads(content: RecordDict) -> dict[str, Head]:
    """The reverse of write_heads."""
    arrays = unpack(config_of(content, "report"), "arrays")
    return {name: Head.from_matrix(matrix) for name, matrix in arrays.items()}


def encode_head(head: Head) -> ConfigRecord:
    """The record that is the same for all nodes: the head's (K, d + 1) matrix and its shape."""
    return ConfigRecord(
        {"head": _encoded(head), "shape": [head.num_classes, head.num_features + 1]}
    )


@lru_cache(maxsize=1)  # all messages of a round have the same head
def _encoded(head: Head) -> bytes:
    return NONE.encode(head.matrix, 0)


def decode_head(shared: ConfigRecord) -> Head:
    """The reverse of encode_head.

    Raises:
        ProtocolError: a key is missing, or the bytes are not a head of this shape.
    """
    if "head" not in shared:
        raise ProtocolError("head is missing")
    payload, shape = shared["head"], read_shape(shared)
    if not isinstance(payload, bytes):
        raise ProtocolError(f"head is {type(payload).__name__}, expected bytes")
    try:
        matrix = decode_array(NONE, payload, Layout(shape), 0, "head")
    except ReplyError as exc:
        raise ProtocolError(str(exc)) from exc
    return Head.from_matrix(matrix.astype(np.float32))


def read_shape(shared: ConfigRecord) -> tuple[int, int]:
    """The shape (K, d + 1) that a record gives.

    Raises:
        ProtocolError: there is none, or it is not a head's.
    """
    if "shape" not in shared:
        raise ProtocolError("shape is missing")
    shape = shared["shape"]
    sides = shape if isinstance(shape, list) else []
    rows, width = (n if type(n) is int else 0 for n in (*sides, 0, 0)[:2])
    if len(sides) != 2 or rows < 1 or width < 2:
        raise ProtocolError(f"shape is {shape!r}, expected that of a head")
    return rows, width
