"""Progress bars for long work: on a terminal only, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")


def track(items: Sequence[T] | Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items and show how far it got; silent where nobody watches."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console  # only where it is shown: imports cost a device seconds
    from rich.markup import escape
    from rich.progress import track as rich_track

    yield from rich_track(
        items, description=escape(description), total=total, console=Console(stderr=True),
        transient=True,
    )  # fmt: skip
