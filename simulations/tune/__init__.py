"""Looks for the settings of an experiment that do best on held-out training images.

Trials by Optuna's TPE sampler: Bergstra, Bardenet, Bengio and Kegl, "Algorithms for
Hyper-Parameter Optimization", NeurIPS 2011.
"""

from simulations.tune.outcome import Trial, Tuned
from simulations.tune.reading import default_space, read_space, space_of
from simulations.tune.search import tune
from simulations.tune.space import Choices, Range

__all__ = [
    "Choices",
    "Range",
    "Trial",
    "Tuned",
    "default_space",
    "read_space",
    "space_of",
    "tune",
]
