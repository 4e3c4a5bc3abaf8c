"""Progress of long work: a bar on a terminal, and a line in a log that is silent for long."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Step", "Tell", "stage", "telling", "track"]

T = TypeVar("T")

logger = logging.getLogger("fedhead")

_LOOK_SECONDS = 1.0
# Together with the second between two looks, at most ten seconds.
_SILENCE_SECONDS: float = 9.0


@dataclass(eq=False)
class Step:
    """Work under way.

    Attributes:
        what: names the work.
        started: when it began, in seconds on the clock.
        total: number of items; 0 if unknown.
        done: number of finished items.
        has_bar: whether a terminal shows a bar of it.
    """

    what: str
    started: float
    total: int = 0
    done: int = 0
    has_bar: bool = False

    def line(self, now: float) -> str:
        """The log's line about it.

        >>> Step("features", started=5.0, total=80, done=23).line(40.2)
        'features: 23 of 80, 35 s'
        """
        count = f"{self.done:,} of {self.total:,}, " if self.total else ""
        return f"{self.what}: {count}{now - self.started:.0f} s"


class _Watch(logging.Filter):
    """Logs which work is under way when the log has been silent for long.

    It is a filter because a filter sees each record, whatever handlers there are.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.clock = clock
        self._steps: list[Step] = []
        self._heard = 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything through."""
        self._heard = self.clock()
        return True

    @contextmanager
    def watching(self, step: Step) -> Iterator[None]:
        """Report a step until the block ends, unless a later one has begun."""
        with self._lock:
            if not self._steps:
                self._heard, self._over = step.started, threading.Event()
                logger.filters.insert(0, self)  # another may keep a record from those after it
                threading.Thread(target=self._run, args=(self._over,), daemon=True).start()
            self._steps.append(step)
        try:
            yield
        finally:
            with self._lock:
                self._steps.remove(step)
                if not self._steps:
                    logger.removeFilter(self)
                    self._over.set()

    def has_bar(self) -> bool:
        """Whether a terminal shows a bar of any of the steps."""
        with self._lock:
            return any(step.has_bar for step in self._steps)

    def _run(self, over: threading.Event) -> None:
        while not over.wait(_LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Log a line if it is time for one."""
        now, shown = self.clock(), self.has_bar()
        with self._lock:
            step = self._steps[-1] if self._steps else None
        if step is None or shown or now - self._heard < _SILENCE_SECONDS:
            return
        self._heard = now  # also if no handler shows lines of this level
        if logger.getEffectiveLevel() <= logging.INFO:
            # Bypasses logging.disable, which silences a library while it works for minutes.
            record = logger.makeRecord(
                logger.name, logging.INFO, __file__, 0, step.line(now), (), None
            )
            logger.handle(record)


_WATCH = _Watch()

Tell = Callable[[Step], None]
_TELL: ContextVar[Tell | None] = ContextVar("_TELL", default=None)


@contextmanager
def telling(tell: Tell) -> Iterator[None]:
    """Inside, in this thread, whoever calls shows what is tracked, and no line or bar here does.

    Args:
        tell: called with the step before its first item and after each.
    """
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


@contextmanager
def stage(what: str, total: int = 0) -> Iterator[Step]:
    """Name what the block does; while the log is silent, a line says it every ten seconds or less.

    Args:
        what: a few words. Stages may be nested; then the innermost one is reported.
        total: number of items; 0 if unknown. The block counts finished ones in ``Step.done``.
    """
    step = Step(what, _WATCH.clock(), total)
    with _WATCH.watching(step):
        yield step


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield the items and show the progress: a bar on a terminal, otherwise a ``stage``.

    Inside ``telling`` it shows neither, and hands the step over.
    """
    with stage(what, total) as step:
        if tell := _TELL.get():
            step.has_bar = True
            tell(step)
            for item in items:
                yield item
                step.done += 1
                tell(step)
            return
        if sys.stderr.isatty() and not _WATCH.has_bar():
            step.has_bar = True
            items = _bar(items, what, total)
        for item in items:
            yield item
            step.done += 1


def _bar(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    from rich.console import Console  # only here, because imports cost a device seconds
    from rich.markup import escape
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    return rich_track(items, description=escape(what), total=total, console=console, transient=True)
