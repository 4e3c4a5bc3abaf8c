"""How well a backdoor works: measured on the server's test images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.backdoor import Trigger
from common.config import Config
from common.errors import ConfigError
from common.evaluation import evaluate
from common.experiment import experiment_dataset, held_out_positions, run_trigger
from common.types import FeatureSet, Head

__all__ = ["Backdoor", "backdoor_of"]


@dataclass(frozen=True, eq=False)
class Backdoor:
    """What a backdoor is measured on.

    Attributes:
        tests: n >= 1 test images of all classes but the target, with the trigger.
        target: the class that they should be taken for.
    """

    tests: FeatureSet
    target: int

    @classmethod
    def on(cls, test: FeatureSet, trigger: Trigger, target: int) -> Backdoor | None:
        """The backdoor on test images; None if all of them are of the target."""
        others = test.select(np.flatnonzero(test.labels != target))
        if not len(others):
            return None
        q = trigger.on(others.q)
        return cls(FeatureSet(q, others.labels, others.affine, others.fingerprint), target)

    def success(self, head: Head) -> float:
        """Share of these images that the head takes for the target, in [0, 1]."""
        found = evaluate(head, self.tests).confusion[:, self.target]
        return int(found.sum()) / len(self.tests)


def backdoor_of(config: Config, features: FeatureSet) -> Backdoor | None:
    """The backdoor of a run; None without one.

    Args:
        config: of the run.
        features: of the whole data set.

    Raises:
        ConfigError: attack.target is no class of the data.
    """
    trigger, target = run_trigger(config, features), config.attack.target
    if trigger is None:
        return None
    classes = experiment_dataset(config).num_classes
    if target >= classes:
        raise ConfigError(
            [f"attack.target={target} is no class, expected 0 to {classes - 1} with these data"]
        )
    return Backdoor.on(features.select(held_out_positions(config)), trigger, target)
