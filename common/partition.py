"""Which simulated client holds which example, each client's own test part, and a plot of it.

The draws are those of flwr-datasets' partitioners (``common/deal.py``). This module adds what they
lack. It hands them the examples in a seeded order, because iid keeps the order and data sets are
often sorted by class. It refuses impossible requests, on which they would loop or fail. It repeats
a draw that leaves a client too few examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from common import deal
from common.datasets.split import stratified_split
from common.errors import DataError
from common.plots import BLUE, draw_counts, new_figure, save_figure
from common.seeding import Purpose, draws, permutation
from common.types import IntArray

__all__ = [
    "Request",
    "Scheme",
    "evenly",
    "local_split",
    "partition_clients",
    "plot_partition",
]

Scheme = Literal["iid", "dirichlet", "pathological", "shard", "natural"]

# A Dirichlet partition is drawn up to 11 times for each, so these are 220 draws.
_ATTEMPTS = 20
_ORDER, _DRAW, _CHOICE = range(3)  # keys of the partition's random streams


@dataclass(frozen=True)
class Request:
    """A partition to make.

    Attributes:
        scheme: "iid": equal shares in random order. "dirichlet": each class is divided in
            proportions drawn from Dirichlet(alpha) (arXiv:1905.12022). "pathological": each
            client has exactly ``classes_per_client`` classes. "shard": examples sorted by
            label are cut into shards, of which each client gets ``shards_per_client``
            (arXiv:1602.05629). "natural": one client for each value in a column.
        num_clients: number of clients; for "natural", that many are drawn if the column has more.
        min_examples: least number of examples of each client.
        alpha: concentration, > 0; small is skewed.
        classes_per_client: for "pathological".
        shards_per_client: for "shard".
    """

    scheme: Scheme
    num_clients: int
    min_examples: int = 1
    alpha: float = 0.5
    classes_per_client: int = 2
    shards_per_client: int = 2

    def __str__(self) -> str:
        detail = {
            "iid": "",
            "dirichlet": f"({self.alpha:g})",
            "pathological": f"({self.classes_per_client} classes per client)",
            "shard": f"({self.shards_per_client} shards per client)",
            "natural": "",
        }[self.scheme]
        return f"{self.scheme}{detail} partition"


def partition_clients(
    labels: IntArray,
    request: Request,
    positions: IntArray,
    *,
    seed: int,
    column: npt.NDArray[np.generic] | None = None,
) -> list[IntArray]:
    """Deal examples out to clients.

    Args:
        labels: int64 (n,), of the whole data set.
        request: the partition to make.
        positions: int64, the examples to deal out, as positions in ``labels``.
        seed: the run's seed.
        column: (n,), client ids, for "natural"; without gaps at ``positions``.

    Returns:
        Each client's positions, int64, ascending; none is in two of them. All are dealt out, except
        classes that no client was given (pathological), the rest that does not divide into shards
        (shard), and clients below ``min_examples`` or beyond ``num_clients`` (natural).

    Raises:
        DataError: the request cannot be met with these examples.
    """
    _check(request, labels[positions], column)
    order = positions[permutation(len(positions), seed, Purpose.PARTITION, _ORDER)]
    if request.scheme == "natural" and column is not None:
        parts = _natural(request, column[order], seed)
    else:
        parts = _drawn(request, labels[order], seed)
    return [np.sort(order[part]) for part in parts]


def evenly(total: int, most: int) -> IntArray:
    """Positions of at most ``most`` (0: all) of ``total`` examples, evenly spread.

    A folder's images are in the order of their classes, so all classes get their share.

    >>> evenly(10, 4).tolist()
    [0, 2, 5, 7]
    """
    count = min(most or total, total)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


def local_split(
    positions: IntArray, labels: IntArray, *, client: int, test_fraction: float, seed: int
) -> tuple[IntArray, IntArray]:
    """Split a client's examples into train and test part, label by label if numbers allow.

    Args:
        positions: int64 (m,), what the client holds.
        labels: int64 (n,), of the whole data set.
        client: its number.
        test_fraction: in [0, 1).
        seed: the run's seed.

    Returns:
        Positions of train and test, int64, in the order of ``positions``. Train is empty only if
        the client holds no example.
    """
    train, test = stratified_split(
        labels[positions], test_fraction, seed, Purpose.LOCAL_SPLIT, client
    )
    return positions[train], positions[test]


def _check(request: Request, labels: IntArray, column: npt.NDArray[np.generic] | None) -> None:
    """Refuse impossible requests, which would loop, divide by zero or drop examples."""
    clients, examples = request.num_clients, len(labels)
    num_classes = len(np.unique(labels))
    needed = clients * max(request.min_examples, 1)
    problem = None
    if clients < 1:
        problem = f"{clients} clients, expected at least 1"
    elif examples < needed:
        problem = (
            f"{clients} clients of at least {max(request.min_examples, 1)} examples need {needed}, "
            f"but {examples} are left to them: lower partition.num-clients"
        )
    elif request.scheme == "dirichlet" and not 0 < request.alpha < np.inf:
        problem = f"alpha is {request.alpha}, must be > 0"
    elif request.scheme == "pathological" and not 1 <= request.classes_per_client <= num_classes:
        problem = f"{request.classes_per_client} classes per client, but there are {num_classes}"
    elif request.scheme == "shard" and not 1 <= request.shards_per_client <= examples // clients:
        problem = (
            f"{clients} clients of {request.shards_per_client} shards each cannot be cut "
            f"from {examples} examples"
        )
    elif request.scheme == "natural" and column is None:
        problem = "needs a column of client ids, and this data set has none"
    if problem:
        raise DataError(f"{request}: {problem}")


def _drawn(request: Request, labels: IntArray, seed: int) -> list[IntArray]:
    attempts = 1 if request.scheme == "iid" else _ATTEMPTS
    streams = draws(seed, Purpose.PARTITION, _DRAW, index=np.arange(attempts))
    smallest = 0
    for stream in streams.tolist():
        for parts in _draws(request, labels, np.random.default_rng(stream)):
            least = min(len(part) for part in parts)
            if least >= request.min_examples:
                return parts
            smallest = max(smallest, least)
    raise DataError(
        f"{request}: no draw in {attempts} gave each of {request.num_clients} clients at least "
        f"{request.min_examples} of {len(labels)} examples (best: {smallest}); "
        "ask for fewer examples or clients, or a milder skew"
    )


def _natural(request: Request, column: npt.NDArray[np.generic], seed: int) -> list[IntArray]:
    parts = deal.by_value(column)
    enough = [part for part in parts if len(part) >= request.min_examples]
    if len(enough) < request.num_clients:
        raise DataError(
            f"{request}: {request.num_clients} clients asked for, but the column has "
            f"{len(enough)} with at least {request.min_examples} examples (and "
            f"{len(parts) - len(enough)} with fewer)"
        )
    chosen = permutation(len(enough), seed, Purpose.PARTITION, _CHOICE)[: request.num_clients]
    return [enough[i] for i in np.sort(chosen)]


def _draws(
    request: Request, labels: IntArray, rng: np.random.Generator
) -> Iterable[list[IntArray]]:
    n = request.num_clients
    match request.scheme:
        case "dirichlet":
            return deal.by_dirichlet(labels, n, request.alpha, rng)
        case "pathological":
            return deal.by_class(labels, n, request.classes_per_client, rng)
        case "shard":
            return deal.by_shard(labels, n, request.shards_per_client, rng)
        case _:
            return [deal.evenly_sized(len(labels), n)]


def plot_partition(
    labels_per_client: Sequence[IntArray], classes: Sequence[str], path: Path
) -> None:
    """Draw each client's number of examples (above) and their classes (below).

    Two panels on one axis stay readable for 5 or 1,000 clients and 2 or 200 classes; the stacked
    bars of flwr-datasets' plot do not.

    Args:
        labels_per_client: for each client the labels it holds, int64.
        classes: the K class names.
        path: the PNG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    num_clients, num_classes = len(labels_per_client), len(classes)
    counts = np.stack([np.bincount(k, minlength=num_classes) for k in labels_per_client], axis=1)
    height = float(np.clip(0.22 * num_classes, 1.6, 9.0))
    width = float(np.clip(0.2 * num_clients, 6, 14))
    figure = new_figure(width, 2.4 + height, purpose="drawing the partition")
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    sizes, held = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, height])

    totals = counts.sum(axis=0)
    sizes.bar(np.arange(num_clients), totals, width=0.9, color=BLUE)
    sizes.set_ylabel("images")
    sizes.set_ylim(0)
    sizes.spines[["top", "right"]].set_visible(False)
    sizes.set_title(
        f"{int(totals.sum()):,} training images on {num_clients:,} clients: "
        f"{totals.min():,} to {totals.max():,} each"
    )

    # Square root: a class of which a client has 5 shows beside one of which it has 500.
    norm = PowerNorm(0.5, vmin=0, vmax=max(int(counts.max()), 1))
    image = draw_counts(held, counts, counts.astype(np.float32), classes, norm=norm)
    held.set_ylabel("class")
    held.set_xlabel("client")
    held.xaxis.set_major_locator(MaxNLocator(nbins=25, integer=True))
    figure.colorbar(image, ax=held, label="images", pad=0.01)
    save_figure(figure, path)
