"""A run's differential privacy, as its ledger has it: what was released, and what it has cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Config
from common.errors import DamagedError, RunError
from common.privacy.ledger import Entry, Ledger, spent
from common.privacy.noise import NoiseKey, seed_secret
from common.privacy.rule import Mechanism
from common.privacy.words import NEIGHBOURS, NOT_PRIVATE, figure, sentence
from server.record.runfolder import METRICS, read_config, read_run_json

__all__ = [
    "LEDGER",
    "SECRET",
    "Privacy",
    "Release",
    "check_releases",
    "privacy_sentence",
    "read_privacy",
]

LEDGER, SECRET = "privacy-ledger.jsonl", "privacy.secret"
"""Names of the files in a run's folder."""

# Two versions of a package that accounts for sampled clients may differ by so much.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Release:
    """A sum with its noise, which a run has released.

    Attributes:
        round: that it belongs to.
        multiplier: standard deviation of the noise, in units of the clip.
        clip: largest norm of a client's update.
        again: whether the round had a release before, of other sums: both count.
    """

    round: int
    multiplier: float
    clip: float
    again: bool


@dataclass(frozen=True)
class Privacy:
    """What a run guarantees of each client, and has spent so far.

    Attributes:
        epsilon: the budget.
        delta: probability with which the bound may fail.
        spent: epsilon of all releases so far, at this delta.
        unit: what is protected.
        neighbours: which two sets of clients the bound compares.
        mechanism: how clients come to take part.
        simulated: whether the noise came from the run's seed, so that it protects nobody.
        goes_on: whether the run began with another run's head, whose own cost is not counted.
        clients: the configured number of clients, which is public; None before the first release.
        releases: in the order in which they were charged.
    """

    epsilon: float
    delta: float
    spent: float
    unit: str
    neighbours: str
    mechanism: Mechanism
    simulated: bool
    goes_on: bool
    clients: int | None
    releases: tuple[Release, ...]

    @property
    def sentence(self) -> str:
        """All of it in words."""
        return sentence(
            epsilon=self.epsilon,
            delta=self.delta,
            spent=self.spent,
            simulated=self.simulated,
            unit=self.unit,
            goes_on=self.goes_on,
        )


def read_privacy(folder: Path) -> tuple[Privacy, tuple[Entry, ...]] | None:
    """A run's privacy, and the entries of its ledger; None: it has no budget.

    Args:
        folder: of the run, finished or not.

    Raises:
        RunError: there is no run; or its ledger lacks a release, see ``check_releases``.
        DamagedError: its configuration or ledger was changed after it was written; names it.
    """
    config = read_config(folder)
    if not config.privacy.active:
        return None
    entries = check_releases(folder, config.privacy.delta)
    known = read_run_json(folder)
    settings = config.privacy
    value = Privacy(
        epsilon=settings.epsilon,
        delta=settings.delta,
        spent=spent(entries, settings.delta),
        unit=settings.unit,
        neighbours=NEIGHBOURS,
        mechanism=settings.mechanism,
        simulated=_is_simulated(config, entries, known),
        goes_on=bool(config.strategy.init_from),
        clients=entries[0].clients if entries else None,
        releases=_releases(entries),
    )
    return value, entries


def privacy_sentence(folder: Path) -> str:
    """What a run guarantees, in words; of one without a budget that it guarantees nothing.

    Raises:
        RunError, DamagedError: as ``read_privacy``.
    """
    found = read_privacy(folder)
    return found[0].sentence if found else NOT_PRIVATE


def _releases(entries: Sequence[Entry]) -> tuple[Release, ...]:
    rounds = [entry.round for entry in entries]
    return tuple(
        Release(entry.round, entry.multiplier, entry.clip, again=entry.round in rounds[:i])
        for i, entry in enumerate(entries)
    )


def _is_simulated(config: Config, entries: Sequence[Entry], known: Mapping[str, Any]) -> bool:
    """Whether any noise came from the run's seed; before there is any, whether it would."""
    if entries:
        own = NoiseKey(seed_secret(config.seed)).name
        return any(entry.secret == own for entry in entries)
    wanted = config.privacy.noise
    return wanted == "seed" or (wanted == "auto" and bool(known.get("simulated", True)))


def check_releases(folder: Path, delta: float) -> tuple[Entry, ...]:
    """The entries of a run's ledger, which must hold what finished rounds have released.

    Args:
        folder: of the run, whose budget is finite.
        delta: the run's.

    Raises:
        RunError: the ledger is not there, lacks a round that has made a head, or has spent less
            than was told after a round.
        DamagedError: it was changed after it was written.
    """
    ledger, metrics = Ledger(folder / LEDGER), folder / "metrics.jsonl"
    entries = ledger.entries
    charged, told = {entry.round for entry in entries}, 0.0
    for line in METRICS.read(metrics) if metrics.exists() else ():
        if isinstance(line, DamagedError):
            continue  # a run goes on from an earlier round then
        told = max(told, float(line.get("epsilon-spent", 0.0)))
        if line.get("accepted") and line.get("round") not in charged:
            what = "lacks it" if ledger.path.exists() else "is not there"
            raise _lost(f"round {line.get('round')} has made a head, but {ledger.path} {what}")
    # A round that was done again has more than one release.
    if told and (has := spent(entries, delta)) < told * (1 - _TOLERANCE):
        raise _lost(
            f"epsilon {figure(told)} was spent, but the releases in {ledger.path} cost "
            f"{figure(has)}: some are missing"
        )
    return entries


def _lost(what: str) -> RunError:
    return RunError(f"{what}: nobody can say what the run has spent")
