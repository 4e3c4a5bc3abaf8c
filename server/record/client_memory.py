"""The memories of simulated clients after their run has ended, kept in the run folder.

During a run, clients keep their memories in the machine's cache. A finished run may be continued
with more rounds, even after its folder was moved.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from common.errors import RunError
from common.files import simulated_state

__all__ = ["bring_back", "check_memory", "put_away"]

logger = logging.getLogger("fedhead")

_FOLDER = "client-state"
_TEMPORARY = f".{_FOLDER}.tmp"


def bring_back(path: Path, run_id: str) -> None:
    """Copy the clients' memories back into the cache."""
    kept = path / _FOLDER
    if kept.is_dir():
        _copy(kept, simulated_state() / run_id)
        shutil.rmtree(kept)


def put_away(path: Path, run_id: str, *, keep: bool) -> None:
    """Remove an ended run's memories from the cache.

    Args:
        path: the run folder.
        run_id: the run's id.
        keep: whether the run may be continued, so that the memories move to its folder.
    """
    state = simulated_state() / run_id
    if keep and any(state.glob("[0-9]*")):
        temporary = path / _TEMPORARY
        try:
            _copy(state, temporary)
        except (OSError, RunError) as exc:
            shutil.rmtree(temporary, ignore_errors=True)
            logger.warning("%s; it stays in %s", exc, state)
            return
        shutil.rmtree(path / _FOLDER, ignore_errors=True)
        temporary.rename(path / _FOLDER)
    shutil.rmtree(state, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    try:
        # Files beside the clients' folders are left out: the server can send them again.
        shutil.copytree(
            source, target, ignore=shutil.ignore_patterns("constant-*"), dirs_exist_ok=True
        )
    except shutil.Error as exc:  # its text lists every file
        reason = exc.args[0][0][2]
        raise RunError(f"clients' memories cannot be written to {target} ({reason})") from exc


def check_memory(run_id: str, num_clients: int, round_number: int) -> None:
    """Check that the memories of a simulated run's clients are in this machine's cache.

    Raises:
        RunError: they are missing.
    """
    state = simulated_state() / run_id
    if num_clients and not state.is_dir():
        raise RunError(
            f"{num_clients} clients have memories of the rounds up to {round_number}, but "
            f"{state} is missing: resume an interrupted run on its machine, with its cache"
        )
