"""A client's own head: close to the global one, or of its own examples alone, in closed form.

Ditto, Li et al., ICML 2021, arXiv 2012.04221, with squared loss. With W a head to start from and
X, Y the client's n training examples, V minimises ``||X V^T - Y||^2 / 2 + lam / 2 ||V - W||^2``.
For ``D = V - W``, the residuals ``R = Y - X W^T`` and the singular values ``X = U S T^T`` that is
``D = R^T U (S^2 + lam I)^-1 S T^T``. With W = 0 it is the client's own ridge regression, to which
the global head adds nothing.

Which of these heads is the best a client finds out by leaving out each of its examples once, which
takes no further solution (Allen's PRESS, Technometrics 1974): with ``H = U S^2 / (S^2 + lam) U^T``
the residual of example i, when it is left out, is ``(R - H R)_i / (1 - H_ii)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from client.host import Host, run_folder
from common.backbone.frozen import FrozenBackbone
from common.evaluation import evaluate
from common.files import write_atomic
from common.messages import EvaluateRequest
from common.types import FeatureSet, Head

__all__ = ["OwnHeads", "own_correct", "own_heads", "personal_head"]

_Array = npt.NDArray[np.float64]

# lambda, relative to the mean square of the client's singular values
_GRID = 10.0 ** np.arange(-3, 3.5, 0.5)
