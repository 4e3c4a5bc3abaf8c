"""How good heads are on the server's test set, and whether they may be kept."""

from __future__ import annotations

import time

import numpy as np

from common.config import Config
from common.evaluation import Evaluation, evaluate
from common.experiment import held_out_positions
from common.types import FeatureSet, Head
from server.round.backdoor import Backdoor, backdoor_of
from server.round.replies import LARGEST_LOSS

__all__ = ["Judge"]


class Judge:
    """Evaluates heads on the server's test set, the same one only once.

    Args:
        test: the server's test set.
        backdoor: what a backdoor is measured on, if there is one.

    Attributes:
        test: as given.
        seconds: time that evaluations have taken so far.
    """

    def __init__(self, test: FeatureSet, backdoor: Backdoor | None = None) -> None:
        self.test, self.seconds = test, 0.0
        self._backdoor = backdoor
        self._last: tuple[Head, Evaluation] | None = None

    @classmethod
    def of(cls, config: Config, features: FeatureSet) -> Judge:
        """The judge of a run, with the features of the whole data set.

        Raises:
            ConfigError: a backdoor's target is no class of the data.
        """
        return cls(features.select(held_out_positions(config)), backdoor_of(config, features))

    def evaluate(self, head: Head) -> Evaluation:
        """How good a head is."""
        if self._last is None or self._last[0] is not head:
            started = time.perf_counter()
            self._last = head, evaluate(head, self.test)
            self.seconds += time.perf_counter() - started
        return self._last[1]

    def backdoor(self, head: Head) -> float | None:
        """How well the backdoor works with a head; None without one."""
        return None if self._backdoor is None else self._backdoor.success(head)

    def fault(self, head: Head) -> str:
        """Why a head must not be kept; empty: it may be kept."""
        if not np.isfinite(head.matrix).all():
            return "the new head is not finite"
        loss = self.evaluate(head).loss
        # With such a head, clients' own losses would be refused in all later rounds too.
        return "" if loss <= LARGEST_LOSS else f"the loss of the new head is {loss:g}"
