"""Is this update fit to count? Asked on the node for each client, and on the server again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from common.errors import ReplyError
from common.statistics import triangle_size

__all__ = ["LARGEST", "check_fields", "check_scales", "check_statistics", "field_shapes"]

LARGEST = 1e30
"""The largest magnitude that a number of one client's update may have."""

_LARGEST_FEATURE = 255  # uint8
_ROUNDING = 1e-9  # of a sum of squares within classes, as a share of the whole one

Fields = Mapping[str, npt.NDArray[np.generic]]


def field_shapes(
    fields: Sequence[str], num_classes: int, num_features: int
) -> dict[str, tuple[int, ...]]:
    """Shape of one client's part of each named field."""
    width = num_features + 1
    known = {
        "delta": (num_classes, width),
        "control_delta": (num_classes, width),
        "normalized_delta": (num_classes, width),
        "effective_steps": (1,),
        "fair_delta": (num_classes, width),
        "fair_scale": (1,),
        "gram": (triangle_size(width),),
        "moments": (num_classes, width),
    }
    return {name: known[name] for name in fields}


def check_fields(
    fields: Fields,
    shapes: Mapping[str, tuple[int, ...]],
    max_norm: float,
    largest: float = LARGEST,
) -> None:
    """Refuse an update that must not be summed.

    Args:
        fields: one client's arrays, or one row of a reply.
        shapes: what the plan asked for.
        max_norm: bound on the L2 norm of "delta"; 0 for none.
        largest: magnitude of any number in a field of floats.

    Raises:
        ReplyError: names the field, what it is and what was expected.
    """
    if set(fields) != set(shapes):
        raise ReplyError(f"sent the fields {sorted(fields)}, expected {sorted(shapes)}")
    for name, shape in shapes.items():
        array = fields[name]
        if array.shape != shape:
            raise ReplyError(f"{name} is {array.shape}, expected {shape}")
        integers = name in ("gram", "moments")
        if integers and array.dtype.kind != "u":
            raise ReplyError(f"{name} has dtype {array.dtype}, expected unsigned integers")
        if not integers and array.dtype != np.float32:
            raise ReplyError(f"{name} has dtype {array.dtype}, expected float32")
        if not integers:
            _check_magnitude(name, array, largest)
    if max_norm and "delta" in fields:
        norm = float(np.linalg.norm(fields["delta"].astype(np.float64)))
        if norm > max_norm:
            raise ReplyError(f"delta has norm {norm:.3g}, above the bound {max_norm:g}")


def _check_magnitude(name: str, array: npt.NDArray[np.generic], largest: float) -> None:
    if not np.isfinite(array).all():
        raise ReplyError(f"{name} is not finite")
    # A finite number may still be so large that the sum with others is not.
    if np.abs(array).max(initial=0) > largest:
        raise ReplyError(f"{name} holds numbers above {largest:g}")


def check_scales(fields: Fields, most_steps: float) -> None:
    """Refuse the numbers by which a sum of updates is divided, where no client can have them.

    Args:
        fields: one client's arrays, or one row of a reply.
        most_steps: that FedNova's effective steps can be.

    Raises:
        ReplyError: they are not above 0, or more steps than there can have been.
    """
    for name in ("effective_steps", "fair_scale"):
        if name in fields and not fields[name].min() > 0:
            raise ReplyError(f"{name} is {fields[name].min():g}, expected more than 0")
    if "effective_steps" in fields and fields["effective_steps"].max() > most_steps * (1 + 1e-5):
        steps = fields["effective_steps"].max()
        raise ReplyError(f"effective_steps is {steps:g}, expected at most {most_steps:g}")


def check_statistics(fields: Fields, num_examples: int) -> None:
    """Refuse statistics that no features of so many examples can have.

    Args:
        fields: "moments" (K, D) and, maybe, "gram" (D (D + 1) / 2,), unsigned integers, see
            common.statistics.
        num_examples: that they are said to be of; also of several clients together.

    Raises:
        ReplyError: names what cannot be, what was found and what is possible.
    """
    moments = fields["moments"].astype(np.uint64)
    # First of all: what is left cannot wrap around when it is added up.
    _check_largest("moments", moments, _LARGEST_FEATURE * num_examples)
    counts = moments[:, -1]
    if (total := int(counts.sum())) != num_examples:
        raise ReplyError(f"statistics are of {total} examples, not {num_examples}")
    if (moments > np.uint64(_LARGEST_FEATURE) * counts[:, None]).any():
        raise ReplyError(f"moments of a class are above {_LARGEST_FEATURE} times its examples")
    if "gram" in fields:
        _check_gram(fields["gram"], moments)


def _check_largest(name: str, array: npt.NDArray[np.generic], most: int) -> None:
    if (top := int(array.max())) > most:
        raise ReplyError(f"{name} holds {top}, expected at most {most}")


def _check_gram(gram: npt.NDArray[np.generic], moments: npt.NDArray[np.uint64]) -> None:
    """Refuse sums of products that do not go with the sums of the same examples."""
    counts, width = moments[:, -1], moments.shape[1]
    _check_largest("gram", gram, _LARGEST_FEATURE**2 * int(counts.sum()))
    upper = np.zeros((width, width), np.uint64)
    upper[np.triu_indices(width)] = gram
    sums = moments.sum(axis=0)
    if (upper[:, -1] != sums).any():
        raise ReplyError("gram's last column is not the sum of the moments")
    squares = np.diag(upper)
    # Of integers from 0 to 255: q <= q^2 <= 255 q.
    if (squares < sums).any() or (squares > np.uint64(_LARGEST_FEATURE) * sums).any():
        raise ReplyError("gram's diagonal does not go with the sums of features")
    # Within each class as well, no direction has a sum of squares below 0.
    present = counts > 0
    means = moments[present] / np.sqrt(counts[present, None])
    within = upper + np.triu(upper, 1).T - means.T @ means
    length = np.sqrt(np.maximum(squares, 1))
    within /= np.outer(length, length)
    within[np.diag_indices(width)] += _ROUNDING
    try:
        np.linalg.cholesky(within)
    except np.linalg.LinAlgError as exc:
        raise ReplyError(
            "gram is not that of any features: it is not positive semidefinite"
        ) from exc
