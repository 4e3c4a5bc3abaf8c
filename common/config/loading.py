"""Configurations from files and overrides. All problems of both are reported at once."""

from __future__ import annotations

import datetime
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel

from common.config.experiment import Config
from common.data_sources import function_of
from common.errors import ConfigError
from common.own_code import folder_of, search_in
from common.toml_model import read_toml, validated

__all__ = [
    "changed",
    "describe_keys",
    "load_config",
    "overrides_of",
    "parse_overrides",
    "with_module",
]


def describe_keys() -> list[tuple[str, str, str]]:
    """Every key as ``section.key``, with its default as TOML and what it means."""
    rows: list[tuple[str, str, str]] = []

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            key = prefix + name.replace("_", "-")
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                walk(annotation, f"{key}.")
                continue
            default = field.get_default(call_default_factory=True)
            if default is None:
                text = "unset"
            else:
                text = tomli_w.dumps({"x": default}).partition(" = ")[2].strip() or "{}"
            if get_origin(annotation) is Literal:
                choices = " | ".join(get_args(annotation))
                rows.append((key, text, f"{choices}. {field.description or ''}".strip()))
            else:
                rows.append((key, text, field.description or ""))

    walk(Config, "")
    return rows


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """Turn ``section.key=value`` items into a nested mapping.

    If a key takes text, the value is the text itself, in quotes or not. Otherwise it is TOML.

    >>> parse_overrides(["train.lr=0.1", "data.source=digits", "name=2024-01-05"])
    {'train': {'lr': 0.1}, 'data': {'source': 'digits'}, 'name': '2024-01-05'}

    Raises:
        ConfigError: names all items that are not of this form.
    """
    tree, problems = overrides_of(items)
    if problems:
        raise ConfigError(problems, "overrides")
    return tree


def overrides_of(items: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The same, but return the problems of wrong items, to be reported with others."""
    tree: dict[str, Any] = {}
    problems = []
    for item in items:
        key, separator, text = item.partition("=")
        path = key.strip().split(".")
        if not separator or not all(path):
            problems.append(f"'{item}' is not of the form section.key=value")
            continue
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                problems.append(f"'{item}' sets a key below one that has a value itself")
                break
        else:
            node[path[-1]] = _parsed(path, text.strip())
    return tree, problems


def _parsed(path: Sequence[str], text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    # No key takes a date, and no strategy's argument takes inf or nan: read these as text.
    is_word = isinstance(value, datetime.date | datetime.time) or (
        path[:2] == ["strategy", "args"] and isinstance(value, float) and not math.isfinite(value)
    )
    return text if is_word or (_takes_text(path) and not isinstance(value, str)) else value


def _takes_text(path: Sequence[str]) -> bool:
    """Whether a key exists and takes text only."""
    annotation: Any = Config
    for part in path:
        fields = getattr(annotation, "model_fields", {})
        name = part.replace("-", "_")
        if name not in fields:
            return False
        annotation = fields[name].annotation
    return annotation is str or get_origin(annotation) is Literal


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both and old is not None else value
    return merged


def load_config(
    path: Path | None, overrides: Mapping[str, Any] | None = None, items: Iterable[str] = ()
) -> Config:
    """Read an experiment file and apply overrides.

    Args:
        path: the file; None: all defaults.
        overrides: kebab-case keys, as in a file.
        items: further ones as ``section.key=value``.

    Raises:
        ConfigError: the file is missing or not TOML, or it or the items have problems; all are
            named.
    """
    where = str(path) if path else "configuration"
    content = read_toml(path) if path else {}
    given, problems = overrides_of(items)
    try:
        merged = _merge(_merge(content, given), overrides or {})
        config = validated(Config, merged, where)
    except ConfigError as exc:
        problems += exc.problems
    if problems:
        raise ConfigError(problems, where)
    return with_module(config, [*([path.parent] if path else []), Path.cwd()])


def with_module(config: Config, places: Sequence[Path]) -> Config:
    """Write down where a user's own modules lie, so that they are found from any folder."""
    train, strategy = config.train, config.strategy
    beside = [Path(strategy.root).expanduser()] if strategy.root else []
    roots = {}
    for section, key, path, root, folders in (
        ("data", "root", config.data.source, config.data.root, places),
        ("strategy", "root", strategy.name, strategy.root, places),
        ("train", "loss-root", train.loss, train.loss_root, [*beside, *places]),
    ):
        function = function_of(path)
        if function and not root and (folder := folder_of(function[0], folders)):
            roots[section] = {key: str(folder)}
    config = changed(config, roots) if roots else config
    search_in(config.strategy.root)
    return config


def changed(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The same configuration with other values, kebab-case keys as in a file.

    Raises:
        ConfigError: names all problems.
    """
    return validated(Config, _merge(config.model_dump(by_alias=True), overrides), "")
