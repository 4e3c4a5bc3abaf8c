"""TOML files with known keys. All problems of a file are reported at once, by key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from common.errors import ConfigError

__all__ = ["Section", "read_toml", "validated"]

M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """Keys are kebab-case in TOML and snake_case in Python. An unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=False,
        use_attribute_docstrings=True,
    )


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(["no such file"], str(path)) from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError([f"not a readable TOML file: {exc}"], str(path)) from exc


def validated(model: type[M], content: Mapping[str, Any], where: str) -> M:
    """The content as a checked model.

    Args:
        model: a subclass of :class:`Section`, like all its sections.
        content: kebab-case keys, as in a file.
        where: the file's name, for the error.

    Raises:
        ConfigError: names all problems.
    """
    try:
        return model.model_validate(content)
    except ValidationError as exc:
        raise ConfigError([_describe(model, error) for error in exc.errors()], where) from exc


def _known_keys(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part).replace("-", "_"))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [name.replace("_", "-") for name in model.model_fields]


def _elsewhere(model: type[BaseModel], name: str) -> list[str]:
    """The keys of this name in the sections of a file."""
    return [f"{key}.{name}" for key in _known_keys(model, ()) if name in _known_keys(model, (key,))]


def _describe(model: type[BaseModel], error: ErrorDetails) -> str:
    location = error["loc"]
    key = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        parent = ".".join(str(part) for part in location[:-1])
        meant = [f"{parent + '.' if parent else ''}{name}" for name in near]
        meant = meant or _elsewhere(model, str(location[-1]))
        return f"unknown key {key}{f', did you mean {meant[0]}?' if meant else ''}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if not location:
        return message
    if error["type"] == "missing":
        return f"{key} is missing"
    return f"{key}={error['input']!r} {message}"
