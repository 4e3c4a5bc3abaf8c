"""How far a run is: a bar in a notebook or on a terminal, nothing where nobody looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, Protocol  # IPython is optional, and its handle is not typed

from common.progress import Step, Tell, telling

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Bar", "bar"]

_PAUSE_SECONDS = 0.1  # between two drawings of one bar


class Bar(Protocol):
    """What shows how far work is."""

    def show(self, text: str, done: int, total: int) -> None:
        """Show a line of words and, of ``total`` parts of the work, how many are done.

        A total of 0: nobody knows how many there are.
        """
        ...


class _Hidden:
    def show(self, text: str, done: int, total: int) -> None: ...


class _Notebook:
    """An HTML element that is drawn again and again: it needs no widgets in the notebook."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn = 0.0

    def show(self, text: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._handle and now - self._drawn < _PAUSE_SECONDS and done not in (0, total):
            return
        self._drawn = now
        from IPython.display import HTML, display

        value = f' value="{done}" max="{total}"' if total else ""
        element = HTML(  # type: ignore[no-untyped-call]
            f'<progress{value} style="width: 14em; vertical-align: middle"></progress> '
            f'<span style="font-family: sans-serif; font-size: 0.9em">{escape(text)}</span>'
        )
        if self._handle is None:
            self._handle = display(element, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(element)


class _Terminal:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("")

    def show(self, text: str, done: int, total: int) -> None:
        from rich.markup import escape as escape_markup

        self._progress.update(
            self._task, description=escape_markup(text), completed=done, total=total or None
        )


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


@contextmanager
def bar(*, wanted: bool) -> Iterator[Bar]:
    """A bar for the time of the block; what is tracked meanwhile is shown in it.

    Args:
        wanted: False: nothing is shown, whoever looks.
    """
    if wanted and _in_notebook():
        notebook = _Notebook()
        with telling(_teller(notebook)):
            yield notebook
    elif wanted and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as progress:
            terminal = _Terminal(progress)
            with telling(_teller(terminal)):
                yield terminal
    else:
        with telling(lambda _: None):
            yield _Hidden()


def _teller(shown: Bar) -> Tell:
    def tell(step: Step) -> None:
        shown.show(step.what, step.done, step.total)

    return tell
