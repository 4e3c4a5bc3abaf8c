"""The strongest test of membership, on the noise that a run's server would add.

The canary is a client whose update is as long as the clip allows in every round in which it takes
part, in one entry alone. Noise is alike in all entries, so no other client is easier to find.
"""

from __future__ import annotations

import math
from itertools import count, islice

import numpy as np
import numpy.typing as npt

from common.privacy import factorization
from common.privacy.integers import RESOLUTION
from common.privacy.noise import gaussians, seed_secret
from common.privacy.rule import Mechanism
from common.seeding import Purpose, uniform
from server.round.private import Decided
from simulations.probe.audit.membership import Membership, judged

__all__ = ["find_canary", "released_noise"]

Doubles = npt.NDArray[np.float64]

_WITH, _WITHOUT = b"canary is there", b"canary is not there"


def find_canary(decided: Decided, mechanism: Mechanism, draws: int, delta: float) -> Membership:
    """How often whoever knows all else tells whether the canary took part in a run.

    Args:
        decided: noise, clip and rounds of the run.
        mechanism: how clients come to take part.
        draws: of the noise of all rounds, with the canary and without.
        delta: of the run.
    """
    signal = math.hypot(RESOLUTION, decided.vote)  # an update that is within the clip also votes
    scale, b = decided.noise * RESOLUTION, decided.separation
    with_it = released_noise(decided, draws, _WITH) / scale
    without = released_noise(decided, draws, _WITHOUT) / scale
    if mechanism == "poisson":
        with_it += signal / scale * _tossed(decided, draws)
        inside, outside = (
            _sampled(seen, signal / scale, decided.rate) for seen in (with_it, without)
        )
        return judged(inside, outside, 0.0, delta, normal=False)
    turn = signal / scale * (np.arange(decided.rounds) % b == 0)[:, None]
    expected = _mixed(turn, b)
    length = float(np.linalg.norm(expected))
    inside, outside = (
        (_mixed(seen, b) * expected).sum(axis=0) / length for seen in (with_it + turn, without)
    )
    return judged(inside, outside, length / 2, delta)


def released_noise(decided: Decided, draws: int, name: bytes) -> Doubles:
    """One entry's noise in each round of many runs that differ in their secret: (rounds, draws).

    Args:
        decided: noise and rounds.
        draws: how many runs.
        name: what the noise is named by, in place of a digest of sums.
    """
    secrets = [*islice(map(seed_secret, count()), draws)]
    scale, c = decided.noise * RESOLUTION, factorization.coefficients(decided.separation)
    drawn = [
        np.array([gaussians(secret, number, name, 1, scale)[0] for secret in secrets])
        for number in range(1, decided.rounds + 1)
    ]
    if len(c) == 1:
        return np.rint(drawn)
    return np.rint([factorization.correlated(drawn[: t + 1], c) for t in range(len(drawn))])


def _mixed(seen: Doubles, separation: int) -> Doubles:
    """C times what is seen, (rounds, ...): there the noise of different rounds is independent."""
    out = np.zeros_like(seen)
    for k, c in enumerate(factorization.coefficients(separation)[: len(seen)]):
        out[k:] += c * seen[: len(seen) - k]
    return out


def _sampled(seen: Doubles, signal: float, rate: float) -> Doubles:
    """Logarithm of the likelihood ratio where each round asks by a coin, (draws,)."""
    odds = np.log1p(-rate) if rate < 1 else -np.inf
    asked = math.log(rate) + signal * seen - signal**2 / 2
    return np.asarray(np.logaddexp(odds, asked).sum(axis=0))


def _tossed(decided: Decided, draws: int) -> Doubles:
    """1 where the canary is asked, (rounds, draws)."""
    shape = (decided.rounds, draws)
    tossed = uniform(0, Purpose.COHORT, index=np.arange(decided.rounds * draws)).reshape(shape)
    return (tossed < decided.rate).astype(np.float64)
