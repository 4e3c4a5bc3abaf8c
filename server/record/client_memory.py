"""What simulated clients remember, once their run has ended: it lies in the run folder.

While a run is on, clients keep it in the cache of their machine. A run that has finished may still
go on for more rounds, after its folder was moved too.
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
    """Give clients what they remembered when the run ended."""
    kept = path / _FOLDER
    if kept.is_dir():
        _copy(kept, simulated_state() / run_id)
        shutil.rmtree(kept)


def put_away(path: Path, run_id: str, *, keep: bool) -> None:
    """Empty the cache of a run that has ended.

    Args:
        path: the run folder.
        run_id: of the run.
        keep: whether it may go on.
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
        # What is sent again to who lacks it lies beside the clients' folders.
        shutil.copytree(
            source, target, ignore=shutil.ignore_patterns("constant-*"), dirs_exist_ok=True
        )
    except shutil.Error as exc:  # it lists every file
        reason = exc.args[0][0][2]
        raise RunError(f"{target} does not take what clients remember ({reason})") from exc


def check_memory(run_id: str, num_clients: int, round_number: int) -> None:
    """Make sure that a simulated run's clients are where they remember something.

    Raises:
        RunError: they are not.
    """
    state = simulated_state() / run_id
    if num_clients and not state.is_dir():
        raise RunError(
            f"{num_clients} clients remember something of the rounds up to {round_number}, and "
            f"{state} is not there: a run that was cut off goes on where it began, with its cache"
        )
