"""Threads that share a cohort's chunks and return results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch

__all__ = ["in_order"]

T = TypeVar("T")


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
