"""Makes training requests, and records what clients keep between rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from common.messages import TrainRequest, content_id, payload_bytes
from common.types import ClientPlan, Head
from server.round.algorithm import RoundResult, Run
from server.round.downlink import Downlink, unsent

__all__ = ["Requests"]


class Requests:
    """Makes the requests of a run.

    Args:
        run: grid, registry and configuration.
        memory_rounds: for each client with a memory, the last round in which its update counted;
            its memory of that round is valid.
        holders: clients that keep the plan's constant arrays.
        downlink: what clients know of the head; None: no head has been sent.

    Attributes:
        memory_rounds: as given; updated by ``note_memories``.
        holders: as given; updated by ``note_holders``.
        downlink: as given; updated by its ``send`` and by ``note_holders``.
    """

    def __init__(
        self,
        run: Run,
        memory_rounds: Mapping[int, int] | None = None,
        holders: Iterable[int] = (),
        downlink: Downlink | None = None,
    ) -> None:
        self._run = run
        self.memory_rounds = dict(memory_rounds or {})
        self.holders = set(holders)
        self.downlink = downlink or Downlink(run.config.seed, unsent(Head.zeros(1, 1)))

    def note_holders(self, plan: ClientPlan, clients: Collection[int], round_number: int) -> None:
        """Record that clients have answered: they keep the head and the plan's constant arrays.

        Where nobody may know who was asked, nobody is recorded, and each client is sent them all.
        """
        if self._run.config.privacy.hides_cohorts:
            return
        if plan.constant:
            self.holders.update(clients)
        self.downlink.note(plan, clients, round_number)

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
            head: the head that they start from, as ``Downlink.send`` returns it.
            plan: the round's plan.
            clients: clients of one node.
            reduce: whether the node sends its clients' weighted sum or each client's fields.
            again: whether it includes the whole head and the plan's constant arrays in any case.
        """
        config = self._run.config
        # A node of simulated clients takes the head for all of them from one message.
        alone = not (again or self._run.registry.simulated) and len(clients) == 1
        base = self._base(plan, clients[0]) if alone else None
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
            changes=self.downlink.changes(head, base),
        )

    def _base(self, plan: ClientPlan, client: int) -> int | None:
        """The round whose head a client holds, if it can be sent a change of that one.

        A gateway hands its phones whole heads.
        """
        return None if self._run.registry.is_phone(client) else self.downlink.base(plan, client)

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
        groups: dict[tuple[bool, int | None], list[int]] = {}
        for client in sorted(set(cohort)):
            lacks = bool(plan.constant) and client not in self.holders
            groups.setdefault((lacks, self._base(plan, client)), []).append(client)
        for (has_constant, base), clients in groups.items():
            # Measured in each round, because the length of an encoded change may vary.
            alone = dataclasses.replace(
                self.request(result.round_number, head, plan, [0], reduce, again=True),
                has_constant=has_constant,
                changes=self.downlink.changes(head, base),
            )
            result.send(clients, payload_bytes(alone.write()))
