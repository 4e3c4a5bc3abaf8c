"""Clients after training: their deltas, or the deltas' weighted sum in one product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.cohort.clipping import clipped_products, clipped_sum, products
from common.types import IntArray

__all__ = ["Chunk", "DualChunk", "PrimalChunk"]

Floats = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Chunk(ABC):
    """Some clients of a cohort; valid only inside the ``consume`` that gets it.

    Attributes:
        clients: int64 (m,), ids.
        num_examples: int64 (m,).
        losses: float64 (m, 2), mean cross-entropy under the global head and the local one.
        steps: int64 (m,), SGD steps taken.
    """

    clients: IntArray
    num_examples: IntArray
    losses: Float64Array
    steps: IntArray

    @property
    def finite(self) -> Flags:
        """Bool (m,): whether a client's training stayed finite."""
        finite: Flags = np.isfinite(self.losses).all(1)  # type: ignore[assignment]
        return finite

    @abstractmethod
    def weighted_sum(self, weights: Float64Array) -> Float64Array:
        """Sum of weight * delta over the clients, float64 (K, d + 1)."""

    @abstractmethod
    def deltas(self, *, padded: bool = False) -> Floats:
        """Each client's local minus global head, (m, K, d + 1).

        Args:
            padded: whether zeros may follow in each row, which spares a copy, and the last bits may
                be those of a compiled loop, which is faster where clients have few examples.
        """

    def clipped_sum(self, clip: float) -> tuple[IntArray, Flags, Flags]:
        """``client.cohort.clipping.clipped_sum`` of the padded deltas."""
        return clipped_sum(np.asarray(self.deltas(padded=True), np.float32), clip)


@dataclass(frozen=True, eq=False)
class PrimalChunk(Chunk):
    """One client, trained by ordinary steps.

    Attributes:
        delta: (K, d + 1).
    """

    delta: Floats

    def weighted_sum(self, weights: Float64Array) -> Float64Array:
        if not weights[0]:
            return np.zeros(self.delta.shape)
        total: Float64Array = weights[0] * self.delta.astype(np.float64)
        return total

    def deltas(self, *, padded: bool = False) -> Floats:
        return self.delta[None]


@dataclass(frozen=True, eq=False)
class DualChunk(Chunk):
    """Heads as combinations of examples: ``w = alpha w0 + beta c + A X P``.

    Attributes:
        start: w0, (K, d + 1).
        x: X of all the clients, (M, >= d + 1), padded with zeros.
        dual: A of all the clients, (K, M).
        coefficients: float64 (m, 2), alpha and beta.
        corrections: c of each client, (m, K, d + 1), or None.
        preconditioner: P, padded as x is, or None.
    """

    start: Floats
    x: Tensor
    dual: Tensor
    coefficients: Float64Array
    corrections: Floats | None
    preconditioner: Tensor | None

    @property
    def finite(self) -> Flags:
        both = np.isfinite(np.concatenate([self.losses, self.coefficients], axis=1))
        finite: Flags = both.all(1)
        return finite

    def weighted_sum(self, weights: Float64Array) -> Float64Array:
        scale = torch.from_numpy(np.repeat(weights, self.num_examples)).to(self.dual.dtype)
        scaled = self.dual * scale
        if not weights.all():
            # Zero times infinity is NaN, so clients with weight 0 are left out.
            scaled[:, scale == 0] = 0
        combined = self._combine(scaled, self.x).numpy()[:, : self.start.shape[1]]
        total: Float64Array = combined.astype(np.float64)
        counted = weights != 0
        shift = weights[counted] @ (self.coefficients[counted, 0] - 1)
        total += shift * self.start.astype(np.float64)
        if self.corrections is not None:
            shares = weights[counted] * self.coefficients[counted, 1]
            total += np.tensordot(shares, self.corrections[counted], 1)
        return total

    def deltas(self, *, padded: bool = False) -> Floats:
        # Which way a client's numbers are made must not depend on who else is in its chunk.
        if padded and self.preconditioner is None:
            made = products(self.dual.numpy(), self.x.numpy(), self.num_examples)
            if self._adds_examples:
                return made
        else:
            made = self._products()
        out: Floats = np.ascontiguousarray(made[..., : self.start.shape[1]])
        alpha, beta = self.coefficients.T.astype(out.dtype)
        if (alpha != 1).any():
            out += (alpha - 1)[:, None, None] * self.start
        if self.corrections is not None:
            out += beta[:, None, None] * self.corrections
        return out

    @property
    def _adds_examples(self) -> bool:
        """Whether deltas are nothing but sums of examples."""
        plain = self.corrections is None and self.preconditioner is None
        return plain and bool((self.coefficients[:, 0] == 1).all())

    def clipped_sum(self, clip: float) -> tuple[IntArray, Flags, Flags]:
        if not (self._adds_examples and self.x.dtype == torch.float32):
            return super().clipped_sum(clip)
        return clipped_products(self.dual.numpy(), self.x.numpy(), self.num_examples, clip)

    def _products(self) -> Floats:
        """Each client's dual times its examples, (m, K, >= d + 1)."""
        counts = self.num_examples.tolist()
        # As wide as x, so that each product goes where it belongs without a copy of its own.
        made = torch.empty((len(counts), len(self.dual), self.x.shape[1]), dtype=self.x.dtype)
        parts = zip(
            self.dual.split_with_sizes(counts, 1),
            self.x.split_with_sizes(counts),
            made,
            strict=True,
        )
        for dual, x, product in parts:
            self._combine(dual, x, product)
        whole: Floats = made.numpy()
        return whole

    def _combine(self, dual: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        if self.preconditioner is None:
            return torch.mm(dual, x, out=out)
        return torch.mm(dual @ x, self.preconditioner, out=out)
