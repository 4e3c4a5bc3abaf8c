"""Trains a head as a private run by the rule would, from features in memory.

There may be more clients than images make. Then each simulated client stands for as many as it
takes: the mean of all clients' updates is that of the simulated ones, and its noise is that of the
clients there are to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from common.privacy import factorization
from common.privacy.rule import Mechanism
from common.types import FloatArray, IntArray
from server.round.private import Decided

__all__ = ["Dealt", "private_head"]

_Float64Array = npt.NDArray[np.float64]

_MOST_PAIRS = 40  # images of a client, on average, up to which all pairs are kept


@dataclass(frozen=True, eq=False)
class Dealt:
    """Simulated clients' images.

    Attributes:
        x: float32 (n, d), features of norm 1, the images of a client one behind the other.
        labels: int64 (n,).
        sizes: int64 (c,), how many images each client has, at least 1.
        num_classes: K.
    """

    x: FloatArray
    labels: IntArray
    sizes: IntArray
    num_classes: int

    @cached_property
    def one_hot(self) -> FloatArray:
        """float32 (n, K)."""
        return np.eye(self.num_classes, dtype=np.float32)[self.labels]

    @cached_property
    def starts(self) -> IntArray:
        """int64 (c,), where each client begins."""
        return np.asarray(np.cumsum(self.sizes) - self.sizes, np.int64)

    @cached_property
    def _pairs(self) -> tuple[IntArray, IntArray, FloatArray, IntArray] | None:
        """All pairs of images of one client with their products, where these are few."""
        if (self.sizes**2).sum() > _MOST_PAIRS * len(self.x):
            return None
        own = [np.arange(a, a + n) for a, n in zip(self.starts, self.sizes, strict=True)]
        left = np.concatenate([np.repeat(part, len(part)) for part in own])
        right = np.concatenate([np.tile(part, len(part)) for part in own])
        products = np.einsum("pd,pd->p", self.x[left], self.x[right])
        return left, right, products, np.repeat(np.arange(len(self.sizes)), self.sizes**2)

    def norms(self, residuals: FloatArray) -> _Float64Array:
        """Norm of each client's ``residuals.T @ x``, float64 (c,); residuals are (n, K)."""
        if self._pairs is not None:
            left, right, products, client = self._pairs
            each = products * np.einsum("pk,pk->p", residuals[left], residuals[right])
            return np.sqrt(np.maximum(np.bincount(client, each, len(self.sizes)), 0.0))
        parts = (slice(a, a + n) for a, n in zip(self.starts, self.sizes, strict=True))
        return np.array([float(np.linalg.norm(residuals[p].T @ self.x[p])) for p in parts])

    def updates(self, head: FloatArray, weights: _Float64Array, clip: float) -> FloatArray:
        """Sum of the clients' clipped updates, each so many times, float32 (K, d).

        A client's update is the mean gradient of the cross-entropy over its images, downhill.

        Args:
            head: float32 (K, d).
            weights: float64 (c,), how often each counts.
            clip: largest norm of one.
        """
        logits = self.x @ head.T
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        shares /= shares.sum(axis=1, keepdims=True)
        residuals = (self.one_hot - shares) / np.repeat(self.sizes, self.sizes)[:, None].astype(
            np.float32
        )
        factors = weights * np.minimum(1.0, clip / np.maximum(self.norms(residuals), 1e-30))
        scaled = residuals * np.repeat(factors, self.sizes)[:, None].astype(np.float32)
        return np.asarray(scaled.T @ self.x, np.float32)


def private_head(
    dealt: Dealt, decided: Decided, mechanism: Mechanism, rng: np.random.Generator
) -> FloatArray:
    """The head of a run, float32 (K, d): the mean of the heads of the last half of its rounds.

    Args:
        dealt: the simulated clients.
        decided: noise, clip and step; its clip is for features of norm ``decided.norm``, and these
            have norm 1.
        mechanism: how clients take part; not "one-shot".
        rng: of cohorts and noise.
    """
    clip = decided.clip * decided.norm
    head: FloatArray = np.zeros((dealt.num_classes, dealt.x.shape[1]), np.float32)
    turns = rng.permutation(len(dealt.sizes))
    noises: list[_Float64Array] = []
    total, count = np.zeros(head.shape), 0
    for number in range(1, decided.rounds + 1):
        weights = _weights(len(dealt.sizes), turns, number, decided, mechanism, rng)
        update = dealt.updates(head, weights, clip)
        noises.append(rng.standard_normal(head.shape))
        noisy = update + decided.noise * clip * _noise(noises, decided)
        head = np.asarray(head + decided.step / decided.divisor * noisy, np.float32)
        if 2 * number > decided.rounds:
            total, count = total + head, count + 1
    return np.asarray(total / count, np.float32)


def _noise(drawn: list[_Float64Array], decided: Decided) -> _Float64Array:
    """A round's noise of deviation 1; with turns it takes earlier noise off again."""
    if decided.separation == 1:
        return drawn[-1]
    return factorization.correlated(drawn, factorization.coefficients(decided.separation))


def _weights(
    simulated: int,
    turns: IntArray,
    number: int,
    decided: Decided,
    mechanism: Mechanism,
    rng: np.random.Generator,
) -> _Float64Array:
    """How many clients of a round each simulated one stands for, float64 (c,)."""
    each = decided.clients / simulated
    if mechanism == "poisson":
        if math.isclose(each, 1.0):
            return (rng.random(simulated) < decided.rate).astype(np.float64)
        return rng.poisson(each * decided.rate, simulated).astype(np.float64)
    if mechanism == "min-separation":
        if math.isclose(each, 1.0):
            is_asked = turns % decided.separation == number % decided.separation
            return np.asarray(is_asked, np.float64)
        return rng.poisson(each / decided.separation, simulated).astype(np.float64)
    return np.full(simulated, each)
