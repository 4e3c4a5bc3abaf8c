"""What a tracker is: someone beside the run folder who is told of a run's figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from common.config import TrackingConfig
from server.record.figures import flattened

__all__ = ["End", "Numbers", "Tracked", "Tracker", "environment", "numbers", "texts"]

Numbers = Mapping[str, float]
End = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True, eq=False)
class Tracked:
    """A run as a tracker is told of it when it opens.

    Attributes:
        folder: of the run.
        settings: the section [tracking].
        project: under which the run is filed.
        run_id: of the run, 32 hex digits; the same when it goes on.
        params: the configuration, by dotted key.
        tags: what else a run is found by: run id, backbone's fingerprint, version.
        history: the rounds so far, by number, in ascending order. The last one may be new to the
            tracker: a round is on the disk before anyone is told of it.
    """

    folder: Path
    settings: TrackingConfig
    project: str
    run_id: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    history: Mapping[int, Numbers]


class Tracker(Protocol):
    """Someone who is told of each round once. What it raises ends the tracking, not the run."""

    def write(self, round_number: int, values: Numbers) -> None:
        """A round's figures."""

    def summarize(self, figures: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """What the run has come to.

        Args:
            figures: of summary.json.
            files: small ones that are worth keeping with it, by name.
        """

    def close(self, end: End) -> None:
        """The run ends, or is interrupted; it may go on later."""


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Settings for a library where the user has none, for the time of a call.

    A notebook's own use of the library keeps its own.

    Args:
        settings: by the names of environment variables.
    """
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What is numeric; what is grouped under a name is NAME/KEY.

    >>> numbers({"loss": 1, "confusion": [[1]], "accepted": True, "strategy": {"drift": 0.5}})
    {'loss': 1.0, 'strategy/drift': 0.5}
    """
    return {
        name: float(value)
        for name, value in flattened(values).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """What is text.

    >>> texts({"strategy": "fedavg", "loss": 1, "versions": {"numpy": "2.1"}})
    {'strategy': 'fedavg'}
    """
    return {name: value for name, value in values.items() if isinstance(value, str)}
