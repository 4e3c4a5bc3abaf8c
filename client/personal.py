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

A head made of all clients' examples expects each class as often as they all have it, but a client
may have few of the classes, and some of these often. So the bias of the head near the global one
gets ``s log prior``, where prior is each class's share of the client's own examples: that favours
the classes that the client has (label-prior correction, Saerens, Latinne and Decaestecker, Neural
Computation 2002; as logit adjustment Menon et al., arXiv 2007.07314). Outputs of a ridge regression
are no log probabilities, so the client chooses s too: the one with the fewest mistakes, each
example left out once. An example that is left out does not count in the prior that judges it: else
a class of one example would seem to need the shift most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
# Strengths of the shift, per nat. Of those with as many mistakes the first one is taken.
_SHIFTS = 0.1, 0.05, 0.2, 0.02, 0.4, 0.0, 1.0
# Examples that the prior counts beside the client's own, evenly over the classes: none has log 0.
_EVEN = 0.5
# The share of what a client's examples can explain that the global head owes to it, at most.
_MOST_OWN = 0.9


@dataclass(frozen=True, eq=False)
class Choice:
    """A head that a client may choose, judged on its own examples, each left out once.

    Attributes:
        start: float64 (K, d + 1): what the head is kept close to; zeros: nothing of others.
        lam: how strongly; infinite: it is the start itself.
        wrong: number of examples that the heads of all others misclassify.
        error: sum of these heads' squared residuals, without the shift.
        shift: how strongly the bias is shifted to the classes that the client has; 0: not.
    """

    start: _Array
    lam: float
    wrong: int
    error: float
    shift: float = 0.0


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
        matrix = self.near(choice.start, choice.lam)
        matrix[:, -1] += choice.shift * _log_prior(self._labels.sum(axis=0))
        return Head.from_matrix(matrix)

    def shifted(self, choice: Choice) -> Choice:
        """The same head with the shift of its bias that makes the fewest mistakes."""
        logits = self._labels - self.left_out(choice.start, choice.lam)
        prior = _log_prior(self._labels.sum(axis=0) - self._labels)
        wrong = [self._wrong(logits + shift * prior) for shift in _SHIFTS]
        fewest = min(wrong)
        return replace(choice, wrong=fewest, shift=_SHIFTS[wrong.index(fewest)])

    def _choice(self, start: _Array, lam: float, left: _Array) -> Choice:
        wrong = self._wrong(self._labels - left)
        return Choice(start, lam, wrong, float(np.square(left).sum()))

    def _wrong(self, logits: _Array) -> int:
        is_label = self._labels > 0
        others = np.where(is_label, -np.inf, logits).max(axis=1)
        # A tie is a mistake: a head of no examples gives the same to all classes.
        return int((logits[is_label] <= others).sum())

    def _residuals(self, start: _Array) -> _Array:
        residuals: _Array = self._labels - self._x @ start.T
        return residuals


def _log_prior(counts: _Array) -> _Array:
    """Logarithm of each class's share, from its number of examples: float64 (..., K)."""
    each = _EVEN / counts.shape[-1]
    prior: _Array = np.log((counts + each) / (counts.sum(axis=-1, keepdims=True) + _EVEN))
    return prior


def personal_choice(examples: OwnExamples, head: Head, leverage: float) -> Choice:
    """The better of two heads: the best one close to the global head, and the best one alone.

    The best of a kind has the least error; then the one close to the global head is shifted to the
    classes that the client has. The one alone needs no shift, for it never saw other classes, and
    it is taken only if it makes fewer mistakes: so it is where the client's classes mean something
    else than the other clients'.

    Args:
        examples: the client's.
        head: the global head, which is among the heads close to it.
        leverage: see ``OwnExamples.without_own``.
    """
    start, kept = examples.without_own(head.matrix.astype(np.float64), leverage)
    penalties = (kept, *examples.penalties)
    alone, near = (
        min(choices, key=lambda choice: choice.error)
        for choices in (examples.alone(), examples.judge(start, penalties))
    )
    near = examples.shifted(near)
    return alone if alone.wrong < near.wrong else near


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
