"""Makes training requests, and records what clients keep between rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from common.messages import TrainRequest, content_id, payload_bytes
from common.types import ClientPlan, Head
from server.round.algorithm import RoundResult, Run

__all__ = ["Requests"]


class Requests:
    """Makes the requests of a run.

    Args:
        run: grid, registry and configuration.
        memory_rounds: for each client with a memory, the last round in which its update counted;
            its memory of that round is valid.
        holders: clients that keep the plan's constant arrays.

    Attributes:
        memory_rounds: as given; updated by ``note_memories``.
        holders: as given; updated by ``note_holders``.
    """

    def __init__(
        self, run: Run, memory_rounds: Mapping[int, int] | None = None, holders: Iterable[int] = ()
    ) -> None:
        self._run = run
        self.memory_rounds = dict(memory_rounds or {})
        self.holders = set(holders)

    def note_holders(self, plan: ClientPlan, clients: Collection[int]) -> None:
        """Record that clients have answered and so keep the plan's constant arrays."""
        if plan.constant:
            self.holders.update(clients)

    def note_memories(self, plan: ClientPlan, clients: Collection[int], round_number: int) -> None:
        """Record that clients' updates counted, so their memories of this round are valid."""
        if plan.correction != "none":
            self.memory_rounds |= dict.fromkeys(clients, round_number)

    def request(
        self,
        round_number: int,
        head: Head,
        plan: ClientPlan,
        clients: list[int],
        reduce: Literal["sum", "individual"],
        again: bool = False,
    ) -> TrainRequest:
        """The request to some of a node's clients.

        Args:
            round_number: from 1.
            head: the head that they start from.
            plan: the round's plan.
            clients: clients of one node.
            reduce: whether the node sends its clients' weighted sum or each client's fields.
            again: whether it includes the plan's constant arrays in any case.
        """
        config = self._run.config
        lacks = again or not self.holders.issuperset(clients)
        return TrainRequest(
            head=head,
            plan=plan,
            training=config.train.local(round_number),
            clients=tuple(clients),
            round_number=round_number,
            run_id=self._run.run_id,
            seed=config.seed,
            fingerprint=self._run.fingerprint,
            reduce=reduce,
            max_norm=self._run.max_norm,
            memory_rounds=(
                ()
                if plan.correction == "none"
                else tuple(self.memory_rounds.get(client, 0) for client in clients)
            ),
            oldest_round=self._oldest_round(round_number),
            constant_id=content_id(plan.constant),
            has_constant=bool(plan.constant) and lacks,
        )

    def _oldest_round(self, round_number: int) -> int:
        return max(0, round_number - self._run.config.round.keep_checkpoints)

    def count_downlink(
        self,
        result: RoundResult,
        head: Head,
        plan: ClientPlan,
        cohort: list[int],
        reduce: Literal["sum", "individual"],
    ) -> None:
        """Sizes of the requests if each client were a device of its own."""
        lacking = set(cohort) - self.holders if plan.constant else set()
        for has_constant, clients in ((True, lacking), (False, set(cohort) - lacking)):
            if clients:
                # Measured in each round, because the length of an encoded head may vary.
                alone = self.request(result.round_number, head, plan, [0], reduce)
                alone = dataclasses.replace(alone, has_constant=has_constant)
                result.send(sorted(clients), payload_bytes(alone.write()))
