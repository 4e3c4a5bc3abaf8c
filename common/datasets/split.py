"""A seeded split into train and test that keeps the classes' proportions."""

from __future__ import annotations

import numpy as np

from common.seeding import Purpose, draws, permutation
from common.types import IntArray

__all__ = ["stratified_split"]

_GOLDEN = 0x9E3779B97F4A7C15  # the golden ratio's fraction of 2**64
_TURNS = -1  # key of the order of the classes; no client has this number


def stratified_split(
    labels: IntArray, fraction: float, seed: int, purpose: Purpose, *keys: int
) -> tuple[IntArray, IntArray]:
    """Split off about ``fraction`` of the examples, as evenly over the classes as possible.

    Each class gives its share, rounded down; the classes with the largest remainders give one more.
    A class gives its last example only if no other class can, and one example always stays.
    Classes of equal remainder take turns from client to client, or small clients would all keep
    the same classes to test with, and nobody would train on these.

    Args:
        labels: int64 (n,).
        fraction: share of the examples that go to test, in [0, 1).
        seed: the run's seed.
        purpose: what the split is for.
        keys: further parts of the random stream's name, for example the client; the turn is that
            of the last of them.

    Returns:
        Positions of train and of test: int64, ascending, each of the n in one of them.

    >>> labels = np.repeat([0, 1], [6, 4])
    >>> train, test = stratified_split(labels, 0.3, 0, Purpose.SPLIT)
    >>> labels[test].tolist()
    [0, 0, 1]
    """
    values, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quota = counts * fraction
    take = np.floor(quota).astype(np.int64)
    missing = min(int(np.floor(len(labels) * fraction + 0.5)), len(labels) - 1) - int(take.sum())
    gives_last = take >= counts - 1
    remainder = np.round(quota - take, 9)  # so that equal ones are equal in floats
    turn = _turns(values, seed, purpose, keys[-1] if keys else 0)
    take[np.lexsort((turn, -remainder, gives_last))[: max(missing, 0)]] += 1

    order = permutation(len(labels), seed, purpose, *keys)
    is_test = np.zeros(len(labels), bool)
    for k in range(len(values)):
        is_test[order[inverse[order] == k][: take[k]]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _turns(classes: IntArray, seed: int, purpose: Purpose, client: int) -> IntArray:
    """Each class's place in this client's order.

    The order is seeded and the same for all, and each client begins elsewhere in it: steps of the
    golden ratio spread any number of clients evenly.
    """
    place = np.empty(len(classes), np.int64)
    place[np.argsort(draws(seed, purpose, _TURNS, index=classes), kind="stable")] = np.arange(
        len(classes)
    )
    begin = ((int(client) * _GOLDEN) % (1 << 64)) * len(classes) >> 64
    return (place - begin) % max(len(classes), 1)
