"""The objective that a cohort's clients minimise, and how they do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.types import IntArray, LocalTraining

__all__ = ["Objective"]

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Objective:
    """Terms beside the cross-entropy, and the settings of SGD; see ``client.sgd.train_head``.

    Attributes:
        training: hyperparameters.
        mu: proximal coefficient.
        corrections: from clients' ids (m,) to (m, K, d + 1), added to each gradient; called once
            for each chunk, in a worker thread.
        preconditioner: (d + 1, d + 1), multiplies the data's gradient from the right.
        unit_norm: norm that each example's features are given, without a bias; 0: as they are.
        private: whether losses stay 0, unless a client is trained by ordinary steps, and no last
            bit of a client depends on who else is in its chunk. A product of several clients'
            examples is faster, but BLAS may round it by its shape.
        local_epochs: int64 by client, instead of ``training.local_epochs``.
        batch_sizes: int64 by client, instead of ``training.batch_size``.
    """

    training: LocalTraining
    mu: float = 0.0
    corrections: Callable[[IntArray], Floats] | None = None
    preconditioner: Floats | None = None
    unit_norm: float = 0.0
    private: bool = False
    local_epochs: IntArray | None = None
    batch_sizes: IntArray | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a step only adds examples."""
        training = self.training
        extra = self.mu or training.momentum or training.weight_decay
        return not extra and self.corrections is None

    def epochs(self, clients: IntArray) -> IntArray:
        return _each(self.local_epochs, self.training.local_epochs, clients)

    def batches(self, clients: IntArray) -> IntArray:
        return _each(self.batch_sizes, self.training.batch_size, clients)


def _each(given: IntArray | None, default: int, clients: IntArray) -> IntArray:
    if given is None:
        return np.full(len(clients), default, np.int64)
    chosen: IntArray = np.asarray(given, np.int64)[clients]
    return chosen
