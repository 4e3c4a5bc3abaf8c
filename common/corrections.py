"""What clients remember between rounds, and what they add to each gradient because of it.

To add a kind, add a row to CORRECTIONS and write its functions here; a plan then names it. Memory
stays on the client's machine, see client.memory.
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
    """One kind of memory and its effect on gradients.

    Attributes:
        memory: for each remembered array its name, and a function from (K, d) to its shape.
            Arrays are float32 and begin as zeros.
        remember: computes the new arrays after training, under the same names. They are kept once
            the update has passed all checks, and used if the server counts the update.
        gradient: computes what is added to each gradient, float32 (K, d + 1); None: nothing.
        of_sgd: whether it is only right for SGD, because it takes the delta for a sum of gradients
            times the learning rate.
    """

    memory: Mapping[str, Callable[[int, int], tuple[int, ...]]]
    remember: Callable[[Trained], Memory]
    gradient: Callable[[ClientPlan, Memory], FloatArray] | None = None
    of_sgd: bool = False

    def shapes(self, num_classes: int, num_features: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the remembered arrays, by name."""
        return {name: shape(num_classes, num_features) for name, shape in self.memory.items()}


def _toward_all(plan: ClientPlan, memory: Memory) -> FloatArray:
    """SCAFFOLD's c - c_i, arXiv 1910.06378."""
    difference: FloatArray = plan.arrays["control"] - memory["control"]
    return difference


def _next_control(trained: Trained) -> Memory:
    """SCAFFOLD's c_i+: c_i plus the control delta that the client sends."""
    return {"control": trained.memory["control"] + control_delta(trained)}


def _away_from_own(_plan: ClientPlan, memory: Memory) -> FloatArray:
    """FedDyn's -g_i, arXiv 2111.04263."""
    return 0 - memory["control"]


def _next_slope(trained: Trained) -> Memory:
    """FedDyn's g_i - alpha delta_i; alpha is the plan's mu."""
    return {"control": trained.memory["control"] + -np.float32(trained.plan.mu) * trained.delta}


CORRECTIONS: Mapping[str, Correction] = {
    "none": Correction({}, lambda _: {}),
    "scaffold": Correction({"control": head_shape}, _next_control, _toward_all, of_sgd=True),
    "feddyn": Correction({"control": head_shape}, _next_slope, _away_from_own),
}


def find_correction(name: str) -> Correction:
    """The correction of this name.

    Raises:
        ProtocolError: there is none; the error names the nearest.
    """
    if name not in CORRECTIONS:
        raise ProtocolError(unknown("correction", name, CORRECTIONS))
    return CORRECTIONS[name]
