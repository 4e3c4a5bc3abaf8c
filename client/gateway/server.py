"""What the server asks: the messages that the bridge hands over, and their answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from client.gateway.backbones import files_in
from client.gateway.evaluating import EvaluateOrder
from client.gateway.orders import Order
from client.gateway.place import Place
from client.gateway.presence import Presence
from client.gateway.record import Record
from client.gateway.rounds import Rounds
from client.gateway.runs import FINGERPRINT, RunInfo, Runs
from client.gateway.training import TrainOrder
from client.host import run_folder
from client.known_head import with_head
from client.memory import ClientMemory, with_constant
from common.errors import BackboneError, ProtocolError
from common.messages import (
    BackboneReply,
    BackboneRequest,
    DescribeReply,
    DescribeRequest,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    content_from,
    content_to,
)

__all__ = ["Answers", "order_of"]

logger = logging.getLogger("fedhead.gateway")

_UNSAID_SECONDS = 60.0  # of a server that does not say how long it waits


class Answers:
    """Answers a server's messages.

    Args:
        place: the gateway's files.
        runs: what is known of runs.
        presence: the phones.
        rounds: the rounds.
        count: counts something by its name.
    """

    def __init__(
        self,
        place: Place,
        runs: Runs,
        presence: Presence,
        rounds: Rounds,
        count: Callable[[str], None],
    ) -> None:
        self._place, self._runs, self._count = place, runs, count
        self._presence, self._rounds = presence, rounds

    async def answer(self, kind: str, content: bytes) -> bytes:
        """The answer's content.

        Raises:
            FedheadError: the message is wrong, or cannot be done.
            OSError: something cannot be kept.
        """
        answers = {
            "describe": self._describe,
            "backbone": self._backbone,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        if kind not in answers:
            raise ProtocolError(f"a gateway answers no {kind!r}")
        return await answers[kind](content)

    async def _describe(self, content: bytes) -> bytes:
        request = DescribeRequest.read(content_from(content))
        run, is_new = self._runs.describe(request)
        if is_new:
            self._presence.wake()
        # Where nobody may know who was asked, nobody counts as busy.
        found = self._there(run, set() if request.private else self._rounds.busy(request.run_id))
        if is_new or any(run.counts.get(client) != counts for client, counts in found.items()):
            run.counts |= found
            await asyncio.to_thread(self._runs.kept(run))
        counts = tuple(count for count, _ in found.values())
        reply = DescribeReply(tuple(found), counts, simulated=False, changing=True)
        return content_to(reply.write())

    def _there(self, run: RunInfo, busy: Collection[int]) -> dict[int, tuple[int, int]]:
        """The phones that could train now, with their numbers of examples."""
        found = dict[int, tuple[int, int]]()
        for seen in self._presence.lately():
            client, counts = seen.phone.client, seen.holdings.get(run.id, (0, 0))
            if not run.allows(counts):
                if client not in run.odd:
                    self._count("wrong-count")
                run.odd.add(client)
            elif counts[0] and seen.ready and client not in busy:
                found[client] = counts
        return dict(sorted(found.items()))

    async def _backbone(self, content: bytes) -> bytes:
        request = BackboneRequest.read(content_from(content))
        self._check_backbone(request.fingerprint)
        return content_to(BackboneReply(present=True).write())

    def _check_backbone(self, fingerprint: str) -> None:
        folder = self._place.backbones / fingerprint
        if not FINGERPRINT.fullmatch(fingerprint) or not files_in(folder):
            raise BackboneError(
                f"the gateway has no files of backbone {fingerprint[:12]} for phones; "
                "`fedhead run --deployment` writes them before it starts a run"
            )

    async def _train(self, content: bytes) -> bytes:
        found = await asyncio.to_thread(self._read_train, content)
        if isinstance(found, TrainReply):
            return content_to(found.write())
        order, request = found
        return await self._reply(order, request.seconds, request.enough)

    def _read_train(self, content: bytes) -> TrainReply | tuple[TrainOrder, TrainRequest]:
        request = TrainRequest.read(content_from(content))
        self._check_backbone(request.fingerprint)
        folder = run_folder(self._place.clients, request.run_id)
        complete = with_constant(request, folder, durable=True)
        if complete is None:
            return TrainReply(request.fingerprint, missing_constant=True)
        known = with_head(complete, folder)
        if known is None:
            return TrainReply(request.fingerprint, missing_head=True)
        return TrainOrder(known, ClientMemory(folder)), known

    async def _evaluate(self, content: bytes) -> bytes:
        request = await asyncio.to_thread(lambda: EvaluateRequest.read(content_from(content)))
        self._check_backbone(request.fingerprint)
        run = self._runs.get(request.run_id)
        order = EvaluateOrder(request, run.last_round)
        return await self._reply(order, request.seconds, request.enough)

    async def _reply(self, order: Order, seconds: float, enough: int) -> bytes:
        run = self._runs.get(order.run_id)
        if run.request.fingerprint != order.fingerprint:
            raise ProtocolError(
                f"the round's backbone is {order.fingerprint[:12]}, but the run was described "
                f"with {run.request.fingerprint[:12]}"
            )
        if run.request.private and not order.private:
            raise ProtocolError(
                f"run {order.run_id} was described as private, but asks for a {order.kind} round "
                "that is not"
            )
        self._runs.touch(order.run_id)
        run.last_round = order.round_number
        wait = seconds if seconds > 0 else _UNSAID_SECONDS
        round_ = await self._rounds.enter(order, run, wait, enough)
        return await self._rounds.reply(round_)


def order_of(place: Place, runs: Runs, record: Record) -> tuple[Order, RunInfo]:
    """An order that an earlier process has kept.

    Raises:
        FedheadError: what belongs to it is missing or damaged.
        KeyError: likewise.
    """
    words, parts = record
    content, run = content_from(parts["content"]), runs.get(words["run"])
    run.last_round = int(words["round"])
    if words["kind"] == "evaluate":
        return EvaluateOrder(EvaluateRequest.read(content), run.last_round), run
    request = TrainRequest.read(content)
    folder = run_folder(place.clients, request.run_id)
    complete = with_constant(request, folder, durable=True)
    if complete is None:
        raise ProtocolError(f"round {request.round_number}: the plan's constant arrays are lost")
    return TrainOrder(complete, ClientMemory(folder)), run
