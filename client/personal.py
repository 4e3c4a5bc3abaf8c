"""A client's own heads: one close to the global head, and one of its own examples alone.

Ditto, Li et al., ICML 2021, arXiv 2012.04221, with squared loss. From a head W, V minimises
``||X V^T - Y||^2 / 2 + lam / 2 ||V - W||^2`` on the client's n training examples X, Y. For
``D = V - W``, the residuals ``R = Y - X W^T`` and the singular values ``X = U S T^T`` that is
``D = R^T U (S^2 + lam I)^-1 S T^T``. From W = 0 it is the client's own ridge regression, for which
it needs no federation.

With "auto" a client chooses among these by leaving out each of its examples once, which takes no
further solution (Allen's PRESS, Technometrics 1974): with ``H = U S^2 (S^2 + lam I)^-1 U^T`` the
residual of example i, when it is left out, is ``(R - H R)_i / (1 - H_ii)``. The global head has
seen these examples too, so that its residuals look better than they are: where clients differ much,
all of them would keep too close to it. The client therefore takes its own part out first: it
begins from the W0 to which the global head is the V for a lam of its own. See ``without_own``.
"""

from __future__ import annotations

import math
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

__all__ = ["Choice", "OwnExamples", "own_correct", "personal_choice"]

_Array = npt.NDArray[np.float64]

# Penalties that a client tries, relative to the mean squared length of its examples.
_GRID = 10.0 ** np.arange(-3, 3.5, 0.5)
# The share of what a client's examples can explain that the global head owes to it, at most.
_MOST_OWN = 0.9


@dataclass(frozen=True, eq=False)
class Choice:
    """A head that a client may choose, judged on its own examples, each left out once.

    Attributes:
        start: float64 (K, d + 1): what the head is kept close to; zeros: nothing of others.
        lam: how strongly; infinite: it is the start itself.
        wrong: number of examples that the heads of all others misclassify.
        error: sum of these heads' squared residuals.
    """

    start: _Array
    lam: float
    wrong: int
    error: float


class OwnExamples:
    """A client's training examples, ready for many penalties.

    Args:
        features: n >= 1 examples, labels in [0, num_classes).
        num_classes: K.
    """

    def __init__(self, features: FeatureSet, num_classes: int) -> None:
        self._x = x = features.x.astype(np.float64)
        self._labels = np.eye(num_classes)[features.labels]
        # Of X X^T and X^T X the smaller one has all that is needed.
        is_wide = x.shape[0] < x.shape[1]
        squares, vectors = np.linalg.eigh(x @ x.T if is_wide else x.T @ x)
        alive = squares > max(float(squares[-1]), 0.0) * len(squares) * np.finfo(np.float64).eps
        self._squares, vectors = squares[alive], vectors[:, alive]
        if is_wide:
            self._left, self._right = vectors, vectors.T @ x
        else:
            root = np.sqrt(self._squares)
            self._left, self._right = x @ vectors / root, (vectors * root).T
        self.penalties: tuple[float, ...] = tuple((_GRID * np.square(x).sum() / len(x)).tolist())

    def near(self, start: _Array, lam: float) -> _Array:
        """The head, float64 (K, d + 1), that minimises the squared loss close to another.

        Args:
            start: float64 (K, d + 1).
            lam: > 0; the larger, the closer.
        """
        weights = self._residuals(start).T @ self._left / (self._squares + lam)
        head: _Array = start + weights @ self._right
        return head

    def left_out(self, start: _Array, lam: float) -> _Array:
        """Residuals (n, K) of each example for the ``near`` head of all others."""
        residuals = self._residuals(start)
        return self._left_out(residuals, self._left.T @ residuals, lam)

    def _left_out(self, residuals: _Array, along: _Array, lam: float) -> _Array:
        shares = self._squares / (self._squares + lam)
        leverage = np.square(self._left) @ shares
        rest = residuals - self._left @ (shares[:, None] * along)
        # 1 - leverage is at least lam / (lam + the example's squared length), so above 0.
        left: _Array = rest / (1 - leverage)[:, None]
        return left

    def without_own(self, head: _Array, leverage: float) -> tuple[_Array, float]:
        """The head W0 that a head would be without the client's examples, and a penalty.

        The head is ``near(W0, penalty)``, where the examples have the mean leverage that they have
        in the global head. That takes the other clients' examples to be spread evenly in all
        directions.

        Args:
            head: float64 (K, d + 1), the global head.
            leverage: mean leverage of all examples in it, in [0, 1); 0: not known, which takes
                the head as it is, with an infinite penalty.
        """
        most = _MOST_OWN * len(self._squares) / len(self._x)
        if not leverage or not most:
            return head, math.inf
        wanted = min(leverage, most) * len(self._x)
        low, high = np.log(self._squares[-1]) - 40, np.log(self._squares[-1]) + 40
        for _ in range(60):
            middle = (low + high) / 2
            has = float((self._squares / (self._squares + np.exp(middle))).sum())
            low, high = (middle, high) if has > wanted else (low, middle)
        penalty = float(np.exp((low + high) / 2))
        weights = self._residuals(head).T @ self._left / penalty
        return head - weights @ self._right, penalty

    def judge(self, start: _Array, penalties: Sequence[float]) -> list[Choice]:
        """How good the ``near`` heads with some penalties are."""
        residuals = self._residuals(start)
        along = self._left.T @ residuals
        return [
            self._choice(start, lam, self._left_out(residuals, along, lam)) for lam in penalties
        ]

    def alone(self) -> list[Choice]:
        """How good heads are that owe nothing to other clients."""
        zeros = np.zeros((self._labels.shape[1], self._x.shape[1]))
        return self.judge(zeros, self.penalties)

    def head(self, choice: Choice) -> Head:
        """The head that was chosen, of all examples."""
        return Head.from_matrix(self.near(choice.start, choice.lam))

    def _choice(self, start: _Array, lam: float, left: _Array) -> Choice:
        logits, is_label = self._labels - left, self._labels > 0
        others = np.where(is_label, -np.inf, logits).max(axis=1)
        # A tie is a mistake: a head of no examples gives the same to all classes.
        wrong = int((logits[is_label] <= others).sum())
        return Choice(start, lam, wrong, float(np.square(left).sum()))

    def _residuals(self, start: _Array) -> _Array:
        residuals: _Array = self._labels - self._x @ start.T
        return residuals


def personal_choice(examples: OwnExamples, head: Head, leverage: float) -> Choice:
    """The better of two heads: the best one close to the global head, and the best one alone.

    The best of a kind has the least error, and of the two the one with fewer mistakes is taken. If
    both make as many, it is the one alone: a client with a handful of examples that leaves one out
    lacks much of what that head is made of, but hardly anything of the global one.

    Args:
        examples: the client's.
        head: the global head, which is among the heads close to it.
        leverage: see ``OwnExamples.without_own``.
    """
    start, kept = examples.without_own(head.matrix.astype(np.float64), leverage)
    near = examples.judge(start, (kept, *examples.penalties))
    best = [min(choices, key=lambda choice: choice.error) for choices in (examples.alone(), near)]
    return min(best, key=lambda choice: choice.wrong)


def own_correct(
    request: EvaluateRequest, client: int, frozen: FrozenBackbone, host: Host
) -> tuple[int, int]:
    """Make a client's own heads and count correct predictions on the client's test part.

    A real device keeps the personal head in ``head.safetensors`` in its folder of the run: weight
    float32 (K, d) and bias float32 (K,). A simulated client's head is not kept.

    Returns:
        The counts of the personal head and of the head of its own examples alone; 0 of a head
        that the request does not ask for.
    """
    head = request.head
    examples = OwnExamples(host.train_features(client, frozen, request.run_id), head.num_classes)
    test = host.test_features(client, frozen, request.run_id)
    personal = alone = 0
    if request.personal:
        own = _personal(examples, request)
        personal = evaluate(own, test).correct
        if not host.simulated:
            file = run_folder(host.state, request.run_id) / "head.safetensors"
            write_atomic(file, save({"weight": own.weight, "bias": own.bias}))
    if request.alone:
        best = min(examples.alone(), key=lambda choice: choice.error)
        alone = evaluate(examples.head(best), test).correct
    return personal, alone


def _personal(examples: OwnExamples, request: EvaluateRequest) -> Head:
    if request.personal < 0:
        return examples.head(personal_choice(examples, request.head, request.leverage))
    start = request.head.matrix.astype(np.float64)
    return Head.from_matrix(examples.near(start, request.personal))
