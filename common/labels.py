"""Wrong labels of simulated clients, by chance or on purpose."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import TYPE_CHECKING

from common.seeding import Purpose, draws, permutation
from common.types import FeatureSet, IntArray

if TYPE_CHECKING:
    from common.experiment import ClientShare

__all__ = ["flipped", "noisy", "relabelled"]

_WHICH, _WHAT = range(2)  # keys of a client's random streams


def noisy(labels: IntArray, share: float, num_classes: int, *, seed: int, client: int) -> IntArray:
    """Give a share of one client's examples a wrong class; all wrong classes are equally likely.

    Args:
        labels: int64 (n,) in [0, num_classes), the true classes.
        share: in [0, 1); the nearest whole number of examples is changed.
        num_classes: K >= 2.
        seed: of the run.
        client: its id.

    >>> import numpy as np
    >>> noisy(np.array([0, 1, 2, 0]), 0.5, 3, seed=0, client=0).tolist()
    [0, 2, 2, 1]
    """
    chosen = permutation(len(labels), seed, Purpose.LABEL_NOISE, client, _WHICH)
    chosen = chosen[: math.floor(share * len(labels) + 0.5)]
    shift = 1 + draws(seed, Purpose.LABEL_NOISE, client, _WHAT, index=chosen) % (num_classes - 1)
    out = labels.copy()
    out[chosen] = (labels[chosen] + shift) % num_classes
    return out


def flipped(labels: IntArray, num_classes: int) -> IntArray:
    """Each label y replaced by K - 1 - y.

    If K is odd, the middle class stays (Fang et al., "Local model poisoning attacks to
    Byzantine-robust federated learning", arXiv 1911.11815).
    """
    return num_classes - 1 - labels


@lru_cache(maxsize=2)
def relabelled(
    features: FeatureSet,
    shares: tuple[ClientShare, ...],
    num_classes: int,
    noise: float,
    flipping: frozenset[int],
    seed: int,
) -> FeatureSet:
    """The same features with wrong labels in the clients' training examples.

    Args:
        features: of the whole data set; not copied.
        shares: who owns what, by client id.
        num_classes: K >= 2.
        noise: share of each client's examples whose labels are drawn.
        flipping: ids of the clients that then flip theirs.
        seed: of the run.
    """
    labels = features.labels.copy()
    for client, share in enumerate(shares):
        own = noisy(labels[share.train], noise, num_classes, seed=seed, client=client)
        labels[share.train] = flipped(own, num_classes) if client in flipping else own
    return dataclasses.replace(features, labels=labels)
