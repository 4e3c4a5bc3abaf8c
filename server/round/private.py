"""A run's differential privacy: what it decides, whom a round asks, what its releases cost.

The order of a release is what the guarantee rests on: the exact sums name the noise, the ledger has
the charge on the disk, and only then is there a number with noise that anything else could write.
A round that is done again, after a kill or from an older checkpoint, has the same noise if it has
the same sums, and nothing is charged. Other sums get other noise, and are charged like any release.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from common.config import Config
from common.privacy import factorization
from common.privacy.integers import RESOLUTION
from common.privacy.ledger import Entry, Ledger, spent
from common.privacy.noise import (
    NoiseKey,
    coins,
    digest,
    gaussian_integers,
    gaussians,
    seed_secret,
)
from common.privacy.secret import destroy_secret, keep_secret
from common.privacy.words import NEIGHBOURS, figure, sentence
from common.seeding import Purpose, draws
from common.types import IntArray
from server.record.privacy import LEDGER, SECRET
from server.strategies.one_shot import Known
from server.strategies.private import DIGEST_BYTES, Digests, Released, Terms

__all__ = ["LEDGER", "SECRET", "BudgetSpent", "Decided", "Guard"]

_NOBODY = "0"  # name of a secret that is not drawn yet
_TURNS = 0  # a round's number in draws that hold for all rounds


_cost = lru_cache(maxsize=8)(spent)  # where clients are sampled it takes seconds


class BudgetSpent(Exception):  # noqa: N818 - no error: the run ends with the head that it has
    """A release would take a run's privacy loss beyond its budget."""


@dataclass(frozen=True)
class Decided:
    """What a private run has decided on before its first round, and keeps when it goes on.

    Attributes:
        clients: the configured number of clients, which is public.
        examples: a client's typical number of examples, which is public.
        rounds: configured number.
        norm: of features in training; the calibration images' mean.
        multiplier: noise of a release, as the ledger has it.
        noise: standard deviation of what is added, in units of the clip: more than the multiplier
            if a part of the budget goes to the clip, or if later noise takes earlier noise off.
        clip: bound on the norm of an update in the first round, on features of ``norm``.
        step: factor on the noisy mean.
        divisor: what sums are divided by.
        server_lr: the strategy's own argument of this name; 0: it has none, or as it was set.
        rate: chance that a round asks a client.
        separation: rounds from one turn of a client to its next.
        vote: see ``Terms``.
    """

    clients: int
    examples: float
    rounds: int
    norm: float
    multiplier: float
    noise: float
    clip: float
    step: float
    divisor: float
    server_lr: float = 0.0
    rate: float = 1.0
    separation: int = 1
    vote: int = 0

    @property
    def terms(self) -> Terms:
        """What the strategy needs of it."""
        return Terms(
            divisor=self.divisor,
            rounds=self.rounds,
            clip=self.clip,
            unit_norm=self.norm,
            step=self.step,
            vote=self.vote,
            chained=self.separation > 1,
        )


class Guard:
    """Releases a run's sums, and counts what they cost.

    Args:
        config: of the run, which is private.
        decided: what the run has decided on before its first round.
        folder: the run folder, for ledger and secret.
        simulated: whether the noise comes from the run's seed.
        known: what a closed form needs beside its one release.
    """

    def __init__(
        self,
        config: Config,
        decided: Decided,
        folder: Path,
        *,
        simulated: bool,
        known: Known | None = None,
    ) -> None:
        self.decided, self.simulated, self.known = decided, simulated, known
        self._config, self._folder = config, folder
        self._ledger = Ledger(folder / LEDGER)
        self._is_spent = False  # whether a release was refused

    @cached_property
    def _key(self) -> NoiseKey:
        if self.simulated:
            return NoiseKey(seed_secret(self._config.seed))
        return NoiseKey(keep_secret(self._folder / SECRET))

    @property
    def spent(self) -> float:
        """Privacy loss of all releases so far, at the run's delta."""
        return self._cost(self._ledger.entries)

    def _cost(self, entries: tuple[Entry, ...]) -> float:
        return _cost(entries, self._config.privacy.delta)

    def allows(self, round_number: int) -> bool:
        """Whether a round can end with a release: it had one, or the budget has one more."""
        # Before its first release a run has no secret, and one that has ended needs none.
        has_secret = self.simulated or (self._folder / SECRET).exists()
        name = self._key.name if has_secret else _NOBODY
        entries = self._ledger.entries
        if any((e.round, e.secret) == (round_number, name) for e in entries):
            return True
        further = self._entry(round_number, bytes(DIGEST_BYTES), name, self.decided.clip)
        return self._affords(entries, further)

    def _affords(self, entries: tuple[Entry, ...], entry: Entry) -> bool:
        return self._cost((*entries, entry)) <= self._config.privacy.epsilon

    def chosen(self, round_number: int, known: Collection[int]) -> set[int] | None:
        """The clients whose turn a round is; None: the mechanism asks everyone.

        Args:
            round_number: from 1.
            known: ids of all clients that ever were there.
        """
        mechanism, ids = self._config.privacy.mechanism, np.array(sorted(known), np.int64)
        if mechanism == "poisson":
            asked = coins(self._key.secret, round_number, ids, self.decided.rate)
        elif mechanism == "min-separation":
            turns = self.decided.separation
            drawn = draws(self._config.seed, Purpose.COHORT, _TURNS, index=ids)
            asked = drawn % turns == round_number % turns
        else:
            return None
        return set(ids[asked].tolist())

    def release(
        self, round_number: int, total: IntArray, clip: float, earlier: Digests
    ) -> Released:
        """A sum with its noise, see ``server.strategies.private.Release``.

        Raises:
            BudgetSpent: the budget has nothing for these sums.
        """
        secret = self._key.secret
        name = digest(secret, round_number, total, earlier)
        entry = self._entry(round_number, name, self._key.name, clip)
        entries = self._ledger.entries
        if entry not in entries and not self._affords(entries, entry):
            self._is_spent = True
            raise BudgetSpent(self.why_spent)
        self._ledger.charge(entry)
        noise = self._noise(round_number, name, total.size, earlier)
        last = round_number >= self.decided.rounds or not self.allows(round_number + 1)
        return Released(np.add(total, noise), np.frombuffer(name, np.uint8), last)

    def _noise(self, round_number: int, name: bytes, size: int, earlier: Digests) -> IntArray:
        """The noise of sums of a digest; chained to earlier rounds' where these are given."""
        secret, scale = self._key.secret, self.decided.noise * RESOLUTION
        if not len(earlier):
            return gaussian_integers(secret, round_number, name, size, scale)
        # Each round's noise takes the last one's off again, which took off its own last one's.
        names = [*map(bytes, earlier[: round_number - 1]), name]
        drawn = (gaussians(secret, i, known, size, scale) for i, known in enumerate(names, 1))
        coefficients = factorization.coefficients(self.decided.separation)
        return np.rint(factorization.correlated(drawn, coefficients)).astype(np.int64)

    def _entry(self, round_number: int, name: bytes, secret: str, clip: float) -> Entry:
        privacy, decided = self._config.privacy, self.decided
        return Entry(
            round=round_number,
            digest=name.hex(),
            secret=secret,
            mechanism=privacy.mechanism,
            multiplier=decided.multiplier,
            clients=decided.clients,
            clip=clip,
            delta=privacy.delta,
            rate=decided.rate if privacy.mechanism == "poisson" else None,
            separation=decided.separation if privacy.mechanism == "min-separation" else None,
        )

    @property
    def why_spent(self) -> str:
        """Why the run ends before its last round."""
        budget = self._config.privacy.epsilon
        return f"the privacy budget is spent: epsilon {figure(self.spent)} of {figure(budget)}"

    def end(self, rounds: int) -> None:
        """After so many rounds a run may have ended; then its secret could only take noise off.

        A release that was refused ends it, though an earlier attempt at the round was paid for.
        """
        if self._is_spent or rounds >= self.decided.rounds or not self.allows(rounds + 1):
            destroy_secret(self._folder / SECRET)

    def summary(self) -> dict[str, Any]:
        """What the run's closing figures say of its privacy."""
        privacy = self._config.privacy
        return {
            "epsilon": privacy.epsilon,
            "delta": privacy.delta,
            "spent": self.spent,
            "unit": privacy.unit,
            "neighbours": NEIGHBOURS,
            "mechanism": privacy.mechanism,
            "noise": "seed" if self.simulated else "secret",
            "releases": len(self._ledger.entries),
            "clients": self.decided.clients,
            "typical_examples": self.decided.examples,
            "multiplier": self.decided.multiplier,
            "clip": self.decided.clip,
            "step": self.decided.step,
            "norm": self.decided.norm,
            "sentence": sentence(
                epsilon=privacy.epsilon,
                delta=privacy.delta,
                spent=self.spent,
                simulated=self.simulated,
                unit=privacy.unit,
                goes_on=bool(self._config.strategy.init_from),
            ),
        }
