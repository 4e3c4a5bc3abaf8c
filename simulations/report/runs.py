"""Finished run folders, read once into frozen values and checked: what a report is made of."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from common.errors import DamagedError, RunError
from common.keys import flat
from common.types import IntArray
from server.record.replaced import place_of, recover
from server.record.runfolder import (
    METRICS,
    SUMMARY,
    read_config,
    read_run_json,
)
from simulations.report.checked import Count, Rate, content_of, parsed
from simulations.report.round_figures import Scalar, round_figures
from simulations.report.run_counts import Clients, read_clients, read_confusion

__all__ = ["Clients", "Participation", "Run", "Summary", "read_run", "read_runs"]

logger = logging.getLogger("fedhead")


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _File(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, alias_generator=lambda name: name.replace("_", "-")
    )


class ClientTests(BaseModel):
    """How much the figures of clients rest on; the rest of the section is left alone."""

    model_config = ConfigDict(frozen=True, strict=True)

    clients: Count


class PrivacyFigures(BaseModel):
    """What a private run guarantees; the rest of the section is left alone."""

    model_config = ConfigDict(frozen=True, strict=True)

    epsilon: Annotated[float, Field(gt=0, strict=False)]
    spent: Annotated[float, Field(ge=0, strict=False)]
    sentence: str


@dataclass(frozen=True)
class Participation:
    """How a run's real devices and phones took part, over all rounds.

    Attributes:
        asked: number of clients that were asked, each round's.
        valid: number of updates that counted.
        dropouts: number of asked clients without one, by reason, the most frequent first.
        phase_seconds: of phones, by phase: medians over rounds of a round's median and of its 90th
            percentile.
    """

    asked: int
    valid: int
    dropouts: Mapping[str, int]
    phase_seconds: Mapping[str, tuple[float, float]]


class Summary(BaseModel):
    """What a report needs of ``summary.json``; the rest of the file is left alone."""

    model_config = ConfigDict(frozen=True, strict=True)

    centralized_accuracy: Rate | None
    ridge_accuracy: Rate | None
    logistic_accuracy: Rate | None = None
    balanced_accuracy: Rate | None = None
    client_accuracy_mean: Rate | None
    client_accuracy_p10: Rate | None
    client_accuracy_min: Rate | None
    personal_accuracy_mean: Rate | None = None
    personal_accuracy_p10: Rate | None = None
    personal_accuracy_min: Rate | None = None
    local_accuracy_mean: Rate | None = None
    clients_better_alone: Count | None = None
    client_tests: ClientTests | None = None
    clients: Annotated[int, Field(ge=1)] | None = None
    rounds: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)] | None = None
    rejected_updates: Count | None
    backdoor_success: Rate | None = None
    seconds: dict[str, float]
    fingerprint: str
    versions: dict[str, str] = Field(default_factory=dict)
    downlink_bytes: Count | None = None
    full_model_uplink_bytes: Count | None = None
    model_bytes: Count | None = None
    ece: Rate | None = None
    ece_before: Rate | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    model_accuracy: Rate | None = None
    model_test_examples: Count | None = None
    privacy: PrivacyFigures | None = None


class _Identity(_File):
    simulated: bool = True
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class _Round(_File):
    round: int
    accuracy: Rate
    uplink_bytes: Count | None
    strategy: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    cohort: Count | None = None
    valid: Count | None = None
    dropouts: dict[str, Count] = Field(default_factory=dict)
    phase_seconds: dict[str, Annotated[list[Seconds], Field(min_length=2, max_length=2)]] = Field(
        default_factory=dict
    )


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run of R rounds.

    Attributes:
        values: the whole configuration by dotted key, see :func:`common.keys.flat`.
        accuracy: float64 (R,), on the server's test set after each round.
        uplink: int64 (R,), bytes sent by clients up to and including each round; None if the run is
            private and does not tell.
        metrics: the strategy's own, by name, float64 (R,); NaN after rounds without one.
        rounds: R times all single figures of a round, by their keys in metrics.jsonl, a strategy's
            own by strategy/NAME; but for the seconds that the machine took.
        confusion: int64 (K, K) of the last round, rows are true classes.
        clients: None for a run that has not written them.
        devices: whether its clients were real devices, which no partition gave their images.
        participation: of real devices; None for simulated ones, and in a private run.
    """

    path: Path
    values: Mapping[str, Any]
    summary: Summary
    classes: tuple[str, ...]
    accuracy: npt.NDArray[np.float64]
    uplink: IntArray | None
    metrics: Mapping[str, npt.NDArray[np.float64]]
    rounds: tuple[Mapping[str, Scalar], ...]
    confusion: IntArray
    clients: Clients | None
    devices: bool = False
    participation: Participation | None = None

    @property
    def seed(self) -> int:
        return int(self.values["seed"])

    @property
    def test_examples(self) -> int:
        return int(self.confusion.sum())


def _find_runs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The finished and the unfinished run folders among or below some paths, in order.

    Raises:
        RunError: a path that is no folder.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        recover(path.resolve())
        if not path.is_dir():
            raise RunError(f"{path} is no folder, expected a run or a folder of runs")
        for folder in _below(path):
            found.setdefault(folder.resolve(), folder)
    folders = list(found.values())
    finished = [folder for folder in folders if (folder / "summary.json").exists()]
    return finished, [folder for folder in folders if folder not in finished]


def _below(path: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(path):
        if "run.json" in files:
            yield Path(name)
            folders.clear()  # nothing below a run is one
        for place in filter(None, [place_of(Path(name, folder)) for folder in folders]):
            recover(place)  # a run that another was to take the place of
            if place.is_dir() and place.name not in folders:
                folders.append(place.name)
        # What starts with a dot is still being written.
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """The finished runs among or below some paths, and the folders of unfinished ones.

    Raises:
        RunError, DamagedError: nothing is finished, or a file is damaged; names it.
        ConfigError: a config.toml that cannot be read.
    """
    finished, unfinished = _find_runs(paths)
    for folder in unfinished:
        command = f"fedhead resume {shlex.quote(str(folder))}"
        logger.warning("%s has not finished, left out: %s", folder, command)
    if not finished:
        where = ", ".join(map(str, paths))
        raise RunError(f"no finished run in {where} ({len(unfinished)} unfinished)")
    return [read_run(folder) for folder in finished], unfinished


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        RunError, DamagedError: a file is damaged, or missing; names it.
        ConfigError: its config.toml cannot be read.
    """
    file = folder / "summary.json"
    summary = parsed(Summary, file, content_of(SUMMARY, file))
    identity = parsed(_Identity, folder / "run.json", read_run_json(folder))
    metrics = folder / "metrics.jsonl"
    lines = _lines(metrics)
    rounds = _read_rounds(metrics, lines, summary.rounds)
    return Run(
        path=folder,
        values=flat(read_config(folder).model_dump(by_alias=True)),
        summary=summary,
        classes=identity.classes,
        accuracy=np.array([r.accuracy for r in rounds], np.float64),
        uplink=_uplink(rounds),
        metrics=_metrics(rounds),
        rounds=tuple(map(round_figures, lines)),
        confusion=read_confusion(folder / "confusion.json", len(identity.classes)),
        clients=read_clients(folder / "clients.json", len(identity.classes)),
        devices=not identity.simulated,
        participation=_participation(rounds) if "dropouts" in lines[0] else None,
    )


def _read_rounds(file: Path, lines: Sequence[Mapping[str, Any]], count: int) -> list[_Round]:
    rounds = [parsed(_Round, file, line, f", line {i}") for i, line in enumerate(lines, 1)]
    if [r.round for r in rounds] != list(range(1, count + 1)):
        raise RunError(f"{file} holds {len(rounds)} rounds, expected 1 to {count} in order")
    return rounds


def _participation(rounds: Sequence[_Round]) -> Participation:
    dropouts = Counter[str]()
    spreads: dict[str, list[list[float]]] = {}
    for one in rounds:
        dropouts.update(one.dropouts)
        for phase, both in one.phase_seconds.items():
            spreads.setdefault(phase, []).append(both)
    medians = {phase: np.median(values, axis=0).tolist() for phase, values in spreads.items()}
    return Participation(
        asked=sum(one.cohort or 0 for one in rounds),
        valid=sum(one.valid or 0 for one in rounds),
        dropouts=dict(dropouts.most_common()),
        phase_seconds={phase: (p50, p90) for phase, (p50, p90) in medians.items()},
    )


def _uplink(rounds: Sequence[_Round]) -> IntArray | None:
    known = [r.uplink_bytes for r in rounds if r.uplink_bytes is not None]
    return np.cumsum(known, dtype=np.int64) if len(known) == len(rounds) else None


def _metrics(rounds: Sequence[_Round]) -> dict[str, npt.NDArray[np.float64]]:
    names = dict.fromkeys(name for r in rounds for name in r.strategy)
    return {
        name: np.array([r.strategy.get(name, np.nan) for r in rounds], np.float64) for name in names
    }


def _lines(file: Path) -> list[dict[str, Any]]:
    found = []
    try:
        for line in METRICS.read(file):
            if isinstance(line, DamagedError):
                raise line
            found.append(line)
    except OSError as exc:
        raise RunError(f"{file} cannot be read ({exc.strerror})") from exc
    return found
