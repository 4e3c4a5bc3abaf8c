"""What a run has released, on the disk before it is released.

``privacy-ledger.jsonl`` has a numbered line with a checksum for each release. A process that is
killed while it writes a line has not released anything with it: an incomplete last line is dropped.
Whatever else does not fit is an error, and never a smaller sum.
"""

from __future__ import annotations

import dataclasses
import fcntl
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import get_args

from common.errors import DamagedError
from common.files import sync
from common.privacy.accounting import poisson_epsilon, sampled_epsilon
from common.privacy.factorization import coefficients, sensitivity
from common.privacy.gaussian import composed, gaussian_epsilon
from common.privacy.rule import Mechanism
from common.readback import JsonLines, unseal

__all__ = ["LEDGER", "Entry", "Ledger", "spent"]

LEDGER = JsonLines("privacy-ledger.jsonl of a run")

_NUMBER = "number"  # of the line: a missing one is noticed
_LINES = 2**14  # that are kept as they were understood, a few MB
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class Entry:
    """One release.

    Attributes:
        round: the round, from 1.
        digest: hex of ``noise.digest`` of the exact sums.
        secret: ``NoiseKey.name`` of the secret that decided the noise.
        mechanism: how clients came to take part.
        multiplier: the noise's standard deviation in units of the clip.
        clients: the configured number of clients.
        clip: largest norm of a client's update.
        delta: the run's delta.
        rate: probability of taking part; for "poisson" alone.
        separation: the next participation is at least so many rounds later; for "min-separation"
            alone.

    Raises:
        ValueError: a value cannot be; names it.
    """

    round: int
    digest: str
    secret: str
    mechanism: Mechanism
    multiplier: float
    clients: int
    clip: float
    delta: float
    rate: float | None = None
    separation: int | None = None

    def __post_init__(self) -> None:
        fits = {
            "round": _is_count(self.round),
            "digest": _is_hex(self.digest),
            "secret": _is_hex(self.secret),
            "mechanism": self.mechanism in get_args(Mechanism),
            "multiplier": _is_positive(self.multiplier),
            "clients": _is_count(self.clients),
            "clip": _is_positive(self.clip),
            "delta": _is_positive(self.delta) and self.delta < 1,
            "rate": (self.mechanism == "poisson") == (self.rate is not None)
            and (self.rate is None or (_is_positive(self.rate) and self.rate <= 1)),
            "separation": (self.mechanism == "min-separation") == (self.separation is not None)
            and (self.separation is None or _is_count(self.separation)),
        }
        for name, is_right in fits.items():
            if not is_right:
                found = getattr(self, name)
                raise ValueError(f"{name} of a release with {self.mechanism!r} is {found!r}")


@dataclass(frozen=True)
class Ledger:
    """The releases of a run, in a file that several processes may share.

    Attributes:
        path: the file. There is none before the first release.
    """

    path: Path

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All releases, in the order in which they were charged.

        Raises:
            DamagedError: the file was changed after it was written; names the line.
            OSError: it cannot be read.
        """
        return tuple(self._read()) if self.path.exists() else ()

    def charge(self, entry: Entry) -> bool:
        """Write a release down. When this returns, it is on the disk, and the release may leave.

        A release that is there already, in all its values, is the same bytes again: it costs
        nothing.

        Args:
            entry: the release.

        Returns:
            Whether it is a further one.

        Raises:
            DamagedError: as ``entries``; nothing is written.
            OSError: it cannot be written; nothing may be released.
        """
        with self._alone() as file:
            known = tuple(self._read())
            if is_new := entry not in known:
                _end_last_line(file, self.path.read_bytes(), len(known))
                values = {k: v for k, v in dataclasses.asdict(entry).items() if v is not None}
                line = LEDGER.line({_NUMBER: len(known) + 1, **values})
                _write(file, f"{line}\n".encode())
            os.fsync(file)  # a known one too: who wrote it may have been killed before this
            sync(self.path.parent)
        return is_new

    def _read(self) -> Iterator[Entry]:
        for entry in LEDGER.read_as(self.path, _entry):
            if isinstance(entry, DamagedError):
                raise entry
            yield entry

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Inside the block, nobody else writes. A killed process holds no lock.

        Yields:
            The file's descriptor.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def spent(entries: Sequence[Entry], delta: float) -> float:
    """Epsilon of all these releases together.

    Two attempts at a round with sampled clients share its cohort: they count as one release with
    less noise, not as two with cohorts of their own. Noises of different secrets are independent,
    so a min-separation run that goes on with another secret counts from there as a further run.

    Args:
        entries: of a ledger, in any order.
        delta: of all together.

    Raises:
        MissingExtraError: clients were sampled, and dp-accounting is not installed.
    """
    if not entries:
        return 0.0
    sampled = _sampled(entries)
    others = [e.multiplier for e in entries if e.mechanism in ("everyone", "one-shot")]
    sigma = composed([*others, *_separated(entries)])
    if not sampled:
        return gaussian_epsilon(sigma, delta)
    if len(sampled) == 1 and sigma == math.inf:
        ((z, rate), rounds) = sampled.popitem()
        return poisson_epsilon(z, delta, rate, rounds)
    parts = [(z, rate, rounds) for (z, rate), rounds in sampled.items()]
    return sampled_epsilon([*parts, (sigma, 1.0, 1)] if sigma < math.inf else parts, delta)


def _sampled(entries: Sequence[Entry]) -> Counter[tuple[float, float]]:
    """How many rounds with sampled clients had each multiplier and rate."""
    cohorts: defaultdict[tuple[str, int], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.mechanism == "poisson":
            cohorts[entry.secret, entry.round].append(entry)
    return Counter(
        (composed(e.multiplier for e in attempts), max(e.rate or 0.0 for e in attempts))
        for attempts in cohorts.values()
    )


def _separated(entries: Sequence[Entry]) -> Iterator[float]:
    """The multiplier of each secret's rounds with separated participations, as one release."""
    runs: defaultdict[tuple[str, float, int], list[int]] = defaultdict(list)
    for entry in entries:
        if entry.separation is not None:
            runs[entry.secret, entry.multiplier, entry.separation].append(entry.round)
    for (_, multiplier, separation), rounds in runs.items():
        again = len(rounds) - len(set(rounds))
        span = max(rounds) - min(rounds) + 1
        yield multiplier / sensitivity(coefficients(separation), span, again)


@lru_cache(maxsize=_LINES)  # a round asks for them all several times
def _entry(line: bytes, where: str, number: int) -> Entry:
    """What a line says; the same bytes at the same place never say anything else."""
    values = unseal(line, where)
    if (found := values.pop(_NUMBER, None)) != number:
        raise DamagedError(where, f"it is number {found!r}")
    try:
        return Entry(**values)  # it checks them
    except (TypeError, ValueError) as exc:
        raise DamagedError(where, str(exc)) from exc


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and bool(_HEX.fullmatch(value))


def _end_last_line(file: int, data: bytes, known: int) -> None:
    """After a kill: cut off half a line, or end a whole one."""
    whole, end, rest = data.rpartition(b"\n")
    if rest and data.count(b"\n") == known:
        os.ftruncate(file, len(whole + end))
    elif rest:
        _write(file, b"\n")


def _write(file: int, data: bytes) -> None:
    """Write all of it or, if the disk is full, nothing."""
    before, left = os.fstat(file).st_size, data
    try:
        while left:
            left = left[os.write(file, left) :]
    except OSError:
        os.ftruncate(file, before)
        raise
