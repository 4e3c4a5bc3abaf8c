"""A client's own head, close to the global one: Ditto with squared loss, in closed form.

Li et al., ICML 2021, arXiv 2012.04221. With W the global head and X, Y the client's n training
examples, V minimises ``||X V^T - Y||^2 / 2 + lam / 2 ||V - W||^2``, which is
``V = (B + lam W) (A + lam I)^-1`` with ``A = X^T X`` and ``B = Y^T X``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from client.host import Host, run_folder
from common.backbone.frozen import FrozenBackbone
from common.evaluation import evaluate
from common.files import write_atomic
from common.messages import EvaluateRequest
from common.types import FeatureSet, Head

__all__ = ["personal_correct", "personal_head"]


def personal_head(features: FeatureSet, head: Head, lam: float) -> npt.NDArray[np.float64]:
    """The client's own head, computed in float64.

    For ``D = V - W`` and the residuals ``R = Y - X W^T`` the minimum is at
    ``D (A + lam I) = R^T X``. As ``X (X^T X + lam I) = (X X^T + lam I) X``, that is also
    ``D = R^T (X X^T + lam I)^-1 X``: a system of n equations instead of d + 1, which is used if a
    client has fewer examples than features.

    Args:
        features: the client's n >= 1 training examples.
        head: W, (K, d), the global head.
        lam: > 0; the larger, the closer V stays to W.

    Returns:
        V, float64 (K, d + 1).
    """
    x, w = features.x.astype(np.float64), head.matrix.astype(np.float64)
    residuals = np.eye(head.num_classes)[features.labels] - x @ w.T
    n, width = x.shape
    step: npt.NDArray[np.floating]
    if n < width:
        step = np.linalg.solve(x @ x.T + lam * np.eye(n), residuals).T @ x
    else:
        step = np.linalg.solve(x.T @ x + lam * np.eye(width), x.T @ residuals).T
    return np.add(w, step, dtype=np.float64)


def personal_correct(
    request: EvaluateRequest, client: int, frozen: FrozenBackbone, host: Host
) -> int:
    """Make a client's own head and count its correct predictions on the client's test part.

    A real device keeps the head in ``head.safetensors`` in its folder of the run: weight float32
    (K, d) and bias float32 (K,). A simulated client's head is not kept.
    """
    train = host.train_features(client, frozen, request.run_id)
    own = Head.from_matrix(personal_head(train, request.head, request.personal))
    if not host.simulated:
        file = run_folder(host.state, request.run_id) / "head.safetensors"
        write_atomic(file, save({"weight": own.weight, "bias": own.bias}))
    return evaluate(own, host.test_features(client, frozen, request.run_id)).correct
