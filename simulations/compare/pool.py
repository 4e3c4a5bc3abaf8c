"""Runs the cells of a comparison in several processes, each on its own cores."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from multiprocessing.synchronize import Lock
from pathlib import Path
from typing import TYPE_CHECKING

from common.apart import LoneContext
from common.errors import FedheadError, RunError
from common.machine import cores
from simulations.compare.cells import Cell
from simulations.report.runs import read_run

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

__all__ = ["process_pool", "run_cells"]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def run_cells(cells: Sequence[Cell], folder: Path, jobs: int) -> Iterator[tuple[Cell, str]]:
    """Run those that have not finished, several at a time; each in FOLDER/KEY.

    Args:
        cells: in the order in which they start: neighbours should share data and partition,
            which a process keeps.
        folder: holds their run folders. What stands there finished is kept; a cell that was
            cut off or damaged begins again.
        jobs: processes; each gets its share of the cores.

    Yields:
        Each cell that is done, and what went wrong with it, mostly nothing.

    Raises:
        RunError: a process died.
    """
    finished = {cell.key for cell in cells if is_finished(folder / cell.key)}
    todo = [cell for cell in cells if cell.key not in finished]
    yield from ((cell, "") for cell in cells if cell.key in finished)
    if not todo:
        return
    with process_pool(min(jobs, len(todo))) as pool:
        running: dict[Future[str], Cell] = {
            pool.submit(_run, str(folder / cell.key), cell.config.to_toml()): cell for cell in todo
        }
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as exc:
            raise RunError(
                "a process that ran cells has died, perhaps for want of memory: the same command "
                "goes on with the rest, --jobs 1 needs less"
            ) from exc
        finally:
            pool.shutdown(cancel_futures=True)


def is_finished(path: Path) -> bool:
    """Whether a cell's run folder holds all of its run, undamaged."""
    if not (path / "summary.json").exists():
        return False
    try:
        read_run(path)
    except FedheadError:
        return False
    return True


@contextlib.contextmanager
def process_pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that share the cores out among themselves and end with this one."""
    context = LoneContext()  # torch's threads do not survive a fork
    threads = max(1, cores() // jobs)
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))  # read when a process starts
    try:
        with ProcessPoolExecutor(
            jobs,
            mp_context=context,
            initializer=_start,
            initargs=(context.Value("i", 0), context.Lock(), threads),
        ) as pool:
            yield pool
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _start(counter: Synchronized[int], lock: Lock, threads: int) -> None:
    """Take a share of the cores, leave Ctrl-C to the parent, and never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        with lock:
            first = counter.value * threads
            counter.value += 1
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, own[first : first + threads] or own)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def _run(path: str, toml: str) -> str:
    """One cell in a worker; the message of an error that a user can mend."""
    from simulations.run import run_cell

    folder = Path(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = logging.FileHandler(folder.with_suffix(".log"), mode="w", delay=True)
    log.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("fedhead")
    logger.handlers, logger.propagate = [log], False
    logger.setLevel(logging.WARNING)
    try:
        run_cell(folder, toml)
    except FedheadError as exc:
        return str(exc)
    finally:
        log.close()
        sys.stdout.flush()
    return ""
