"""Steps on all single updates together, after each has been checked alone.

Simulated malicious clients see all updates before they send their own, and a bound from the round's
own updates is known only when all have arrived. Planning, asking and aggregating do not depend on
these steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import ReplyError
from common.experiment import malicious_clients
from common.messages import TrainReply
from common.types import ClientPlan, UpdateBatch
from common.updates import joined, rows_at
from server.round.algorithm import RoundResult, Run
from server.round.attacks import corrupt
from server.round.collect import Collector
from server.round.norms import Norms, oversized, remembered, row_norms

__all__ = ["Screen", "Update"]

Update = tuple[TrainReply, UpdateBatch]
"""A valid reply, without its arrays, and its rows."""


@dataclass(frozen=True, eq=False)
class Screen:
    """The steps on one round's updates.

    Attributes:
        run: registry and configuration.
        plan: the round's plan.
    """

    run: Run
    plan: ClientPlan

    @property
    def attacks(self) -> bool:
        """Whether malicious clients may send something other than what they computed."""
        return self.run.config.attack.changes_updates and not self.plan.everyone

    @property
    def bounds(self) -> bool:
        """Whether the round's other updates bound each update."""
        return self.run.bounds_by_median and self.plan.kind == "sgd"

    @property
    def needs_all(self) -> str:
        """The key that needs all single updates before any of them counts; empty: none does."""
        if self.attacks:
            return "an attack"
        return 'round.max-update-norm = "auto"' if self.bounds else ""

    def passed(
        self, collector: Collector, updates: list[Update], earlier: Norms
    ) -> tuple[list[Update], Norms]:
        """The updates that count; others are refused.

        Args:
            collector: the round's collector; it checks again rows that an attacker changed.
            updates: in the order of clients; single clients' rows if a step needs them.
            earlier: norms of the run's first updates, see server.round.norms.

        Returns:
            The updates, and the norms, with this round's added if they are used.
        """
        if updates and self.attacks:
            updates = self._corrupted(collector, updates)
        if updates and self.bounds:
            return _bounded(collector.result, updates, earlier)
        return updates, earlier

    def _corrupted(self, collector: Collector, updates: list[Update]) -> list[Update]:
        """The updates after malicious clients have changed theirs."""
        config, result = self.run.config, collector.result
        rows = corrupt(
            joined([rows for _, rows in updates]),
            malicious_clients(config),
            config.attack,
            self.plan,
            seed=config.seed,
            round_number=result.round_number,
        )
        refused = {}
        for i in range(len(rows.client_ids)):
            try:
                collector.reader.check_row(_row(rows, i), int(rows.num_examples[i]))
            except ReplyError as exc:
                refused[i] = str(exc)
        return _without(refused, [reply for reply, _ in updates], rows, result)


def _bounded(
    result: RoundResult, updates: list[Update], earlier: Norms
) -> tuple[list[Update], Norms]:
    """The updates that are not far larger than the others."""
    rows = joined([rows for _, rows in updates])
    norms = np.stack([row_norms(_row(rows, i)) for i in range(len(rows.client_ids))])
    refused = oversized(norms, earlier)
    kept = remembered(earlier, np.delete(norms, sorted(refused), axis=0))
    return _without(refused, [reply for reply, _ in updates], rows, result), kept


def _row(rows: UpdateBatch, i: int) -> dict[str, npt.NDArray[np.generic]]:
    """One row's fields."""
    return {name: array[i] for name, array in rows.fields.items()}


def _without(
    refused: Mapping[int, str],
    replies: Sequence[TrainReply],
    rows: UpdateBatch,
    result: RoundResult,
) -> list[Update]:
    """Single clients' rows by reply, without the refused ones.

    Args:
        refused: reasons by position among the rows.
        replies: the replies that the rows come from, in order.
        rows: the rows of all replies.
        result: receives the refusals.
    """
    kept, end = [], 0
    for reply in replies:
        start, end = end, end + len(reply.clients)
        for i in range(start, end):
            if i in refused:
                result.reject(rows.client_ids[i][0], refused[i])
        if good := [i for i in range(start, end) if i not in refused]:
            kept.append((reply.only([i - start for i in good]), rows_at(rows, good)))
    return kept
