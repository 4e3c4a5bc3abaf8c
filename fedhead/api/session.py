"""What is around each piece of work of the Python API: nothing of it outlives the call."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from common.apart import reused
from common.errors import MissingExtraError, RunError
from common.words import said_of
from fedhead.environment import NOT_ON_DEVICES

__all__ = ["mendable", "session"]


class _Warnings(logging.Filter):
    """One for each session: another may last longer."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING


@contextmanager
def session() -> Iterator[None]:
    """A time in which fedhead works for a caller whose process goes on afterwards.

    Data are read again, because files may have changed since the last time. What was appended to
    Python's search path for a user's own modules is taken off again, once no other session, in
    another thread, needs it. Flower's log is quiet: its strategies log each step, and fedhead's
    own log has the round. The bytes of what is written depend on nothing that this process did
    before.

    Raises:
        MissingExtraError: a package of an extra is not installed.
    """
    flower, warnings = logging.getLogger("flwr"), _Warnings()
    flower.addFilter(warnings)
    try:
        from common.experiment import forget_data
        from common.own_code import searching

        forget_data()
        with reused(), searching():
            yield
    except ModuleNotFoundError as exc:
        if exc.name not in NOT_ON_DEVICES:
            raise
        raise MissingExtraError(exc.name, "simulation", "this") from exc
    finally:
        flower.removeFilter(warnings)


@contextmanager
def mendable() -> Iterator[None]:
    """A time in which a file that cannot be had is a caller's mistake, and no fault of the program.

    Raises:
        RunError: in place of an OSError; names the file.
    """
    try:
        yield
    except OSError as exc:
        raise RunError(said_of(exc)) from exc
