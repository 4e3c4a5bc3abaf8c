"""The backdoor of malicious simulated clients: examples with a trigger, labelled as the target.

The trigger is a pattern in feature space: some features have the largest value that they have on
the server's calibration images. So it depends on public quantities and the run's seed alone, all
malicious clients have the same one, and it stays within what real images give. Bagdasaryan et al.,
"How to backdoor federated learning", arXiv 1807.00459; Sun et al., "Can you really backdoor
federated learning?", arXiv 1911.07963.

Differs from the papers: they change pixels, or take images of a rare kind. Here clients' features
are frozen, and a trigger on an image is a change of its features.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from common.seeding import Purpose, smallest
from common.types import FeatureSet, IntArray

if TYPE_CHECKING:
    from common.experiment import ClientShare

__all__ = ["POISONED_SHARE", "TRIGGER_SHARE", "Trigger", "draw_trigger", "poisoned"]

TRIGGER_SHARE = 0.05
"""Share of the features that the trigger sets, rounded up."""
POISONED_SHARE = 0.5
"""Share of a malicious client's examples that carry the trigger, rounded up."""

_TRIGGER, _EXAMPLES = range(2)  # what is drawn


@dataclass(frozen=True)
class Trigger:
    """Features of fixed value; hashable, so that what is made with it can be cached.

    Attributes:
        positions: of t of the d features, ascending.
        values: of these, uint8 numbers.
    """

    positions: tuple[int, ...]
    values: tuple[int, ...]

    def on(self, q: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A copy of uint8 (n, d) in which every row carries the trigger."""
        out = np.array(q)
        out[:, list(self.positions)] = self.values
        return out


def draw_trigger(calibration: npt.NDArray[np.uint8], seed: int) -> Trigger:
    """The trigger of a run.

    Args:
        calibration: uint8 (m, d), features of the server's calibration images. Features that are
            the same on all of them are not used: they say nothing.
        seed: of the run.
    """
    largest = calibration.max(axis=0)
    varying = np.flatnonzero(largest > calibration.min(axis=0))
    count = math.ceil(TRIGGER_SHARE * calibration.shape[1])
    positions = smallest(varying, count, seed, Purpose.BACKDOOR, _TRIGGER)
    return Trigger(tuple(positions.tolist()), tuple(largest[positions].tolist()))


@lru_cache(maxsize=2)
def poisoned(
    features: FeatureSet,
    shares: tuple[ClientShare, ...],
    malicious: frozenset[int],
    trigger: Trigger,
    target: int,
    seed: int,
) -> FeatureSet:
    """The features with the malicious clients' examples poisoned; a copy of all of them.

    Args:
        features: of the whole data set.
        shares: who owns what, by client id.
        malicious: ids of the malicious clients.
        trigger: what their poisoned examples carry.
        target: the class that these are labelled as.
        seed: of the run; each client draws its own examples.
    """
    q, labels = np.array(features.q), features.labels.copy()
    for client in sorted(malicious):
        chosen = _drawn(shares[client].train, seed, client)
        q[chosen], labels[chosen] = trigger.on(q[chosen]), target
    return dataclasses.replace(features, q=q, labels=labels)


def _drawn(own: IntArray, seed: int, client: int) -> IntArray:
    count = math.ceil(POISONED_SHARE * len(own))
    return smallest(own, count, seed, Purpose.BACKDOOR, _EXAMPLES, client)
