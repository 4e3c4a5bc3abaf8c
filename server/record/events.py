"""The structured log of a run: one JSON object per line, beside the console's log.

An event is an ordinary log record that also has a name and values. The handler here writes them to
the run folder's events.jsonl. Other handlers show only the message.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from common.readback import JsonLines
from common.words import printable

__all__ = ["EVENTS", "event", "event_log", "utc"]

logger = logging.getLogger("fedhead")

EVENTS = JsonLines("events.jsonl of a run")

Value = str | int | float | bool | None


def event(kind: str, message: str, /, *, level: int = logging.INFO, **values: Value) -> None:
    """Log an event that programs may look for. Text from outside is made printable.

    Args:
        kind: the event's name, which never changes.
        message: the text for people.
        level: a level of the logging module.
        values: round, client, name, reason, ...
    """
    clean = {key: printable(v) if isinstance(v, str) else v for key, v in values.items()}
    # As an argument, so that a % in a device's text is not interpreted.
    extra = {"event": kind, "values": clean}
    logger.log(level, "%s", printable(message), extra=extra, stacklevel=2)


def utc(seconds: float) -> str:
    """Seconds since 1970 as UTC in ISO 8601, to the millisecond.

    >>> utc(0.5)
    '1970-01-01T00:00:00.500Z'
    """
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _JsonFormatter(logging.Formatter):
    """Keys: time, level, event ("log" if a record is not an event), its values, message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": utc(record.created),
            "level": record.levelname,
            "event": getattr(record, "event", "log"),
            **getattr(record, "values", {}),
            "message": printable(record.getMessage()),
        }
        return EVENTS.line(line)


class _EventHandler(logging.Handler):
    """Appends whole lines to a file. If the file cannot be written, the run continues."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.setFormatter(_JsonFormatter())
        # Unbuffered: a line that a full disk refused must not be written again at the end.
        self._path, self._file = path, path.open("a+b", buffering=0)
        self._broken = False
        if self._file.tell():
            self._file.seek(-1, 2)
            if self._file.read(1) != b"\n":  # an earlier process was killed in the middle of a line
                self._file.write(b"\n")

    def emit(self, record: logging.LogRecord) -> None:
        if self._broken:
            return
        try:
            self._file.write(f"{self.format(record)}\n".encode())
        except OSError as exc:
            self._broken = True
            logger.warning("%s ends here: %s", self._path, exc.strerror or exc)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Split(logging.Filter):
    """Writes fedhead's log to all files that are open, and lets pass what the user asked for.

    For the files, the logger's level is INFO or below meanwhile. What is below the level that the
    user has set, or that is the root's, reaches no other handler.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open: list[_EventHandler] = []  # of runs in several threads
        self._level, self._lock = logging.NOTSET, threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        for handler in [*self._open]:
            handler.handle(record)
        return record.levelno >= self._asked()

    def add(self, handler: _EventHandler) -> None:
        with self._lock:
            if not self._open:
                self._level = logger.level
                logger.setLevel(min(logging.INFO, self._asked()))
                logger.addFilter(self)
            self._open.append(handler)

    def remove(self, handler: _EventHandler) -> None:
        with self._lock:
            self._open.remove(handler)
            if not self._open:
                logger.removeFilter(self)
                logger.setLevel(self._level)

    def _asked(self) -> int:
        above = logger.parent
        return self._level or (above.getEffectiveLevel() if above else logging.WARNING)


_SPLIT = _Split()


@contextmanager
def event_log(path: Path) -> Iterator[None]:
    """Inside the block, write fedhead's log from INFO up to a file as well."""
    handler = _EventHandler(path)
    _SPLIT.add(handler)
    try:
        yield
    finally:
        _SPLIT.remove(handler)
        handler.close()
