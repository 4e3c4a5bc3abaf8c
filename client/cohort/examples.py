"""A cohort's examples: their owners, and their conversion from uint8 to training features."""

from __future__ import annotations

import queue
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.cohort.conversion import lengths_of, to_float
from common.types import FeatureSet, IntArray

__all__ = ["Examples"]

Floats = npt.NDArray[np.floating]

_ALIGN = 16  # rows begin at multiples of 64 bytes, whatever a client's place in its chunk


class Examples:
    """Features with their owners, and memory in which threads convert them.

    Args:
        features: examples of all clients.
        rows: for each client, int64 positions in ``features``; the index is the client's id.
        chunk_rows: usual number of examples that a thread converts at a time.
        dtype: dtype of the converted features.

    Attributes:
        features: as given.
        num_examples: int64 (C,), by client.
        largest_label: int64 (C,), each client's largest label; -1 without examples.
        width: d + 1.
        padded_width: the width, aligned.
        dtype: NumPy's name of the converted features' dtype.
    """

    def __init__(
        self, features: FeatureSet, rows: Sequence[IntArray], chunk_rows: int, dtype: torch.dtype
    ) -> None:
        self.features, self._torch_dtype = features, dtype
        self.dtype = torch.empty(0, dtype=dtype).numpy().dtype
        self._rows = np.concatenate([np.zeros(0, np.int64), *rows])
        self._ends = np.cumsum([0, *(len(r) for r in rows)])
        self.num_examples: IntArray = np.diff(self._ends)
        self._center = features.affine.center.astype(self.dtype)
        self._gain = features.affine.gain.astype(self.dtype)
        self.width = features.num_features + 1
        self.padded_width = -(-self.width // _ALIGN) * _ALIGN
        self.largest_label: IntArray = np.full(len(rows), -1, np.int64)
        present = np.flatnonzero(self.num_examples)
        if len(present):
            labels = features.labels[self._rows]
            self.largest_label[present] = np.maximum.reduceat(labels, self._ends[present])
        self._buffers: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        self._lengths = np.full(len(features), np.nan)
        self._usual = chunk_rows * self.padded_width

    def load(self, rows: IntArray, unit_norm: float = 0.0) -> tuple[Tensor, Tensor, IntArray]:
        """Examples at these rows.

        Args:
            rows: int64 (M,).
            unit_norm: see ``common.softmax.rows_of_norm``; 0: features as they are, and a bias.

        Returns:
            The memory, to be given back; x (M, padded width); labels (M,).
        """
        size = len(rows) * self.padded_width
        if size > self._usual:
            buffer = torch.empty(size, dtype=self._torch_dtype)
        else:
            try:
                buffer = self._buffers.get_nowait()
            except queue.Empty:
                buffer = torch.empty(self._usual, dtype=self._torch_dtype)
        x = buffer[:size].view(len(rows), self.padded_width)
        factors, bias = self._factors(rows, unit_norm), 0 if unit_norm else 1
        to_float(self.features.q, rows, self._center, self._gain, factors, bias, x.numpy())
        return buffer, x, self.features.labels[rows]

    def _factors(self, rows: IntArray, unit_norm: float) -> Floats:
        """What features are multiplied by; their lengths are measured once."""
        if not unit_norm:
            return np.ones(len(rows), self.dtype)
        lengths = self._lengths[rows]
        if np.isnan(lengths).any():
            lengths_of(self.features.q, rows, self._center, self._gain, lengths)
            self._lengths[rows] = lengths
        factors = np.divide(unit_norm, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        rounded: Floats = factors.astype(self.dtype)
        return rounded

    def give_back(self, buffer: Tensor) -> None:
        """Return the memory of ``load`` for another thread's use."""
        if len(buffer) == self._usual:  # a larger one is freed
            self._buffers.put(buffer)

    def positions(self, clients: IntArray) -> tuple[IntArray, IntArray]:
        """Clients' rows of the features, and where each client's begin and end among them."""
        counts = self.num_examples[clients]
        ends = np.zeros(len(clients) + 1, np.int64)
        np.cumsum(counts, out=ends[1:])
        places = np.repeat(self._ends[clients] - ends[:-1], counts)
        places += np.arange(ends[-1])
        return self._rows[places], ends

    def padded(self, matrix: Floats) -> Tensor:
        """A matrix (m, d + 1), padded with columns of zeros as in ``load``."""
        out = torch.zeros((len(matrix), self.padded_width), dtype=self._torch_dtype)
        out[:, : matrix.shape[1]] = torch.from_numpy(np.asarray(matrix, self.dtype))
        return out
