"""Gram matrices of clients, computed once and kept between rounds if there is room."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.types import IntArray

__all__ = ["Grams"]


class Grams:
    """``X P X^T`` of each client, float (n, n), row by row in one slab of memory.

    Args:
        num_examples: int64 (C,), n of each client; 0 for clients that need no matrix.
        memory_bytes: largest size of the slab. The smallest matrices get a place in it, because
            they save most time per byte. The others are computed whenever they are needed.
        dtype: of the entries.
    """

    def __init__(self, num_examples: IntArray, memory_bytes: int, dtype: torch.dtype) -> None:
        sizes = num_examples**2
        order = np.argsort(sizes, kind="stable")
        fits = np.zeros(len(sizes), np.bool_)
        fits[order] = np.cumsum(sizes[order]) * dtype.itemsize <= memory_bytes
        fits &= sizes > 0
        kept = np.where(fits, sizes, 0)
        self._offsets: IntArray = np.where(fits, np.cumsum(kept) - kept, -1)
        # The system provides memory pages only when they are written.
        self.slab = torch.empty(int(kept.sum()), dtype=dtype)
        self._nothing = torch.empty(0, dtype=dtype)
        self._made = np.zeros(len(num_examples), np.bool_)
        self._preconditioner: npt.NDArray[np.floating] | None = None
        self._unit_norm = 0.0

    def use(self, preconditioner: npt.NDArray[np.floating] | None, unit_norm: float = 0.0) -> None:
        """Forget all matrices if they were made with another P, or of examples of another norm."""
        old, new = self._preconditioner, preconditioner
        same = old is new if old is None or new is None else np.array_equal(old, new)
        if not same or unit_norm != self._unit_norm:
            self._made[:] = False
            self._unit_norm = unit_norm
            self._preconditioner = None if new is None else new.copy()

    def kept(self, clients: IntArray) -> npt.NDArray[np.bool_]:
        """Which clients' matrices have a place in the slab, bool (m,)."""
        kept: npt.NDArray[np.bool_] = self._offsets[clients] >= 0
        return kept

    def prepare(
        self,
        clients: IntArray,
        ends: IntArray,
        x: Tensor,
        preconditioner: Tensor | None,
        *,
        needed: bool = True,
    ) -> tuple[Tensor, IntArray]:
        """Compute missing matrices of some clients. Threads must prepare different clients.

        Args:
            clients: int64 (m,).
            ends: int64 (m + 1,), where each client's examples begin and end in x.
            x: (M, D), examples.
            preconditioner: P, (D, D).
            needed: whether anything will read the matrices; if not, they only get their places.

        Returns:
            A second slab for matrices without a place in the first; and where each client's
            matrix begins: int64 (m,), below 0: at ``-offset - 1`` in the second slab.
        """
        offsets: IntArray = self._offsets[clients].copy()
        counts = np.diff(ends)
        missing = np.flatnonzero((offsets < 0) | ~self._made[clients])
        if not len(missing):
            return self._nothing, offsets
        homeless = np.flatnonzero(offsets < 0)
        places = np.cumsum(counts[homeless] ** 2)
        spare = torch.empty(int(places[-1]) if len(places) else 0, dtype=x.dtype)
        offsets[homeless] = -1 - (places - counts[homeless] ** 2)
        if not needed:
            return spare, offsets
        for i in missing:
            n, offset = int(counts[i]), int(offsets[i])
            slab, first = (self.slab, offset) if offset >= 0 else (spare, -offset - 1)
            mine = x[int(ends[i]) : int(ends[i + 1])]
            left = mine if preconditioner is None else mine @ preconditioner
            torch.mm(left, mine.t(), out=slab[first : first + n * n].view(n, n))
        self._made[clients[offsets >= 0]] = True
        return spare, offsets
