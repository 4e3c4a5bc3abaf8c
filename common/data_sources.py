"""The values of ``data.source``, one row per source. A loader is imported only when it is used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["KINDS", "NAMED", "Kind", "function_of", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """Sources of the form ``kind:rest``.

    Attributes:
        loader: ``module:function`` in common.datasets, called with the rest and a ``Reading``.
        rest: a word for messages that says what stands behind the colon.
        has_columns: whether the source is a table, so that its columns can be named.
    """

    loader: str
    rest: str = "PATH"
    has_columns: bool = False

    @property
    def is_path(self) -> bool:
        """Whether exactly a path stands behind the colon."""
        return self.rest == "PATH"


KINDS: Mapping[str, Kind] = {
    "folder": Kind("folder:load_split_folder"),
    "folder-by-client": Kind("folder:load_client_folder"),
    "csv": Kind("table:load_table", has_columns=True),
    "hf": Kind("hub:load_hub", rest="NAME", has_columns=True),
}
"""Sources with a colon. Any other word before a colon is the module of a user's own function."""

NAMED: Mapping[str, str] = {
    "mnist5k": "builtin:load_mnist5k",
    "digits": "builtin:load_digits",
    "elpv": "solar:load_elpv",
    "clipart": "made:load_made",
}
"""Sources without a colon, apart from torchvision's. The loader is called with the name and a
``Reading``."""

_FUNCTION = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")


def kind_of(source: str) -> Kind | None:
    """The row of a source with a colon; None for any other.

    >>> kind_of("csv:labels.csv").has_columns, kind_of("digits"), kind_of("mine:photos")
    (True, None, None)
    """
    kind, colon, _ = source.partition(":")
    return KINDS.get(kind) if colon else None


def function_of(source: str) -> tuple[str, str] | None:
    """Module and name of a user's own function; None if the source is something else.

    >>> function_of("mine.data:photos"), function_of("folder:photos"), function_of("C:/photos")
    (('mine.data', 'photos'), None, None)
    """
    found = _FUNCTION.fullmatch(source)
    return (found[1], found[2]) if found and kind_of(source) is None else None
