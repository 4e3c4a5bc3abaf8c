"""The structured log: what happens to a run, one JSON object a line, beside the console's words.

An event is an ordinary log record that also carries its name and its values; this file's handler
writes them to a run folder's events.jsonl, other handlers show the words alone.
"""

from __future__ import annotations

import logging
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
    """Log something that a machine may look for; words are made printable, whoever's they are.

    Args:
        kind: what has happened, a word that never changes.
        message: for people.
        level: of the logging module.
        values: round, client, name, reason, ...
    """
    clean = {key: printable(v) if isinstance(v, str) else v for key, v in values.items()}
    # As an argument, so that a % in a device's own words stays one.
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
    """Keys: time, level, event ("log" where a record is no event), its values, message."""

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
    """Appends to a file, a whole line at a time; one that cannot be written ends no run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.setFormatter(_JsonFormatter())
        # Unbuffered: a line that does not fit on a full disk must not come up again at the end.
        self._path, self._file = path, path.open("a+b", buffering=0)
        self._broken = False
        if self._file.tell():
            self._file.seek(-1, 2)
            if self._file.read(1) != b"\n":  # a run that was cut off in the middle of a line
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


@contextmanager
def event_log(path: Path) -> Iterator[None]:
    """Write what fedhead logs meanwhile, from INFO up, to a file as well."""
    handler, level = _EventHandler(path), logger.level
    logger.addHandler(handler)
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()
