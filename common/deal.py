"""How examples are dealt out to simulated clients: one function a scheme, on labels alone.

For the same generator each gives what flwr-datasets' partitioner of the same name gives, so that
a partition can be repeated with Flower's own tools. A test compares the two. That package itself
reads Hugging Face data sets: it weighs 330 MB and takes seconds to import, so a simulation goes
without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from common.types import IntArray

__all__ = ["Parts", "by_class", "by_dirichlet", "by_shard", "by_value", "evenly_sized"]

# Of each client the rows it gets, int64; disjoint, in no order that means anything.
Parts: TypeAlias = list[IntArray]

# flwr-datasets draws this many times from a generator before it gives up.
_DIRICHLET_DRAWS = 11


def evenly_sized(count: int, clients: int) -> Parts:
    """Consecutive rows for each client; sizes differ by one at most.

    >>> [part.tolist() for part in evenly_sized(5, 2)]
    [[0, 1, 2], [3, 4]]
    """
    return np.array_split(np.arange(count, dtype=np.int64), clients)


def by_dirichlet(
    labels: IntArray, clients: int, alpha: float, rng: np.random.Generator
) -> Iterator[Parts]:
    """Each class is divided in proportions drawn from Dirichlet(alpha) (arXiv:1905.12022).

    Args:
        labels: int64 (n,).
        clients: how many.
        alpha: concentration, > 0.
        rng: what is drawn from.

    Yields:
        Draw after draw of one generator; a client may have nothing.
    """
    rows_of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(_DIRICHLET_DRAWS):
        shares: list[Parts] = []
        for rows in rows_of_class:
            ends = np.cumsum(rng.dirichlet(np.full(clients, alpha))) * len(rows)
            shares.append(np.split(rows, ends[:-1].astype(np.int64)))
        yield [np.concatenate(own) for own in zip(*shares, strict=True)]


def by_class(
    labels: IntArray, clients: int, classes_each: int, rng: np.random.Generator
) -> Iterator[Parts]:
    """Each client has exactly so many classes; who share a class have equal parts of it.

    The first class of client i is i modulo the number of classes, so that no class is left to
    nobody where the clients could hold them all; the others are drawn (arXiv:2102.02079).

    Args:
        labels: int64 (n,).
        clients: how many.
        classes_each: at most as many as there are.
        rng: what is drawn from.

    Yields:
        One draw; none where a class went to more clients than it has examples.
    """
    classes = np.unique(labels)
    owners: list[list[int]] = [[] for _ in classes]
    for client in range(clients):
        held = [client % len(classes)]
        while len(held) < classes_each:
            drawn = int(rng.choice(len(classes), size=1)[0])
            if drawn not in held:
                held.append(drawn)
        for number in held:
            owners[number].append(client)
    parts: list[Parts] = [[] for _ in range(clients)]
    for label, holders in zip(classes, owners, strict=True):
        rows = np.flatnonzero(labels == label)
        if len(holders) > len(rows):
            return
        if holders:
            for client, share in zip(holders, np.array_split(rows, len(holders)), strict=True):
                parts[client].append(share)
    yield [np.concatenate(own) for own in parts]


def by_shard(
    labels: IntArray, clients: int, shards_each: int, rng: np.random.Generator
) -> Iterator[Parts]:
    """Rows sorted by label are cut into equal shards, dealt out at random (arXiv:1602.05629).

    Args:
        labels: int64 (n,).
        clients: how many.
        shards_each: for each client; all shards together hold n rows at most.
        rng: what is drawn from.

    Yields:
        One draw. What does not fill a shard is left over, and so are shards beyond those needed.
    """
    size = len(labels) // (clients * shards_each)
    count = len(labels) // size
    shards = np.argsort(labels, kind="stable")[: count * size].reshape(count, size)
    chosen = rng.permutation(count)[: clients * shards_each]
    yield [*shards[chosen].reshape(clients, -1)]


def by_value(column: npt.NDArray[np.generic]) -> Parts:
    """The rows of each value of a column (n,), in the order of the sorted values."""
    _, numbers, counts = np.unique(column, return_inverse=True, return_counts=True)
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(counts)[:-1])
