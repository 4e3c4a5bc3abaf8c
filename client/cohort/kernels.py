"""Compiled loops of the cohort trainer. They release the GIL, so that threads can share the work.

The compiler may not reorder sums; it may only use fused multiply-add. So the same machine gives the
same bits with any number of threads. The functions have many arguments because compiled functions
take arrays and numbers, not objects. ``train_clients`` is long because all clients of a chunk share
the memory that it allocates.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

from common.files import cache_root
from common.types import FloatArray

__all__ = ["compiled", "train_clients", "word_of"]

F = TypeVar("F", bound=Callable[..., Any])

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _ONE = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(1)
_BLOCK = 64  # least number of scratch columns, for the losses


# Compiled code is stored beside this file, or in fedhead's cache if that folder is read-only.
if not numba.config.CACHE_DIR and not os.access(  # type: ignore[attr-defined]
    Path(__file__).parent, os.W_OK
):
    numba.config.CACHE_DIR = str(cache_root() / "numba")  # type: ignore[attr-defined]


def compiled(function: F) -> F:
    """Compile it when it is first called, and keep the result on the disk."""
    return cast("F", numba.njit(nogil=True, cache=True, fastmath={"contract"})(function))


@compiled
def _mix(z: Any) -> Any:
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


@compiled
def word_of(state: Any, index: Any) -> Any:
    """``common.seeding.words`` of one stream at one position."""
    return _mix(state + np.uint64(index + 1) * _GOLDEN)


@compiled
def _batch_order(state: Any, n: Any, keys: Any) -> Any:
    """``common.seeding.permutation`` of a stream, given its state."""
    for i in range(n):
        keys[i] = np.int64(word_of(state, i) >> _ONE)
    return np.argsort(keys[:n], kind="mergesort")


@compiled
def _exponentials(R: Any, m: Any, top: Any, total: Any, bits: Any) -> None:
    """Replace logits R (K, m) by exp(logit - top); write each column's maximum and sum.

    float32 uses Cephes' polynomial (relative error 2e-7), which the compiler vectorizes; float64
    uses the library's function.
    """
    K = R.shape[0]
    powers = bits.view(np.float32)
    lowest = np.float32(-87.0)
    for b in range(m):
        top[b] = R[0, b]
        total[b] = 0
    for k in range(1, K):
        for b in range(m):
            # Not max(): its rule for NaN would prevent vector instructions.
            top[b] = R[k, b] if R[k, b] > top[b] else top[b]
    for k in range(K):
        if R.itemsize == 8:
            for b in range(m):
                R[k, b] = math.exp(R[k, b] - top[b])
                total[b] += R[k, b]
            continue
        for b in range(m):
            x = R[k, b] - top[b]
            x = lowest if x < lowest else x
            f = np.float32(math.floor(x * np.float32(1.44269504) + np.float32(0.5)))
            bits[b] = (np.int32(f) + np.int32(127)) << np.int32(23)
            x = x - f * np.float32(0.693359375)
            x = x + f * np.float32(2.12194440e-4)
            p = np.float32(1.9875691500e-4)
            p = p * x + np.float32(1.3981999507e-3)
            p = p * x + np.float32(8.3334519073e-3)
            p = p * x + np.float32(4.1665795894e-2)
            p = p * x + np.float32(1.6666665459e-1)
            p = p * x + np.float32(5.0000001201e-1)
            R[k, b] = p * x * x + x + np.float32(1.0)
        for b in range(m):
            R[k, b] *= powers[b]
            total[b] += R[k, b]


@compiled
def _mean_loss(Z: Any, labels: Any, R: Any, top: Any, total: Any, bits: Any) -> Any:
    """Mean cross-entropy of logits Z (K, n)."""
    K, n = Z.shape
    width = R.shape[1]
    loss = 0.0
    for start in range(0, n, width):
        m = min(width, n - start)
        for k in range(K):
            for b in range(m):
                R[k, b] = Z[k, start + b]
        _exponentials(R, m, top, total, bits)
        for b in range(m):
            loss += math.log(total[b]) + top[b] - Z[labels[start + b], start + b]
    return loss / n


@compiled
def _residuals(
    z: Any, labels: Any, batch: Any, m: Any, R: Any, top: Any, total: Any, bits: Any
) -> None:
    """Gradient of a batch's mean loss with respect to its logits, into R (K, m)."""
    K = z.shape[0]
    for k in range(K):
        for b in range(m):
            R[k, b] = z[k, batch[b]]
    _exponentials(R, m, top, total, bits)
    for b in range(m):
        total[b] = 1 / (total[b] * m)
    for k in range(K):
        for b in range(m):
            R[k, b] *= total[b]
    for b in range(m):
        R[labels[batch[b]], b] -= 1 / m


@compiled
def _plain_step(z: Any, a: Any, gram: Any, batch: Any, m: Any, R: Any, lr: Any) -> None:
    K, n = z.shape
    for b in range(m):
        i = batch[b]
        for k in range(K):
            r = lr * R[k, b]
            a[k, i] -= r
            for j in range(n):
                z[k, j] -= r * gram[i, j]


@compiled
def _last_step(a: Any, batch: Any, m: Any, R: Any, lr: Any) -> None:
    for k in range(a.shape[0]):
        for b in range(m):
            a[k, batch[b]] -= lr * R[k, b]


@compiled
def _general_step(
    z: Any, a: Any, z0: Any, zc: Any, vz: Any, va: Any, gram: Any, batch: Any, m: Any, R: Any,
    step: Any, lr: Any, momentum: Any, shrink: Any, mu: Any,
) -> None:  # fmt: skip
    K, n = z.shape
    for k in range(K):
        for j in range(n):
            step[j] = shrink * z[k, j] - mu * z0[k, j] + zc[k, j]
            va[k, j] = momentum * va[k, j] + shrink * a[k, j]
        for b in range(m):
            i = batch[b]
            r = R[k, b]
            va[k, i] += r
            for j in range(n):
                step[j] += r * gram[i, j]
        for j in range(n):
            vz[k, j] = momentum * vz[k, j] + step[j]
            z[k, j] -= lr * vz[k, j]
            a[k, j] -= lr * va[k, j]


@compiled
def _block(scratch: Any, rows: Any, n: Any) -> Any:
    """Contiguous (rows, n) memory, because the compiler vectorizes only dense arrays."""
    return scratch[: rows * n].reshape((rows, n))


@compiled
def train_clients(
    Z: FloatArray, A: FloatArray, Z0: FloatArray, Zc: FloatArray,
    labels: Any, ends: Any, clients: Any, grams: Any, spare: Any, offsets: Any, state: Any,
    epochs: Any, batch_sizes: Any, hyper: FloatArray, wants_losses: Any,
    losses: Any, coefficients: Any, steps: Any,
) -> None:  # fmt: skip
    """Train each client of a chunk by local SGD, in the dual form.

    A client's head is ``w = alpha w0 + beta c + A X P`` and its logits Z follow each step
    through the Gram matrix ``X P X^T``, so that features are not read.

    Args:
        Z: (K, M), logits of all examples under the global head; at the end, under the local heads.
        A: (K, M), zeros; at the end, the coefficients of the examples.
        Z0: (K, M), a copy of Z; (0, 0) if there is neither momentum nor a penalty.
        Zc: (K, M), logits of each client's correction, zeros for none; (0, 0) like Z0.
        labels: int64 (M,).
        ends: int64 (m + 1,), where each client's examples begin and end.
        clients: int64 (m,), ids; the batch orders depend on them.
        grams: (any,), cached Gram matrices, row by row.
        spare: (any,), Gram matrices without room in the cache.
        offsets: int64 (m,), where a client's Gram matrix begins; below 0: at ``-offset - 1`` in
            spare.
        state: uint64, state of the stream of batch orders, before client and epoch.
        epochs: int64 (m,).
        batch_sizes: int64 (m,).
        hyper: (4,), lr, momentum, mu + weight decay, mu.
        wants_losses: whether to compute losses. If not, the last plain step leaves logits and Gram
            matrices alone, and Z is of no use at the end.
        losses: float64 (m, 2), overwritten if wanted: mean loss before and after.
        coefficients: float64 (m, 2), overwritten: alpha and beta.
        steps: int64 (m,), overwritten.
    """
    K = Z.shape[0]
    lr, momentum, shrink, mu = hyper[0], hyper[1], hyper[2], hyper[3]
    plain = Z0.shape[0] == 0
    longest = np.max(ends[1:] - ends[:-1])
    width = max(_BLOCK, min(np.max(batch_sizes), longest))
    R = np.empty((K, width), Z.dtype)
    top, total = np.empty(width, Z.dtype), np.empty(width, Z.dtype)
    bits = np.empty(width, np.int32)
    keys = np.empty(longest, np.int64)
    step = np.empty(longest, Z.dtype)
    scratch = np.empty((6, K * longest), Z.dtype)
    for c in range(clients.shape[0]):
        first, last = ends[c], ends[c + 1]
        n = last - first
        y = labels[first:last]
        z, a = _block(scratch[0], K, n), _block(scratch[1], K, n)
        z0, zc = _block(scratch[2], K, n), _block(scratch[3], K, n)
        vz, va = _block(scratch[4], K, n), _block(scratch[5], K, n)
        z[:] = Z[:, first:last]
        a[:] = 0
        if not plain:
            z0[:] = Z0[:, first:last]
            zc[:] = Zc[:, first:last]
            vz[:] = 0
            va[:] = 0
        if offsets[c] >= 0:
            gram = grams[offsets[c] : offsets[c] + n * n].reshape((n, n))
        else:
            gram = spare[-offsets[c] - 1 : -offsets[c] - 1 + n * n].reshape((n, n))
        if wants_losses:
            losses[c, 0] = _mean_loss(z, y, R, top, total, bits)
        client_state = _mix((state ^ np.uint64(clients[c])) + _GOLDEN)
        alpha, beta, v_alpha, v_beta = 1.0, 0.0, 0.0, 0.0
        count = 0
        for epoch in range(epochs[c]):
            order = _batch_order(_mix((client_state ^ np.uint64(epoch)) + _GOLDEN), n, keys)
            for start in range(0, n, batch_sizes[c]):
                batch = order[start : min(start + batch_sizes[c], n)]
                m = batch.shape[0]
                _residuals(z, y, batch, m, R, top, total, bits)
                count += 1
                is_last = epoch == epochs[c] - 1 and start + m == n
                if plain and is_last and not wants_losses:
                    _last_step(a, batch, m, R, lr)
                    continue
                if plain:
                    _plain_step(z, a, gram, batch, m, R, lr)
                    continue
                _general_step(
                    z, a, z0, zc, vz, va, gram, batch, m, R, step, lr, momentum, shrink, mu
                )
                v_alpha = momentum * v_alpha + shrink * alpha - mu
                v_beta = momentum * v_beta + shrink * beta + 1
                alpha -= lr * v_alpha
                beta -= lr * v_beta
        if wants_losses:
            losses[c, 1] = _mean_loss(z, y, R, top, total, bits)
        Z[:, first:last] = z
        A[:, first:last] = a
        coefficients[c, 0], coefficients[c, 1] = alpha, beta
        steps[c] = count
