"""A message's content: its records, its arrays and their sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from safetensors.numpy import load, save

from common.errors import ProtocolError
from common.records import from_record, to_record

__all__ = ["Arrays", "Flat", "array_bytes", "config_of", "content_from", "content_id",
           "content_to", "pack", "payload_bytes", "payload_list", "unpack"]  # fmt: skip

Arrays = Mapping[str, npt.NDArray[np.generic]]


def payload_bytes(content: RecordDict) -> int:
    """Size of a message's serialized content."""
    return int(recorddict_to_proto(content).ByteSize())


def content_to(content: RecordDict) -> bytes:
    """A message's content as bytes, to hand it to another process or to keep it."""
    data: bytes = recorddict_to_proto(content).SerializeToString(deterministic=True)
    return data


def content_from(data: bytes) -> RecordDict:
    """The reverse of ``content_to``.

    Raises:
        ProtocolError: the bytes are no content.
    """
    try:
        return recorddict_from_proto(RecordDictProto.FromString(data))
    except Exception as exc:
        # As in ``unpack``: what comes from another process may raise anything.
        raise ProtocolError("a message's content cannot be read") from exc


def array_bytes(content: RecordDict) -> int:
    """Size of a reply's arrays as they arrived, before any of them is read."""
    stock = sum(len(a.data) for record in content.array_records.values() for a in record.values())
    return stock + sum(
        len(item)
        for record in content.config_records.values()
        for value in record.values()
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, bytes)
    )


def config_of(content: RecordDict, name: str) -> ConfigRecord:
    """The config record of this name.

    Raises:
        ProtocolError: there is none.
    """
    record = content.get(name)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError(f"record {name!r} is missing")
    return record


def payload_list(key: str, rows: object) -> tuple[bytes, ...]:
    """A record's list of payloads.

    Args:
        key: its key, for the error.
        rows: the value that arrived.

    Raises:
        ProtocolError: it is something else.
    """
    found = [row for row in rows if isinstance(row, bytes)] if isinstance(rows, list) else []
    if not isinstance(rows, list) or len(found) != len(rows):
        raise ProtocolError(f"{key} is no list of payloads")
    return tuple(found)


def pack(arrays: Arrays) -> bytes:
    """Named arrays as safetensors."""
    return save({key: np.ascontiguousarray(a) for key, a in arrays.items()})


def unpack(record: Mapping[str, Any], key: str) -> dict[str, npt.NDArray[Any]]:
    """The reverse of ``pack``.

    Raises:
        ProtocolError: the key is missing, or its value is not a safetensors payload.
    """
    if key not in record:
        raise ProtocolError(f"{key} is missing")
    try:
        return load(record[key])
    except Exception as exc:
        # Untrusted bytes may raise many kinds of exceptions. None of them may end a server.
        raise ProtocolError(f"{key!r} holds arrays that cannot be read") from exc


def content_id(arrays: Arrays) -> str:
    """Hex SHA-256 of named arrays; empty if there are none."""
    if not arrays:
        return ""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Flat:
    """A message with one record of plain values."""

    _record: ClassVar[str]

    def __init_subclass__(cls, record: str = "config") -> None:
        cls._record = record

    def write(self) -> RecordDict:
        return RecordDict({self._record: to_record(self)})

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        return from_record(cls, config_of(content, cls._record))
