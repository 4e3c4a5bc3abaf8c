"""What single updates go through together, once each has been checked alone.

Simulated malicious clients see all updates before they send their own, and a bound that a round
sets itself is known when all have come. Neither concerns who plans, asks or aggregates.
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
    """What the updates of one round go through.

    Attributes:
        run: registry and configuration.
        plan: of the round.
    """

    run: Run
    plan: ClientPlan

    @property
    def attacks(self) -> bool:
        """Whether malicious clients may send something else than what they computed."""
        return self.run.config.attack.changes_updates and not self.plan.everyone

    @property
    def bounds(self) -> bool:
        """Whether updates are measured by the others of the round."""
        return self.run.bounds_by_median and self.plan.kind == "sgd"

    @property
    def needs_all(self) -> str:
        """Who looks at all single updates before any of them counts; empty if nobody does."""
        if self.attacks:
            return "an attack"
        return 'round.max-update-norm = "auto"' if self.bounds else ""

    def passed(
        self, collector: Collector, updates: list[Update], earlier: Norms
    ) -> tuple[list[Update], Norms]:
        """The updates that count; the others are refused.

        Args:
            collector: of the round; checks again what an attacker has changed.
            updates: in the order of clients; single clients' rows if anybody looks at them.
            earlier: norms of the run's first updates, see server.round.norms.

        Returns:
            The updates and the norms, with those of this round where they are wanted.
        """
        if updates and self.attacks:
            updates = self._corrupted(collector, updates)
        if updates and self.bounds:
            return _bounded(collector.result, updates, earlier)
        return updates, earlier

    def _corrupted(self, collector: Collector, updates: list[Update]) -> list[Update]:
        """The same once malicious clients have seen all."""
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
                collector.check_row(_row(rows, i), int(rows.num_examples[i]))
            except ReplyError as exc:
                refused[i] = str(exc)
        return _without(refused, [reply for reply, _ in updates], rows, result)


def _bounded(
    result: RoundResult, updates: list[Update], earlier: Norms
) -> tuple[list[Update], Norms]:
    """Those that are not far larger than the others."""
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
    """Single clients' rows by reply, but for some, which are refused.

    Args:
        refused: why, by position among the rows.
        replies: whose rows they are, one after another.
        rows: of all of them.
        result: is told who is refused.
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
