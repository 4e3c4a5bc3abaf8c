"""Checks for numbers that no honest client sends; they look at several fields of a row at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import ReplyError
from common.privacy.integers import check_clipped
from common.scatter import is_definite, scaled_scatter

__all__ = [
    "Limits",
    "check_gram",
    "check_moments",
    "check_positive",
    "check_steps",
    "check_update",
    "check_within",
]

_LARGEST_FEATURE = 255  # uint8

Fields = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Limits:
    """What a row claims; bounds on its numbers follow from it.

    Attributes:
        num_examples: examples behind the row; of all its clients if it stands for several.
        most_steps: the largest possible number of FedNova's effective steps.
        rounding: noise of the codec that brought the row's Gram matrix, see ``Codec.rounding``.
        clients: how many clients' arrays were added up in the row.
    """

    num_examples: int
    most_steps: float
    rounding: float = 0.0
    clients: int = 1


def check_positive(name: str, fields: Fields, _limits: Limits) -> None:
    """Refuse a number that is not positive, because a sum of updates is divided by it.

    Raises:
        ReplyError: it is not above 0.
    """
    if not (least := fields[name].min()) > 0:
        raise ReplyError(f"{name} is {least:g}, expected more than 0")


def check_steps(name: str, fields: Fields, limits: Limits) -> None:
    """Refuse steps that no client can have taken.

    Raises:
        ReplyError: they are not above 0, or more than possible.
    """
    check_positive(name, fields, limits)
    if (steps := fields[name].max()) > limits.most_steps * (1 + 1e-5):
        raise ReplyError(f"{name} is {steps:g}, expected at most {limits.most_steps:g}")


def check_moments(name: str, fields: Fields, limits: Limits) -> None:
    """Refuse class sums, unsigned (K, D), that no features of so many examples can have.

    Raises:
        ReplyError: names the problem, what was found and what is possible.
    """
    moments = fields[name].astype(np.uint64)
    # This comes first, so that the sums below cannot wrap around.
    _check_largest(name, moments, _LARGEST_FEATURE * limits.num_examples)
    counts = moments[:, -1]
    if (total := int(counts.sum())) != limits.num_examples:
        raise ReplyError(f"statistics are of {total} examples, not {limits.num_examples}")
    if (moments > np.uint64(_LARGEST_FEATURE) * counts[:, None]).any():
        raise ReplyError(f"{name} of a class are above {_LARGEST_FEATURE} times its examples")


def check_gram(name: str, fields: Fields, limits: Limits) -> None:
    """Refuse sums of products, unsigned (D (D + 1) / 2,), that no features can have.

    If the row has "moments" (K, D), which are checked before, both must fit the same examples.

    Raises:
        ReplyError: names the problem.
    """
    gram = fields[name]
    _check_largest(name, gram, _LARGEST_FEATURE**2 * limits.num_examples)
    if "moments" not in fields:
        return
    moments = fields["moments"].astype(np.uint64)
    width = moments.shape[1]
    upper = np.zeros((width, width), np.uint64)
    upper[np.triu_indices(width)] = gram
    sums = moments.sum(axis=0)
    if (upper[:, -1] != sums).any():
        raise ReplyError(f"{name}'s last column is not the sum of the moments")
    squares = np.diag(upper)
    # For integers from 0 to 255: q <= q^2 <= 255 q.
    if (squares < sums).any() or (squares > np.uint64(_LARGEST_FEATURE) * sums).any():
        raise ReplyError(f"{name}'s diagonal does not fit the sums of features")
    # Within each class too, no direction has a sum of squares below 0.
    within, length = scaled_scatter(upper, moments)
    if limits.rounding:
        spread = squares - sums.astype(np.float64) ** 2 / limits.num_examples + 1
        within[np.diag_indices(width)] += _noise(width, limits.rounding) * spread / length**2
    if not is_definite(within):
        raise ReplyError(f"{name} cannot come from features: it is not positive semidefinite")


def check_update(name: str, fields: Fields, limits: Limits) -> None:
    """Refuse integers of clipped updates that are longer than the clients' clips together.

    Raises:
        ReplyError: see ``common.privacy.integers.check_clipped``.
    """
    check_clipped(fields[name].astype(np.uint64), limits.clients)


def check_within(name: str, fields: Fields, limits: Limits) -> None:
    """Refuse more updates within the clip than there are clients.

    Raises:
        ReplyError: names the number.
    """
    _check_largest(name, fields[name], limits.clients)


def _noise(width: int, rounding: float) -> float:
    """How far below 0 noise takes an eigenvalue, as a share of each feature's spread.

    A symmetric matrix of independent noise has eigenvalues up to 2 sqrt(D) standard deviations,
    by Wigner's semicircle. No entry is off by more than two of them, so the rest is concentrated:
    six more are also enough for the few entries of the smallest matrices.
    """
    return rounding * (2 * float(np.sqrt(width)) + 6)


def _check_largest(name: str, array: npt.NDArray[np.generic], most: int) -> None:
    if (top := int(array.max())) > most:
        raise ReplyError(f"{name} holds {top}, expected at most {most}")
