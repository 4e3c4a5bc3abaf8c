"""What clients remember from round to round, and what they add to each gradient from it.

A new kind is a row of CORRECTIONS and its functions beside it; a plan then names it. Memory stays
on the client's machine, see client.memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from common.errors import ProtocolError
from common.fields import Memory, Trained, control_delta, head_shape
from common.types import ClientPlan, FloatArray
from common.words import unknown

__all__ = ["CORRECTIONS", "Correction", "find_correction"]


@dataclass(frozen=True)
class Correction:
    """One kind of memory.

    Attributes:
        memory: the remembered arrays, float32, by name: (K, d) to their shape. They begin as
            zeros.
        remember: what the client knows after training, under the same names; it is kept once the
            update has passed all checks, and used if the server counts it.
        gradient: what is added to each gradient, float32 (K, d + 1); None: nothing.
    """

    memory: Mapping[str, Callable[[int, int], tuple[int, ...]]]
    remember: Callable[[Trained], Memory]
    gradient: Callable[[ClientPlan, Memory], FloatArray] | None = None

    def shapes(self, num_classes: int, num_features: int) -> dict[str, tuple[int, ...]]:
        """Of the remembered arrays."""
        return {name: shape(num_classes, num_features) for name, shape in self.memory.items()}


def _toward_all(plan: ClientPlan, memory: Memory) -> FloatArray:
    """SCAFFOLD's c - c_i, arXiv 1910.06378."""
    difference: FloatArray = plan.arrays["control"] - memory["control"]
    return difference


def _next_control(trained: Trained) -> Memory:
    """SCAFFOLD's c_i+, which differs from c_i by what the client sends."""
    return {"control": trained.memory["control"] + control_delta(trained)}


def _away_from_own(_plan: ClientPlan, memory: Memory) -> FloatArray:
    """FedDyn's -g_i, arXiv 2111.04263."""
    return 0 - memory["control"]


def _next_slope(trained: Trained) -> Memory:
    """FedDyn's g_i - alpha delta_i; alpha is the plan's mu."""
    return {"control": trained.memory["control"] + -np.float32(trained.plan.mu) * trained.delta}


CORRECTIONS: Mapping[str, Correction] = {
    "none": Correction({}, lambda _: {}),
    "scaffold": Correction({"control": head_shape}, _next_control, _toward_all),
    "feddyn": Correction({"control": head_shape}, _next_slope, _away_from_own),
}


def find_correction(name: str) -> Correction:
    """The kind of this name.

    Raises:
        ProtocolError: there is none; names the nearest.
    """
    if name not in CORRECTIONS:
        raise ProtocolError(unknown("correction", name, CORRECTIONS))
    return CORRECTIONS[name]
