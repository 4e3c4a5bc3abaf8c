"""Bytes made smaller where that pays. The package is only imported once a codec needs it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from common.errors import ReplyError

__all__ = ["deflated", "inflated", "planes", "unplaned"]

_PLAIN, _ZSTD = b"\0", b"\1"
_LEVEL = 3


def deflated(body: bytes) -> bytes:
    """A byte that says how, then the body itself or its zstd frame, whichever is shorter."""
    import zstandard

    frame = zstandard.ZstdCompressor(_LEVEL, write_checksum=True).compress(body)
    return _ZSTD + frame if len(frame) < len(body) else _PLAIN + body


def inflated(payload: bytes, lengths: Collection[int]) -> bytes:
    """The reverse of ``deflated``, from untrusted bytes.

    Args:
        payload: the bytes that arrived.
        lengths: what the body may have; nothing longer is ever made.

    Raises:
        ReplyError: the bytes are not what ``deflated`` writes, or the body has another length.
    """
    how, body = payload[:1], payload[1:]
    if how == _ZSTD:
        return _unpacked(body, lengths)
    if how != _PLAIN:
        raise ReplyError(f"begins with {how.hex() or 'nothing'}, expected 00 or 01")
    _check(len(body), lengths)
    return body


def _unpacked(frame: bytes, lengths: Collection[int]) -> bytes:
    import zstandard

    try:
        # Memory is taken for what the frame claims, so this comes first.
        length = zstandard.frame_content_size(frame)
        if length < 0:
            raise ReplyError("is a zstd frame that does not say how long its content is")
        _check(length, lengths)
        body: bytes = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise ReplyError(f"is no zstd frame: {exc}") from exc
    _check(len(body), lengths)
    return body


def _check(length: int, lengths: Collection[int]) -> None:
    if length not in lengths:
        raise ReplyError(f"holds {length} bytes, expected {' or '.join(map(str, sorted(lengths)))}")


def planes(array: npt.NDArray[np.integer]) -> bytes:
    """Integers as all lowest bytes, then the next ones: high bytes are alike and pack better."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1, 1).view(np.uint8).T.tobytes()


def unplaned(body: bytes, dtype: str) -> npt.NDArray[np.integer]:
    """The reverse of ``planes``: a one-dimensional array of this dtype."""
    columns = np.frombuffer(body, np.uint8).reshape(np.dtype(dtype).itemsize, -1).T
    array: npt.NDArray[np.integer] = np.ascontiguousarray(columns).view(f"<{dtype}")[:, 0]
    return array.astype(dtype, copy=False)
