"""What noise costs: epsilon at a delta, for one client more or less.

Gaussian releases are accounted exactly, see ``gaussian``. Rounds with sampled clients are accounted
by the privacy loss distributions of dp-accounting, which are bounds from above (Doroshenko et al.,
arXiv 2207.04380). Every rounding here goes to the side of more noise.

A multiplier is the noise's standard deviation in units of the clip. Of one Gaussian release it is
called sigma; mu is 1 / sigma.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, reduce
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from common.cache import note_use
from common.errors import DamagedError, MissingExtraError
from common.files import cache_root
from common.privacy.gaussian import (
    check_delta,
    check_positive,
    composed,
    gaussian_epsilon,
    gaussian_sigma,
)
from common.readback import JsonFile

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

__all__ = [
    "fixed_size_epsilon",
    "poisson_epsilon",
    "poisson_multiplier",
    "sampled_epsilon",
]

_STEP = 1e-4  # of privacy loss
_STEPS_OF_LOSS = 50.0  # at least, in one round's standard deviation of privacy loss
_MOST_STEPS = 30_000  # in all of a round's losses: large losses need no finer ones
_TAIL = 9.0  # standard deviations that a loss distribution covers
_TOLERANCE = 1e-4  # of a calibrated epsilon
_MOST_TRIES = 40
# Above this epsilon sampling is counted as if it hid nothing: loss distributions get long then.
_LARGE = 1e4

_FIGURE = JsonFile("figure of privacy in the cache")


@lru_cache(maxsize=256)
def poisson_multiplier(epsilon: float, delta: float, rate: float, rounds: int) -> float:
    """The noise multiplier of each round if clients take part by independent coins.

    Args:
        epsilon: of all rounds together, above 0.
        delta: of all rounds together.
        rate: each client's probability of taking part in a round.
        rounds: how many, at least 1.

    Returns:
        The least multiplier, up to a relative 1e-4 of epsilon, whose ``poisson_epsilon`` is at most
        ``epsilon``. Computing it takes seconds; it is kept in the cache.

    Raises:
        ValueError: an argument is out of its range.
        MissingExtraError: dp-accounting is not installed.
    """
    check_positive("epsilon", epsilon)
    _check_sampling(delta, rate, rounds)
    full = gaussian_sigma(epsilon, delta) * math.sqrt(rounds)
    if rate == 1 or epsilon > _LARGE:
        return full
    return _cached_figure(
        {"of": "multiplier", "epsilon": epsilon, "delta": delta, "rate": rate, "rounds": rounds},
        lambda: _calibrated(
            lambda z: sampled_epsilon([(z, rate, rounds)], delta), epsilon, rate * full
        ),
    )


@lru_cache(maxsize=256)
def poisson_epsilon(z: float, delta: float, rate: float, rounds: int) -> float:
    """Epsilon of rounds with noise multiplier ``z`` if clients take part by independent coins.

    Args:
        z: noise multiplier of each round.
        delta: of all rounds together.
        rate: each client's probability of taking part in a round.
        rounds: how many, at least 1.

    Raises:
        ValueError: an argument is out of its range.
        MissingExtraError: dp-accounting is not installed.
    """
    check_positive("z", z)
    _check_sampling(delta, rate, rounds)
    if rate == 1:
        return gaussian_epsilon(composed([z] * rounds), delta)
    return _cached_figure(
        {"of": "epsilon", "z": z, "delta": delta, "rate": rate, "rounds": rounds},
        lambda: sampled_epsilon([(z, rate, rounds)], delta),
    )


def fixed_size_epsilon(z: float, delta: float, share: float, rounds: int) -> float:
    """Epsilon that can be shown if each round has a fixed number of clients, without replacement.

    Somebody else takes the place of who is not drawn. Neighbours then differ in one client's data
    and not in its presence, and a sum moves by twice the clip, so the multiplier counts half.
    This is why such cohorts are refused.

    Args:
        z: noise multiplier of each round.
        delta: of all rounds together.
        share: clients of a round, of all clients.
        rounds: how many, at least 1.

    Returns:
        A bound from above for the relation "replace one". It allows the old and the new update to
        lie on opposite sides of the update of who takes their place.

    Raises:
        ValueError, MissingExtraError: as ``poisson_epsilon``.
    """
    check_positive("z", z)
    _check_sampling(delta, share, rounds)
    if share == 1:
        return gaussian_epsilon(composed([z / 2] * rounds), delta)
    return _cached_figure(
        {"of": "fixed size", "z": z, "delta": delta, "share": share, "rounds": rounds},
        lambda: _epsilon([(z / 2, share, rounds)], delta, replaced=True),
    )


def sampled_epsilon(parts: Sequence[tuple[float, float, int]], delta: float) -> float:
    """Epsilon of rounds that differ in their noise, by privacy loss distributions.

    Args:
        parts: (noise multiplier, rate of taking part, number of rounds) of each kind of round.
        delta: of all rounds together.

    Returns:
        A bound from above, within about 1e-3 of the truth.

    Raises:
        MissingExtraError: dp-accounting is not installed.
    """
    whole = gaussian_epsilon(composed(z / math.sqrt(rounds) for z, _, rounds in parts), delta)
    return whole if whole > _LARGE else _epsilon(parts, delta, replaced=False)


def _epsilon(parts: Sequence[tuple[float, float, int]], delta: float, *, replaced: bool) -> float:
    step = max(_step(z, rate) for z, rate, _ in parts)
    losses = [
        _loss_of_round(z, rate, step, replaced).self_compose(rounds) for z, rate, rounds in parts
    ]
    with np.errstate(over="ignore"):  # it divides by masses of nearly 0, and infinity is right
        return float(reduce(lambda a, b: a.compose(b), losses).get_epsilon_for_delta(delta))


def _step(z: float, rate: float) -> float:
    """How finely a round's privacy loss is divided. Coarser is a larger epsilon, and faster."""
    largest = math.log1p(rate * math.expm1(min(_TAIL / z + 0.5 / z**2, 700.0)))
    return max(min(_STEP, rate / z / _STEPS_OF_LOSS), largest / _MOST_STEPS)


@lru_cache(maxsize=8)
def _loss_of_round(z: float, rate: float, step: float, replaced: bool) -> PrivacyLossDistribution:
    try:
        from dp_accounting import NeighboringRelation
        from dp_accounting.pld import privacy_loss_distribution as pld
    except ImportError as exc:
        purpose = "accounting for sampled clients"
        raise MissingExtraError("dp-accounting", "privacy", purpose) from exc
    relations = NeighboringRelation
    relation = relations.REPLACE_ONE if replaced else relations.ADD_OR_REMOVE_ONE
    return pld.from_gaussian_mechanism(
        z, sampling_prob=rate, value_discretization_interval=step, neighboring_relation=relation
    )


def _calibrated(epsilon_of: Callable[[float], float], epsilon: float, start: float) -> float:
    """The least z, nearly, whose epsilon is at most the asked one; a few evaluations."""

    def excess(z: float) -> float:
        return math.log(max(epsilon_of(z), 1e-12) / epsilon)

    low = high = start
    at_low = at_high = excess(start)
    while at_high > 0:
        low, at_low = high, at_high
        high *= 1.5
        at_high = excess(high)
    while at_low <= 0:
        high, at_high = low, at_low
        low /= 1.5
        at_low = excess(low)
    for _ in range(_MOST_TRIES):
        if at_high > -_TOLERANCE:
            break
        # log epsilon is nearly linear in log z. Aim within the tolerance, not at its edge, and
        # never so near an end that the interval stays as it is.
        part = (at_low + _TOLERANCE / 2) / (at_low - at_high)
        z = low * (high / low) ** min(max(part, 0.02), 0.98)
        if (at_z := excess(z)) > 0:
            low, at_low = z, at_z
        else:
            high, at_high = z, at_z
    return high


def _cached_figure(question: Mapping[str, str | float], answer: Callable[[], float]) -> float:
    """A figure from the cache, or else computed. What is damaged there is computed again."""
    try:
        asked = {**question, "dp-accounting": version("dp-accounting")}
    except ImportError:
        return answer()  # which says what is missing
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    file = cache_root() / "privacy" / f"{key}.json"
    with suppress(OSError, DamagedError):
        found = _FIGURE.read(file)
        if {name: found.get(name) for name in asked} == asked and type(found.get("is")) is float:
            note_use(file)
            return float(found["is"])
    figure = answer()
    with suppress(OSError):  # a cache that cannot be written only costs time
        _FIGURE.write(file, {**asked, "is": figure})
    return figure


def _check_sampling(delta: float, rate: float, rounds: int) -> None:
    check_delta(delta)
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}, expected above 0 and at most 1")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
