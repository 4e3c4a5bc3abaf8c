"""What a phone keeps on its disk, so that it may be killed at any moment and goes on.

::

    descriptions/ID   a run that it has prepared for
    task              the task that it works on, and when that will be late
    result            what it has computed for that task, with all arrays

A task is removed before its result, so that a task without a result is one that is still to be
done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.cache import keep_newest, note_use
from common.errors import DamagedError
from common.phones.phones_pb2 import Description, Submission, Task
from common.readback import ArraysFile

__all__ = ["MOST_DESCRIPTIONS", "Kept", "Result", "Work"]

MOST_DESCRIPTIONS = 8
"""Runs that a phone remembers; a check-in has a holding for each."""

_MESSAGE = ArraysFile("message that a phone keeps")


@dataclass(frozen=True)
class Work:
    """A task, and when it came.

    Attributes:
        task: as it was sent.
        until: when its result will be late, in seconds since 1970 by this phone's clock.
    """

    task: Task
    until: float

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return time.time() > self.until


@dataclass(frozen=True)
class Result:
    """A task's result.

    Attributes:
        submission: all but the arrays.
        arrays: their bytes, by field.
    """

    submission: Submission
    arrays: Mapping[str, bytes]


class Kept:
    """The files of one phone.

    Args:
        state: the phone's folder for them. A process has it for itself.
    """

    def __init__(self, state: Path) -> None:
        self._descriptions = state / "descriptions"
        self._task, self._result = state / "task", state / "result"

    def descriptions(self) -> dict[str, Description]:
        """All runs that the phone has prepared for, by id."""
        found = {}
        for path in sorted(self._descriptions.glob("[!.]*")):
            if (data := _read(path)) is not None:
                found[path.name] = Description.FromString(data["message"])
        return found

    def describe(self, description: Description) -> None:
        """Remember a run; the one that was used longest ago is forgotten."""
        path = self._descriptions / description.id
        _MESSAGE.write(path, {"message": _array(description.SerializeToString())})
        keep_newest(self._descriptions, MOST_DESCRIPTIONS)

    def undescribe(self, description: str) -> None:
        """Forget a run, so that the gateway describes it again."""
        (self._descriptions / description).unlink(missing_ok=True)

    def use(self, description: str) -> None:
        """Note that there was a task of a run."""
        note_use(self._descriptions / description)

    def begin(self, work: Work) -> None:
        """Keep a task in place of the one before."""
        self.forget()
        content = {"message": _array(work.task.SerializeToString()), "until": np.array(work.until)}
        _MESSAGE.write(self._task, content)

    def work(self) -> Work | None:
        """The task to be done or sent; None if there is none."""
        data = _read(self._task)
        if data is None:
            return None
        return Work(Task.FromString(data["message"]), float(np.frombuffer(data["until"])[0]))

    def finish(self, result: Result) -> None:
        """Keep a result until it is sent."""
        arrays = {f"array {name}": _array(data) for name, data in result.arrays.items()}
        message = _array(result.submission.SerializeToString())
        _MESSAGE.write(self._result, {"message": message, **arrays})

    def result(self, task: str) -> Result | None:
        """The result of a task; None if it is still to be computed."""
        data = _read(self._result)
        if data is None:
            return None
        submission = Submission.FromString(data.pop("message"))
        arrays = {name.removeprefix("array "): array for name, array in data.items()}
        return Result(submission, arrays) if submission.task == task else None

    def forget(self) -> None:
        """Forget the task and its result."""
        self._task.unlink(missing_ok=True)
        self._result.unlink(missing_ok=True)


def _array(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(data, np.uint8)


def _read(path: Path) -> dict[str, bytes] | None:
    """A file's parts; None if it is missing or damaged, which is the same to a phone."""
    with suppress(FileNotFoundError, DamagedError):
        return {name: array.tobytes() for name, array in _MESSAGE.read(path).items()}
    return None
