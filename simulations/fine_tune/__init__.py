"""Fine-tunes a backbone on public images, before it is frozen."""

from simulations.fine_tune.fine_tune import FineTuned, fine_tune, fine_tune_on
from simulations.fine_tune.training import Plan

__all__ = ["FineTuned", "Plan", "fine_tune", "fine_tune_on"]
