"""Whether an update may be aggregated. The node checks each client, and the server again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from common.errors import ReplyError
from common.types import Layout

__all__ = ["LARGEST", "check_fields"]

LARGEST = 1e30
"""The largest magnitude of any number in one client's update."""


def check_fields(
    fields: Mapping[str, npt.NDArray[np.generic]],
    layouts: Mapping[str, Layout],
    max_norm: float,
    largest: float = LARGEST,
) -> None:
    """Refuse an update that must not be summed.

    Args:
        fields: one client's arrays, or one row of a reply.
        layouts: of the fields that the plan asks for, see ``common.fields.field_layouts``.
        max_norm: bound on the L2 norm of "delta"; 0: no bound.
        largest: bound on the magnitude of any number in a field of floats.

    Raises:
        ReplyError: names the field, what was found and what was expected.
    """
    if set(fields) != set(layouts):
        raise ReplyError(f"sent the fields {sorted(fields)}, expected {sorted(layouts)}")
    for name, layout in layouts.items():
        array = fields[name]
        if array.shape != layout.shape:
            raise ReplyError(f"{name} is {array.shape}, expected {layout.shape}")
        if layout.kind == "u":
            if array.dtype.kind != "u":
                raise ReplyError(f"{name} has dtype {array.dtype}, expected unsigned integers")
            continue
        if array.dtype != np.float32:
            raise ReplyError(f"{name} has dtype {array.dtype}, expected float32")
        _check_magnitude(name, array, largest)
    if max_norm and "delta" in fields:
        norm = float(np.linalg.norm(fields["delta"].astype(np.float64)))
        if norm > max_norm:
            raise ReplyError(f"delta has norm {norm:.3g}, above the bound {max_norm:g}")


def _check_magnitude(name: str, array: npt.NDArray[np.generic], largest: float) -> None:
    if not np.isfinite(array).all():
        raise ReplyError(f"{name} is not finite")
    # The sum of finite numbers need not be finite.
    if np.abs(array).max(initial=0) > largest:
        raise ReplyError(f"{name} holds numbers above {largest:g}")
