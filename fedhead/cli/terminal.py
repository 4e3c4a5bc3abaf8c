"""What the commands of several files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType

from common.errors import ConfigError
from common.words import printable
from fedhead.api.experiments import experiment_file

if TYPE_CHECKING:
    from common.config import Config

__all__ = [
    "ExperimentArgument",
    "JsonFlag",
    "SetOption",
    "configured",
    "near",
    "print_all",
    "print_error",
]

ExperimentArgument = Annotated[
    Path,
    typer.Argument(
        help="Experiment file (TOML), or the name of a shipped one, such as mnist5k.",
        callback=experiment_file,
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")]


def near(path: str) -> str:
    """The path relative to the working folder, if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path


def print_all(items: Iterable[RenderableType], *, highlight: bool = True) -> None:
    """Print tables and lines with rich; brackets in them are plain text, not markup."""
    console = Console(markup=False)
    for item in items:
        console.print(item, highlight=highlight)


def print_error(message: str) -> None:
    """Print one line on standard error. It may hold text from outside: that is made printable."""
    print(f"fedhead: {printable(message)}", file=sys.stderr)


def configured(
    experiment: Path | None,
    items: Sequence[str] | None,
    overrides: Mapping[str, Any] | None = None,
    *,
    reads: Sequence[str] = ("*",),
    elsewhere: Mapping[str, str] | None = None,
) -> Config:
    """The configuration of a command that does not read every key.

    Args:
        experiment: the file; None: all defaults.
        items: what ``--set`` gave, ``section.key=value`` each.
        overrides: values of other options, by key.
        reads: patterns of the keys that the command reads, such as "data.*".
        elsewhere: keys that an option of the command sets instead, with its name.

    Raises:
        ConfigError: names all problems of the file, all items that are no override, and all that
            the command would ignore.
    """
    from common.config import describe_keys, load_config

    known = [key for key, _, _ in describe_keys()]
    problems = []
    for item in items or []:
        key = item.partition("=")[0].strip()
        if option := (elsewhere or {}).get(key):
            problems.append(f"--set {key} would be ignored here: give {option} instead")
        elif any(key == k or key.startswith(f"{k}.") for k in known) and not any(
            fnmatchcase(key, pattern) for pattern in reads
        ):
            problems.append(f"--set {key} would be ignored: only {', '.join(reads)} count here")
    try:
        config = load_config(experiment, overrides, items or [])
    except ConfigError as exc:
        raise ConfigError([*problems, *exc.problems], exc.where) from exc
    if problems:
        raise ConfigError(problems)
    return config
