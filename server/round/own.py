"""One round by a Strategy: plan, exchange, validate, aggregate."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from common.config import AvailabilityConfig
from common.errors import ReplyError
from common.experiment import malicious_clients
from common.messages import TrainReply, TrainRequest, content_id, payload_bytes
from common.types import ClientPlan, Head, IntArray, UpdateBatch
from common.updates import added_up, joined, rows_at
from server.record.accounts import Accounts
from server.record.checkpoint import Checkpoint, restore_state
from server.record.client_memory import check_memory
from server.round.algorithm import (
    Fault,
    RoundResult,
    Run,
    quorum,
    sample_cohort,
    tell_lost,
    tell_no_quorum,
)
from server.round.attacks import corrupt
from server.round.availability import simulate
from server.round.collect import Collector
from server.round.norms import no_norms, oversized, remembered, row_norms
from server.strategy import Strategy

__all__ = ["OwnAlgorithm"]

_Update = tuple[TrainReply, UpdateBatch]


@dataclass(frozen=True, eq=False)
class _State:
    """What a checkpoint keeps.

    Attributes:
        strategy: the strategy's own state.
        clients: int64 (m,), those that remember something of their own.
        counted: int64 (m,), the last round in which each one's update counted.
        equipped: int64 (k,), those that have kept the plan's constant arrays.
        norms: float64 (h, 5), of the first updates that counted, see server.round.norms.
        accounts: int64 (n, 10), see Accounts.
    """

    strategy: Any
    clients: IntArray
    counted: IntArray
    equipped: IntArray
    norms: npt.NDArray[np.float64]
    accounts: IntArray


class OwnAlgorithm:
    """Runs a Strategy: nodes train their clients and send sums or single updates."""

    def __init__(self, run: Run, strategy: Strategy[Any]) -> None:
        self._run, self._strategy = run, strategy
        self.personal = strategy.personal
        self._state: Any = None
        self._counted: dict[int, int] = {}
        self._equipped: set[int] = set()
        self._norms = no_norms()

    @property
    def state(self) -> _State:
        clients = sorted(self._counted)
        rounds = [self._counted[client] for client in clients]
        return _State(
            strategy=self._state,
            clients=np.array(clients, np.int64),
            counted=np.array(rounds, np.int64),
            equipped=np.array(sorted(self._equipped), np.int64),
            norms=self._norms,
            accounts=self._run.registry.accounts.table,
        )

    def start(self, head: Head, checkpoint: Checkpoint | None) -> None:
        self._state, self._counted, self._equipped = self._strategy.init(head), {}, set()
        self._norms = no_norms()
        if checkpoint is not None:
            fresh = dataclasses.replace(self.state, accounts=Accounts.empty())
            kept = restore_state(fresh, checkpoint)
            self._run.registry.accounts.merge(kept.accounts)
            self._state = kept.strategy
            self._counted = dict(zip(kept.clients.tolist(), kept.counted.tolist(), strict=True))
            self._equipped = set(kept.equipped.tolist())
            self._norms = kept.norms
            if self._run.registry.simulated:
                check_memory(self._run.run_id, len(self._counted), checkpoint.round_number)

    def step(self, round_number: int, head: Head, fault: Fault) -> tuple[Head, RoundResult] | None:
        config, run = self._run.config, self._run
        plan = self._strategy.plan(self._state, round_number)
        cohort, wanted = sample_cohort(
            run, round_number, excluded=plan.exclude, everyone=plan.everyone
        )
        if not wanted:
            return None
        started = time.perf_counter()
        result = RoundResult(round_number, run.registry.accounts, cohort=len(cohort), wanted=wanted)
        self._count_downlink(result, head, plan, cohort)
        present = self._answering(plan, cohort, result)
        needed = quorum(config, wanted)
        if len(present) < needed:
            # The round is lost already: nobody need train for it.
            result.miss(present)
            present = []
        valid = self._valid(self._collector(round_number, head, plan, result), present)
        result.count([reply for reply, _ in valid])
        if result.valid >= needed:
            batch = joined([batch for _, batch in valid])
            head, result.accepted = self._aggregate(round_number, head, batch, fault)
            if result.accepted and plan.correction != "none":
                clients = [client for reply, _ in valid for client in reply.clients]
                self._counted |= dict.fromkeys(clients, round_number)
        else:
            tell_no_quorum(result, config)
        result.train_seconds = time.perf_counter() - started
        return head, result

    def _answering(self, plan: ClientPlan, cohort: list[int], result: RoundResult) -> list[int]:
        """The clients that simulated availability leaves."""
        run, config = self._run, self._run.config
        always = config.availability == AvailabilityConfig() and len(cohort) <= result.wanted
        if always or not run.registry.simulated:
            return cohort
        epochs = config.train.local_epochs if plan.kind == "sgd" else 1
        outcome = simulate(
            cohort,
            {client: run.registry.clients[client].num_examples * epochs for client in cohort},
            config.availability,
            wanted=result.wanted,
            seed=config.seed,
            round_number=result.round_number,
        )
        result.dropped = len(outcome.dropped)
        result.miss([*outcome.dropped, *outcome.late])
        result.answered_late(outcome.late)
        result.simulated_seconds = outcome.seconds
        return list(outcome.present)

    def _valid(self, collector: Collector, present: list[int]) -> list[_Update]:
        """The updates that count, in the order of clients, as ``aggregate`` wants them."""
        plan, head = collector.plan, collector.head
        waits = bool(self._waits(plan))
        digest = self._strategy.each is not None and not (plan.everyone or waits)
        valid = [
            (reply, self._digested(head, rows) if digest else rows)
            for reply, rows in collector.collect(present)
        ]
        valid.sort(key=lambda pair: min(pair[0].clients))
        if plan.constant:
            self._equipped.update(client for reply, _ in valid for client in reply.clients)
        if valid and self._corrupts(plan):
            valid = self._corrupted(collector, valid)
        if valid and self._bounds(plan):
            valid = self._bounded(collector.result, valid)
        return [(reply, self._digested(head, rows)) for reply, rows in valid] if waits else valid

    def _waits(self, plan: ClientPlan) -> str:
        """Who looks at all clients' updates before any of them counts; empty if nobody does."""
        if self._corrupts(plan):
            return "an attack"
        return 'round.max-update-norm = "auto"' if self._bounds(plan) else ""

    def _bounds(self, plan: ClientPlan) -> bool:
        """Whether updates are measured by the others of the round."""
        return self._run.bounds_by_median and plan.kind == "sgd"

    def _corrupts(self, plan: ClientPlan) -> bool:
        """Whether malicious clients may send something else than what they computed."""
        return self._run.config.attack.changes_updates and not plan.everyone

    def _collector(
        self, round_number: int, head: Head, plan: ClientPlan, result: RoundResult
    ) -> Collector:
        needs_all = self._waits(plan)
        if not needs_all and self._strategy.each is None:
            needs_all = self._strategy.name
        return Collector(
            self._run,
            plan,
            head,
            self._reduce(plan),
            lambda clients, again: self._request(round_number, head, plan, clients, again),
            result,
            needs_all,
        )

    def _corrupted(self, collector: Collector, valid: list[_Update]) -> list[_Update]:
        """The same once malicious clients have seen all; what is not fit to count is refused."""
        config, result = self._run.config, collector.result
        rows = corrupt(
            joined([rows for _, rows in valid]),
            malicious_clients(config),
            config.attack,
            collector.plan,
            seed=config.seed,
            round_number=result.round_number,
        )
        refused = {}
        for i in range(len(rows.client_ids)):
            try:
                collector.check_row(_row(rows, i), int(rows.num_examples[i]))
            except ReplyError as exc:
                refused[i] = str(exc)
        return _without(refused, [reply for reply, _ in valid], rows, result)

    def _bounded(self, result: RoundResult, valid: list[_Update]) -> list[_Update]:
        """Those that are not far larger than the others."""
        rows = joined([rows for _, rows in valid])
        norms = np.stack([row_norms(_row(rows, i)) for i in range(len(rows.client_ids))])
        refused = oversized(norms, self._norms)
        self._norms = remembered(self._norms, np.delete(norms, sorted(refused), axis=0))
        return _without(refused, [reply for reply, _ in valid], rows, result)

    def _digested(self, head: Head, rows: UpdateBatch) -> UpdateBatch:
        """Single clients' rows as ``aggregate`` wants them."""
        strategy = self._strategy
        if strategy.each is not None:
            return added_up(strategy.each(self._state, head, rows))
        return added_up(rows) if strategy.reduce == "sum" else rows

    def _aggregate(
        self, round_number: int, head: Head, updates: UpdateBatch, fault: Fault
    ) -> tuple[Head, bool]:
        """The next head; the old one, and the old state, where aggregation gives none to keep."""
        try:
            state, new = self._strategy.aggregate(self._state, head, updates)
        except (np.linalg.LinAlgError, OverflowError) as exc:
            tell_lost(round_number, f"aggregation failed ({exc})")
            return head, False
        why = fault(new)
        # A moment that is infinite would spoil all later rounds.
        if not why and _is_finite(self._state) and not _is_finite(state):
            why = f"the state of {self._strategy.name} is not finite"
        if why:
            tell_lost(round_number, why)
            return head, False
        self._state = state
        return new, True

    def _reduce(self, plan: ClientPlan) -> Literal["sum", "individual"]:
        if self._waits(plan):
            return "individual"
        return "sum" if plan.everyone else self._strategy.reduce

    def _request(
        self,
        round_number: int,
        head: Head,
        plan: ClientPlan,
        clients: list[int],
        again: bool = False,
    ) -> TrainRequest:
        config = self._run.config
        lacks = again or not self._equipped.issuperset(clients)
        return TrainRequest(
            head=head,
            plan=plan,
            training=config.train.local(),
            clients=tuple(clients),
            round_number=round_number,
            run_id=self._run.run_id,
            seed=config.seed,
            fingerprint=self._run.fingerprint,
            reduce=self._reduce(plan),
            max_norm=self._run.max_norm,
            memory_rounds=(
                ()
                if plan.correction == "none"
                else tuple(self._counted.get(client, 0) for client in clients)
            ),
            oldest_round=self._oldest_round(round_number),
            constant_id=content_id(plan.constant),
            has_constant=bool(plan.constant) and lacks,
        )

    def _oldest_round(self, round_number: int) -> int:
        return max(0, round_number - self._run.config.round.keep_checkpoints)

    def _count_downlink(
        self, result: RoundResult, head: Head, plan: ClientPlan, cohort: list[int]
    ) -> None:
        """What requests to clients that are phones of their own weigh."""
        lacking = set(cohort) - self._equipped if plan.constant else set()
        for has_constant, clients in ((True, lacking), (False, set(cohort) - lacking)):
            if clients:
                # Measured in each round: what a codec makes of a head may have any length.
                alone = self._request(result.round_number, head, plan, [0])
                alone = dataclasses.replace(alone, has_constant=has_constant)
                result.send(sorted(clients), payload_bytes(alone.write()))


def _row(rows: UpdateBatch, i: int) -> dict[str, npt.NDArray[np.generic]]:
    """One row's fields."""
    return {name: array[i] for name, array in rows.fields.items()}


def _without(
    refused: Mapping[int, str],
    replies: Sequence[TrainReply],
    rows: UpdateBatch,
    result: RoundResult,
) -> list[_Update]:
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


def _is_finite(state: Any) -> bool:
    """Whether the floats of a strategy's state are."""
    if dataclasses.is_dataclass(state):
        return all(_is_finite(getattr(state, f.name)) for f in dataclasses.fields(state))
    is_array = isinstance(state, np.ndarray) and state.dtype.kind == "f"
    return not is_array or bool(np.isfinite(state).all())
