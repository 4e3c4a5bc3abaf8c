"""Conversion of flat frozen dataclasses to Flower's ConfigRecord and back, with checks.

Keys are the fields' names in kebab-case. A field may be bool, int, float, str, bytes, a Literal
of strings, a tuple of one such type, or another flat dataclass, whose fields join the record. Many
dataclasses of one kind travel as columns: for each field a list with their values. Where every
byte counts and all fields are numbers, they travel as the rows of one table.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
from flwr.app import ConfigRecord

from common.errors import ProtocolError

__all__ = ["from_columns", "from_record", "from_table", "optional", "table_row", "to_columns",
           "to_record", "to_table"]  # fmt: skip

T = TypeVar("T")

_OPTIONAL = "optional"


def optional(default: T) -> T:
    """A dataclass's field that is written only where it is not ``default``."""
    made: T = dataclasses.field(default=default, metadata={_OPTIONAL: True})
    return made


def _key(name: str) -> str:
    return name.replace("_", "-")


def to_record(value: Any, skip: tuple[str, ...] = ()) -> ConfigRecord:
    """A dataclass and the dataclasses in it as one record.

    Args:
        value: no two of its fields, at any depth, have the same name.
        skip: names of fields that are left out, at any depth.
    """
    record: dict[str, Any] = {}

    def put(key: str, item: Any) -> None:
        if key in record:
            raise ProtocolError(f"{type(value).__name__} would write {key} twice")
        record[key] = item

    for field in dataclasses.fields(value):
        if field.name in skip:
            continue
        item = getattr(value, field.name)
        if _OPTIONAL in field.metadata and item == field.default:
            continue
        if dataclasses.is_dataclass(item):
            for key, inner in to_record(item, skip).items():
                put(key, inner)
        else:
            put(_key(field.name), list(item) if isinstance(item, tuple) else item)
    return ConfigRecord(record)


# Cached: looking them up each time would be a third of a small message's cost.
_type_hints: Callable[[Any], dict[str, Any]] = lru_cache(typing.get_type_hints)


def _scalar(key: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ProtocolError(f"{key} is {value!r}, expected one of {typing.get_args(hint)}")
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ProtocolError(f"{key} is {type(value).__name__}, expected {hint.__name__}")
    return value


def _items(key: str, value: Any, kind: Any) -> list[Any]:
    items: list[Any] = _scalar(key, value, list)
    if set(map(type, items)) - {kind}:  # a fast check, because lists may be long
        items = [_scalar(key, item, kind) for item in items]
    return items


def from_record(cls: type[T], record: Mapping[str, Any], **given: Any) -> T:
    """The dataclass in a record; fields in ``given`` are used without a check.

    Raises:
        ProtocolError: names the key that is missing or has another type.
    """
    hints = _type_hints(cls)
    values = dict(given)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        hint, key = hints[field.name], _key(field.name)
        if field.name in values:
            continue
        if dataclasses.is_dataclass(hint):
            values[field.name] = from_record(typing.cast("type[Any]", hint), record)
        elif key not in record and _OPTIONAL in field.metadata:
            values[field.name] = field.default
        elif key not in record:
            raise ProtocolError(f"{key} is missing")
        elif typing.get_origin(hint) is tuple:
            values[field.name] = tuple(_items(key, record[key], typing.get_args(hint)[0]))
        else:
            values[field.name] = _scalar(key, record[key], hint)
    return cls(**values)


def to_columns(cls: type[Any], rows: Sequence[Any], prefix: str = "") -> dict[str, list[Any]]:
    """Dataclasses whose fields are plain values, as one list for each field.

    Args:
        cls: the dataclass; needed because ``rows`` may be empty.
        rows: values of this class.
        prefix: put before each key.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    return {prefix + _key(name): [getattr(row, name) for row in rows] for name in names}


def from_columns(cls: type[T], record: Mapping[str, Any], prefix: str = "") -> tuple[T, ...]:
    """The reverse of ``to_columns``.

    Raises:
        ProtocolError: names the key that is missing, has another type, or another length than
            the others.
    """
    hints, columns = _type_hints(cls), []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        key = prefix + _key(field.name)
        if key not in record:
            raise ProtocolError(f"{key} is missing")
        columns.append(_items(key, record[key], hints[field.name]))
        if len(columns[-1]) != len(columns[0]):
            raise ProtocolError(
                f"{key} lists {len(columns[-1])} values, but {prefix}"
                f"{_key(dataclasses.fields(cls)[0].name)} {len(columns[0])}"  # type: ignore[arg-type]
            )
    return tuple(map(cls, *columns))


_NUMBERS = {int: "<i8", float: "<f8"}


def table_row(cls: type[Any]) -> np.dtype[np.void]:
    """One row of a table: the fields of a dataclass of numbers, in their order, 64 bits each."""
    hints = _type_hints(cls)
    return np.dtype([(f.name, _NUMBERS[hints[f.name]]) for f in dataclasses.fields(cls)])


def to_table(cls: type[Any], rows: Sequence[Any]) -> bytes:
    """Dataclasses whose fields are numbers, row by row.

    Args:
        cls: the dataclass; needed because ``rows`` may be empty.
        rows: values of this class.

    Raises:
        OverflowError: an integer does not fit into 64 bits.
    """
    names = table_row(cls).names or ()
    return np.array([tuple(getattr(r, n) for n in names) for r in rows], table_row(cls)).tobytes()


def from_table(cls: type[T], record: Mapping[str, Any], key: str) -> tuple[T, ...]:
    """The reverse of ``to_table``.

    Raises:
        ProtocolError: the key is missing, or its value is no table of such rows.
    """
    if key not in record:
        raise ProtocolError(f"{key} is missing")
    data, row = record[key], table_row(cls)
    if not isinstance(data, bytes) or len(data) % row.itemsize:
        size = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise ProtocolError(f"{key} is {size}, expected rows of {row.itemsize} bytes")
    return tuple(cls(*values) for values in np.frombuffer(data, row).tolist())
