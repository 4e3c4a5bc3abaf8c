"""What each client of a run has given and cost: updates by fate, bytes, and when it was seen."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from common.files import write_atomic
from common.types import IntArray
from server.record.events import utc

__all__ = ["COLUMNS", "Accounts", "Column"]

Column = Literal[
    "valid", "rejected", "failed", "late", "refused",
    "uplink_bytes", "downlink_bytes", "backbone_bytes",
]  # fmt: skip
COLUMNS: tuple[Column, ...] = (
    "valid", "rejected", "failed", "late", "refused",
    "uplink_bytes", "downlink_bytes", "backbone_bytes",
)  # fmt: skip
_WIDTH = len(COLUMNS) + 2


class Accounts:
    """A table that grows by a row with each new client.

    The counts add up to those of the run: every client that was asked gave a valid update, a
    rejected one or failed, and late ones are among the failed. ``refused`` is what a device said
    that was not its to say, beside all rounds. ``uplink_bytes`` are those of valid updates. A
    simulated client is never seen: its time is not of this world.

    Args:
        name: what a person calls a client.

    Attributes:
        name: as given.
        table: int64 (m, 10), ascending: client, the counts, last seen in ms since 1970 or 0.
    """

    def __init__(self, name: Callable[[int], str]) -> None:
        self.name, self.table = name, self.empty()

    @staticmethod
    def empty() -> IntArray:
        """A table without rows."""
        return np.zeros((0, _WIDTH), np.int64)

    def add(self, column: Column, clients: Sequence[int], amount: int | Sequence[int] = 1) -> None:
        """Count something for each of some clients; who is named twice counts twice."""
        rows = self._rows(np.asarray(clients, np.int64))
        np.add.at(self.table[:, 1 + COLUMNS.index(column)], rows, amount)

    def see(self, clients: Sequence[int]) -> None:
        """Remember that these were there a moment ago."""
        rows = self._rows(np.asarray(clients, np.int64))
        self.table[rows, -1] = time.time_ns() // 1_000_000

    def merge(self, earlier: IntArray) -> None:
        """Add a checkpoint's table."""
        rows = self._rows(earlier[:, 0])
        self.table[rows, 1:-1] += earlier[:, 1:-1]
        self.table[rows, -1] = np.maximum(self.table[rows, -1], earlier[:, -1])

    def total(self, column: Column) -> int:
        """Over all clients."""
        return int(self.table[:, 1 + COLUMNS.index(column)].sum())

    @property
    def num_clients(self) -> int:
        """How many have taken part; who was only refused has not."""
        refused = 1 + COLUMNS.index("refused")
        return int(np.delete(self.table[:, 1:], refused - 1, axis=1).any(axis=1).sum())

    def write(self, path: Path) -> None:
        """A line a client, as CSV."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["client", "name", *COLUMNS, "last_seen"])
        for client, *numbers, seen in self.table.tolist():
            lines.writerow([client, self.name(client), *numbers, utc(seen / 1000) if seen else ""])
        # After a loss of power the next round writes it again.
        write_atomic(path, text.getvalue().encode(), durable=False)

    def _rows(self, clients: IntArray) -> IntArray:
        """Where each client's row is; new ones get one."""
        ids = self.table[:, 0]
        rows = np.searchsorted(ids, clients)
        if len(ids) and (ids[np.minimum(rows, len(ids) - 1)] == clients).all():
            return rows
        fresh = np.setdiff1d(clients, ids)
        new = np.zeros((len(fresh), _WIDTH), np.int64)
        new[:, 0] = fresh
        both = np.concatenate([self.table, new])
        self.table = both[np.argsort(both[:, 0])]
        return np.searchsorted(self.table[:, 0], clients)
