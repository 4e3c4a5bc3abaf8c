"""Is this update fit to count? Asked on the node for each client, and on the server again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from common.errors import ReplyError
from common.statistics import triangle_size

__all__ = ["check_counts", "check_fields", "check_scales", "field_shapes"]

_LARGEST = 255  # features are uint8

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


def check_fields(fields: Fields, shapes: Mapping[str, tuple[int, ...]], max_norm: float) -> None:
    """Refuse an update that must not be summed.

    Args:
        fields: one client's arrays, or one row of a reply.
        shapes: what the plan asked for.
        max_norm: bound on the L2 norm of "delta"; 0 for none.

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
        if not integers and not np.isfinite(array).all():
            raise ReplyError(f"{name} is not finite")
    if max_norm and "delta" in fields:
        norm = float(np.linalg.norm(fields["delta"].astype(np.float64)))
        if norm > max_norm:
            raise ReplyError(f"delta has norm {norm:.3g}, above the bound {max_norm:g}")


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


def check_counts(fields: Fields, num_examples: int) -> None:
    """Refuse statistics that do not add up to the examples they are said to be of.

    Raises:
        ReplyError: the sum of squares of the constant 1, or the class counts, are another number,
            or a sum is more than so many examples can give.
    """
    for name, largest in (("moments", _LARGEST), ("gram", _LARGEST**2)):
        top = int(fields[name].max()) if name in fields else 0
        if top > largest * num_examples:
            raise ReplyError(f"{name} holds {top}, too much for {num_examples} examples")
    counted = int(np.sum(fields["moments"][:, -1]))
    ones = int(fields["gram"][-1]) if "gram" in fields else counted
    if (ones, counted) != (num_examples, num_examples):
        raise ReplyError(f"statistics are of {ones} and {counted} examples, not {num_examples}")
