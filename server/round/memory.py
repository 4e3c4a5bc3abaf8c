"""How many single clients' updates the server's memory holds at once."""

from __future__ import annotations

import psutil

from common.errors import RunError

__all__ = ["clients_a_message"]

_WAVE_BYTES = 64_000_000  # single clients' updates at a time; some 1,200 heads of ten classes


def clients_a_message(row_bytes: int, cohort: int, nodes: int, needs_all: str) -> int:
    """Number of clients whose updates a node may send at once.

    Args:
        row_bytes: of one client's update.
        cohort: number of clients that are asked.
        nodes: number of nodes that they are on.
        needs_all: name of what needs all clients' updates in memory at once; empty if nothing.

    Raises:
        RunError: the memory cannot hold all single updates that are needed at once.
    """
    needed = 3 * row_bytes * cohort  # as received, side by side, and in float64
    if needs_all and needed > (free := psutil.virtual_memory().available):
        raise RunError(
            f"{needs_all} needs the updates of all {cohort} clients at once, "
            f"{needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: "
            "lower train.clients-per-round"
        )
    return max(1, _WAVE_BYTES // (row_bytes * nodes))
