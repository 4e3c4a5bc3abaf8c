"""Hints at what is probably wrong with a table, to be put at an error's end."""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.datasets.named_files import NamedFiles
from common.datasets.tree import has_image_suffix
from common.words import some

__all__ = ["header_hint", "one_hot_hint", "zeros_hint"]

_SHOWN = 3


def header_hint(header: Sequence[str]) -> str:
    """Hint for a table that begins with a row instead of a header.

    >>> header_hint(["01.png", "cat"])
    "; its first line names an image: a header such as 'image,label' is missing"
    """
    if any(map(has_image_suffix, header)):
        return "; its first line names an image: a header such as 'image,label' is missing"
    return ""


def one_hot_hint(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Hint for a table with a column of zeros and ones for each class.

    >>> one_hot_hint(["id", "cat", "dog"], [["1", "0", "1"], ["2", "1", "0"]])
    '; one column of class names is expected, and cat, dog look like one for each class'
    """
    flags = [
        i for i in range(len(header)) if all(re.fullmatch(r"[01](\.0+)?", row[i]) for row in rows)
    ]
    is_one_hot = all(sum(row[i][0] == "1" for i in flags) == 1 for row in rows)
    if len(flags) < 2 or not is_one_hot:
        return ""
    names = some([header[i] for i in flags], _SHOWN)
    return f"; one column of class names is expected, and {names} look like one for each class"


def zeros_hint(files: NamedFiles, missing: Sequence[str]) -> str:
    """Hint for a table whose file names were once read as numbers."""
    for cell in missing[:_SHOWN]:
        if file := files.with_zeros(cell):
            return f"; '{cell}' may be {file.name}: a name read as a number loses its leading zeros"
    return ""
