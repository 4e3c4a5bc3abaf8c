"""Flat frozen dataclasses to Flower's ConfigRecord and back, checked field by field.

Keys are the fields' names in kebab-case. A field may be bool, int, float, str, bytes, a Literal
of strings, a tuple of one such type, or another flat dataclass, whose fields join the record.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar

from flwr.app import ConfigRecord

from common.errors import ProtocolError

__all__ = ["from_record", "to_record"]

T = TypeVar("T")


def _key(name: str) -> str:
    return name.replace("_", "-")


def to_record(value: Any, skip: tuple[str, ...] = ()) -> ConfigRecord:
    """A dataclass as a record, without the fields named in ``skip``."""
    record: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        if field.name in skip:
            continue
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            record.update(to_record(item, skip))
        else:
            record[_key(field.name)] = list(item) if isinstance(item, tuple) else item
    return ConfigRecord(record)


# Looked up each time they are a third of a small message's cost.
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


def from_record(cls: type[T], record: Mapping[str, Any], **given: Any) -> T:
    """The dataclass that a record holds; fields in ``given`` are taken as they are.

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
        elif key not in record:
            raise ProtocolError(f"{key} is missing")
        elif typing.get_origin(hint) is tuple:
            items, kind = _scalar(key, record[key], list), typing.get_args(hint)[0]
            if set(map(type, items)) - {kind}:  # long lists have no time for more
                items = [_scalar(key, item, kind) for item in items]
            values[field.name] = tuple(items)
        else:
            values[field.name] = _scalar(key, record[key], hint)
    return cls(**values)
