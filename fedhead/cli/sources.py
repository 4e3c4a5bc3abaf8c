"""The data that a command looks at, and the keys of an experiment that it reads for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import DataError
from fedhead.cli.terminal import configured

if TYPE_CHECKING:
    from common.config import Config

__all__ = ["INPUT_KEYS", "DataArgument", "configured_source", "source_of"]

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder with one sub-folder per class, a table (.csv), or a value of data.source.",
    ),
]

# The keys of [data] that decide which images there are and which calibrate the quantization.
_DATA_KEYS = tuple(
    f"data.{key}"
    for key in (
        "root", "download", "strict", "label-column", "image-column", "test-fraction",
        "calibration-examples", "seed",
    )
)  # fmt: skip
INPUT_KEYS = ("backbone.input-size", "backbone.mean", "backbone.std")


def source_of(data: str) -> str:
    """The value of data.source for a folder, a table or a data set's name.

    Raises:
        DataError: it is none of these; names what comes near.
    """
    from common.datasets import Reading, is_source, nearest_sources

    path = Path(data)
    if path.is_dir():
        return f"folder:{path.resolve()}"
    if path.is_file():
        return f"csv:{path.resolve()}"
    if not is_source(data):
        near = nearest_sources(data, Reading())
        raise DataError(f"no folder or table {data} here, nor a data set of that name; {near}")
    return data


def configured_source(
    items: Sequence[str] | None,
    source: str,
    option: str,
    more: Sequence[str],
    *,
    backbone: Mapping[str, Any] | None = None,
    elsewhere: Mapping[str, str] | None = None,
) -> Config:
    """The configuration of a command that reads [data] and some other keys.

    Args:
        items: what ``--set`` gave.
        source: the value of data.source.
        option: the argument or option that gives the source.
        more: patterns of further keys that the command reads.
        backbone: keys of [backbone] that options of the command set.
        elsewhere: the full names of these keys, each with its option.
    """
    return configured(
        None, items, {"data": {"source": source}, "backbone": dict(backbone or {})},
        reads=(*_DATA_KEYS, *more, "seed"), elsewhere={"data.source": option, **(elsewhere or {})},
    )  # fmt: skip
