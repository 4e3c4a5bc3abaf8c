"""One round with a fedhead Strategy: plan, ask, aggregate, keep the state."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import RunError
from common.images import ByteArray
from common.types import Affine, ClientPlan, Head, IntArray, UpdateBatch
from common.updates import added_up, joined
from server.record.accounts import Accounts
from server.record.checkpoint import Checkpoint, restore_state
from server.record.client_memory import check_memory
from server.round.algorithm import (
    Fault,
    RoundResult,
    Run,
    are_there,
    is_enough,
    sample_cohort,
    tell_done,
    tell_lost,
    tell_no_quorum,
)
from server.round.availability import answering
from server.round.codecs import SHARED, encoded, first_step, next_step
from server.round.collect import Collector
from server.round.downlink import Downlink, Sent, unsent
from server.round.norms import no_norms
from server.round.private import BudgetSpent
from server.round.requests import Requests
from server.round.screen import Screen, Update
from server.strategy import Metrics, RoundContext, Strategy, check_head, with_metrics

__all__ = ["OwnAlgorithm"]


@dataclass(frozen=True, eq=False)
class _State:
    """The state that a checkpoint keeps.

    Attributes:
        strategy: the strategy's own state.
        memory_clients: int64 (m,), clients that have a memory.
        memory_rounds: int64 (m,), for each of them, the last round in which its update counted.
        constant_holders: int64 (k,), clients that keep the plan's constant arrays.
        head_clients: int64 (j,), clients that have answered, if heads are sent as changes.
        head_rounds: int64 (j,), for each of them, the round whose head it holds.
        sent: that head after the last round.
        norms: float64 (h, f), norms of the first updates that counted, see server.round.norms.
        accounts: int64 (n, 10), see Accounts.
        codec_step: the next round's step of int8-shared; 0: none is known yet.
    """

    strategy: Any
    memory_clients: IntArray
    memory_rounds: IntArray
    constant_holders: IntArray
    head_clients: IntArray
    head_rounds: IntArray
    sent: Sent
    norms: npt.NDArray[np.float64]
    accounts: IntArray
    codec_step: float


class OwnAlgorithm:
    """Runs a Strategy: nodes train their clients and send sums or single updates.

    Args:
        run: grid, registry and configuration.
        strategy: plans and aggregates.
        affine: how integer features become x.
        zero_point: the integer feature that stands for 0, uint8 (d,) or the same for all.
    """

    def __init__(
        self, run: Run, strategy: Strategy[Any], affine: Affine, zero_point: ByteArray | int
    ) -> None:
        self._run, self._strategy = run, strategy
        self._affine, self._zero_point = affine, zero_point
        self.personal = strategy.personal
        self._state: Any = None
        self._requests = Requests(run)
        self._norms = no_norms()
        self._codec_step = 0.0

    @property
    def state(self) -> _State:
        rounds = sorted(self._requests.memory_rounds.items())
        downlink = self._requests.downlink
        heads = sorted(downlink.rounds.items())
        return _State(
            strategy=self._state,
            memory_clients=np.array([client for client, _ in rounds], np.int64),
            memory_rounds=np.array([number for _, number in rounds], np.int64),
            constant_holders=np.array(sorted(self._requests.holders), np.int64),
            head_clients=np.array([client for client, _ in heads], np.int64),
            head_rounds=np.array([number for _, number in heads], np.int64),
            sent=downlink.sent,
            norms=self._norms,
            accounts=self._run.registry.accounts.table,
            codec_step=self._codec_step,
        )

    def start(self, head: Head, checkpoint: Checkpoint | None) -> None:
        self._state, self._norms = self._strategy.init(head), no_norms()
        seed, self._codec_step = self._run.config.seed, 0.0
        self._requests = Requests(self._run, downlink=Downlink(seed, unsent(head)))
        if checkpoint is None:
            return
        fresh = dataclasses.replace(self.state, accounts=Accounts.empty())
        kept = restore_state(fresh, checkpoint)
        self._run.registry.accounts.merge(kept.accounts)
        self._state, self._norms = kept.strategy, kept.norms
        self._codec_step = kept.codec_step
        memories = zip(kept.memory_clients.tolist(), kept.memory_rounds.tolist(), strict=True)
        heads = zip(kept.head_clients.tolist(), kept.head_rounds.tolist(), strict=True)
        downlink = Downlink(seed, kept.sent, heads)
        holders = kept.constant_holders.tolist()
        self._requests = Requests(self._run, dict(memories), holders, downlink)
        if self._run.registry.simulated:
            count = len(self._requests.memory_rounds)
            check_memory(self._run.run_id, count, checkpoint.round_number)

    def step(self, round_number: int, head: Head, fault: Fault) -> tuple[Head, RoundResult] | None:
        guard = self._run.guard
        if guard and not guard.allows(round_number):
            tell_done(round_number, guard.why_spent)
            return None
        try:
            return self._step(round_number, head, fault)
        except BudgetSpent as exc:  # others have answered than in an earlier attempt at the round
            tell_done(round_number, str(exc))
            return None

    def _step(self, round_number: int, head: Head, fault: Fault) -> tuple[Head, RoundResult] | None:
        run, context = self._run, self._context(round_number)
        plan = self._plan(context)
        cohort, wanted = sample_cohort(
            run, round_number, excluded=plan.exclude, everyone=plan.everyone
        )
        if not wanted and run.guard is None:
            tell_done(round_number, "every client has been asked")
            return None
        started = time.perf_counter()
        accounts, privacy = run.registry.accounts, run.config.privacy
        result = RoundResult(
            round_number, accounts, privacy=privacy, cohort=len(cohort), wanted=wanted
        )
        if not are_there(run):
            tell_lost(round_number, "fewer clients are connected than round.quorum needs")
            return head, result
        updates = self._ask(head, plan, cohort, result)
        result.count([reply for reply, _ in updates])
        if not is_enough(run.config, result.valid, wanted):
            tell_no_quorum(result, run.config)
        elif made := self._aggregate(context, head, batch := _joined(updates), fault):
            head, result.metrics = made
            result.accepted = True
            if run.config.codec.up == SHARED:
                self._codec_step = next_step(plan, batch) or self._codec_step
            self._requests.note_memories(plan, _clients(updates), round_number)
        result.train_seconds = time.perf_counter() - started
        return head, result

    def _plan(self, context: RoundContext) -> ClientPlan:
        plan, codec = self._strategy.plan(self._state, context), self._run.config.codec
        plan = dataclasses.replace(plan, downlink=codec.down or plan.downlink)
        step = self._codec_step or first_step(context.lr, self._affine)
        return encoded(plan, codec.up, step)

    def _context(self, round_number: int) -> RoundContext:
        config, population = self._run.config, self._run.registry.population
        return RoundContext(
            round_number=round_number,
            num_clients=population,
            clients_per_round=config.train.asked(population) or population,
            lr=config.train.rate(round_number),
            affine=self._affine,
            zero_point=self._zero_point,
            seed=config.seed,
        )

    def _ask(
        self, head: Head, plan: ClientPlan, cohort: list[int], result: RoundResult
    ) -> list[Update]:
        """The valid updates in the order of clients, in the form that ``aggregate`` needs."""
        strategy, screen = self._strategy.for_plan(plan), Screen(self._run, plan)
        reduce = "individual" if screen.needs_all else strategy.reduce
        # The exact head stays with the server: it adds to it, evaluates it and exports it.
        sent = self._requests.downlink.send(head, plan, result.round_number)
        self._requests.count_downlink(result, sent, plan, cohort, reduce)
        collector = Collector(
            self._run,
            plan,
            sent,
            reduce,
            lambda clients, again: self._requests.request(
                result.round_number, sent, plan, clients, reduce, again
            ),
            result,
            needs_all=screen.needs_all or ("" if strategy.each else strategy.name),
        )
        merge = partial(_merged, strategy, self._state, head)
        at_once = strategy.each is not None and not screen.needs_all
        updates = [
            (reply, merge(rows) if at_once else rows)
            for reply, rows in collector.collect(answering(self._run, plan, cohort, result))
        ]
        updates.sort(key=lambda update: min(update[0].clients))
        self._requests.note_holders(plan, _clients(updates), result.round_number)
        updates, self._norms = screen.passed(collector, updates, self._norms)
        if screen.needs_all:
            return [(reply, merge(rows)) for reply, rows in updates]
        return updates

    def _aggregate(
        self, context: RoundContext, head: Head, updates: UpdateBatch, fault: Fault
    ) -> tuple[Head, Metrics] | None:
        """The next head and the round's metrics; None, and no new state, if it is not kept."""
        name, number, before = self._strategy.name, context.round_number, head.sha256
        try:
            given = self._strategy.aggregate(self._state, head, updates, context)
        except (np.linalg.LinAlgError, OverflowError) as exc:
            tell_lost(number, f"aggregation failed ({exc})")
            return None
        state, new, metrics = with_metrics(given, name)
        if head.sha256 != before:
            raise RunError(f"strategy {name} changes its input head, expected a new head")
        check_head(new, head, name)
        why = fault(new)
        # An infinite moment would spoil all later rounds.
        if not why and _is_finite(self._state) and not _is_finite(state):
            why = f"the state of {name} is not finite"
        if why:
            tell_lost(number, why)
            return None
        self._state = state
        return new, metrics


def _joined(updates: list[Update]) -> UpdateBatch:
    return joined([rows for _, rows in updates])


def _clients(updates: list[Update]) -> list[int]:
    return [client for reply, _ in updates for client in reply.clients]


def _merged(strategy: Strategy[Any], state: Any, head: Head, rows: UpdateBatch) -> UpdateBatch:
    """Single clients' rows in the form that ``aggregate`` needs."""
    if strategy.each is not None:
        return added_up(strategy.each(state, head, rows))
    return added_up(rows) if strategy.reduce == "sum" else rows


def _is_finite(state: Any) -> bool:
    """Whether all floats of a strategy's state are finite."""
    if dataclasses.is_dataclass(state):
        return all(_is_finite(getattr(state, f.name)) for f in dataclasses.fields(state))
    is_array = isinstance(state, np.ndarray) and state.dtype.kind == "f"
    return not is_array or bool(np.isfinite(state).all())
