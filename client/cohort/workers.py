"""Threads that share a cohort's chunks and return results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from common.types import IntArray

__all__ = ["in_order", "longer", "parts"]

T = TypeVar("T")

_WIDE = 1280  # features of MobileNetV2
_EACH = 4  # parts of a round, at least, for each thread: so none waits long for the others


@lru_cache(maxsize=4)
def _workers(threads: int) -> ThreadPoolExecutor:
    # Threads are kept: BLAS sets itself up in each new one, which takes longer than a small round.
    return ThreadPoolExecutor(threads, "fedhead-cohort", initializer=_one_blas_thread)


def _one_blas_thread() -> None:
    # The call to get comes first on purpose. A thread copies the process's number when it first
    # needs one, and that could undo an earlier setting, depending on the other threads' timing.
    torch.get_num_threads()
    torch.set_num_threads(1)


def in_order(tasks: Iterable[slice], work: Callable[[slice], T], threads: int) -> Iterator[T]:
    """Results in the order of the tasks; only a few tasks run ahead of the reader."""
    pool, pending = _workers(threads), deque[Future[T]]()
    try:
        for task in tasks:
            pending.append(pool.submit(work, task))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        # No thread may still use the Gram matrices when the next round begins.
        wait(pending)


def parts(
    counts: IntArray, most: int, joins: npt.NDArray[np.bool_] | None = None
) -> Iterator[slice]:
    """Ranges of clients that a thread works on at once.

    Args:
        counts: int64 (m,), each client's number of examples.
        most: examples in a range, unless one client has more.
        joins: bool (m,), who may share a range; None: everyone.
    """
    joins = np.ones(len(counts), np.bool_) if joins is None else joins
    first, rows = 0, 0
    for i, n in enumerate(counts.tolist()):
        if i > first and (rows + n > most or not (joins[i] and joins[i - 1])):
            yield slice(first, i)
            first, rows = i, 0
        rows += n
    if first < len(counts):
        yield slice(first, len(counts))


def longer(rows: int, width: int, total: int, threads: int) -> int:
    """How many examples a range may have where its length does not change any result.

    Threads wait for each other between two ranges. Longer ones of narrow examples need no more
    memory than usual ones of wide examples.

    Args:
        rows: usual number of examples.
        width: of an example, or of its logits.
        total: examples of a round.
        threads: number of threads.
    """
    return max(rows, min(-(-total // (_EACH * threads)), rows * _WIDE // width))
