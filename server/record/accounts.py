"""Counts for each client of a run: updates by outcome, bytes, and when it was last seen."""

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
    """A table with a row for each client; new clients get new rows.

    The counts add up to those of the run: every asked client gave a valid update, gave a rejected
    one, or failed; late ones are among the failed. ``refused`` counts what a device said outside
    of rounds against the rules. ``uplink_bytes`` are those of valid updates. A simulated client has
    no time of last contact, because its time is simulated.

    Args:
        name: returns a client's name for people.
        once_bytes: returns what each client gets with the first request for training, beside it.
        counts: whether anything is counted. Else only times of last contact are kept: in a private
            run with secret cohorts, a count would tell who was asked.

    Attributes:
        name: as given.
        table: int64 (m, 10), ascending: client, the counts, last seen in ms since 1970 or 0.
    """

    def __init__(
        self,
        name: Callable[[int], str],
        once_bytes: Callable[[], int] = lambda: 0,
        *,
        counts: bool = True,
    ) -> None:
        self.name, self._once_bytes, self._counts = name, once_bytes, counts
        self.table = self.empty()

    @staticmethod
    def empty() -> IntArray:
        """A table without rows."""
        return np.zeros((0, _WIDTH), np.int64)

    def add(self, column: Column, clients: Sequence[int], amount: int | Sequence[int] = 1) -> None:
        """Add to a count of some clients; a client that is named twice counts twice."""
        if not self._counts:
            return
        rows = self._rows(np.asarray(clients, np.int64))
        np.add.at(self.table[:, 1 + COLUMNS.index(column)], rows, amount)

    def send(self, clients: Sequence[int], size: int) -> int:
        """Record that each of some clients gets a request of this size; return all their bytes."""
        if not self._counts:
            return size * len(clients)
        rows = self._rows(np.asarray(clients, np.int64))
        first = self.table[rows, 1 + COLUMNS.index("downlink_bytes")] == 0
        sizes = size + self._once_bytes() * first
        self.add("downlink_bytes", clients, sizes.tolist())
        return int(sizes.sum())

    def see(self, clients: Sequence[int]) -> None:
        """Record that these clients were there just now."""
        rows = self._rows(np.asarray(clients, np.int64))
        self.table[rows, -1] = time.time_ns() // 1_000_000

    def merge(self, earlier: IntArray) -> None:
        """Add a checkpoint's table."""
        rows = self._rows(earlier[:, 0])
        self.table[rows, 1:-1] += earlier[:, 1:-1]
        self.table[rows, -1] = np.maximum(self.table[rows, -1], earlier[:, -1])

    def total(self, column: Column) -> int:
        """Sum over all clients."""
        return int(self.table[:, 1 + COLUMNS.index(column)].sum())

    @property
    def num_clients(self) -> int:
        """Number of clients that took part; one that was only refused did not."""
        refused = 1 + COLUMNS.index("refused")
        return int(np.delete(self.table[:, 1:], refused - 1, axis=1).any(axis=1).sum())

    def write(self, path: Path) -> None:
        """Write a CSV file with a line per client; what is not counted is empty."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["client", "name", *COLUMNS, "last_seen"])
        for client, *numbers, seen in self.table.tolist():
            told = numbers if self._counts else [""] * len(numbers)
            lines.writerow([client, self.name(client), *told, utc(seen / 1000) if seen else ""])
        # Not durable: after a power failure the next round writes it again.
        write_atomic(path, text.getvalue().encode(), durable=False)

    def _rows(self, clients: IntArray) -> IntArray:
        """The row number of each client; new clients get a row."""
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
