"""Phones behind a gateway in this process: each phone is a device's ClientApp."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from common.codecs.uplink import encode_sum
from common.delivery.tokens import issue_token
from common.errors import FedheadError
from common.identity import client_of_node, client_of_phone
from common.messages import (
    BackboneReply,
    BackboneRequest,
    DescribeReply,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    Rejection,
    TrainReply,
    TrainRequest,
)
from common.updates import FieldSums, client_weights
from server.round.roster import CLIENT, client_file
from simulations.engines.in_process import InProcessGrid

GATEWAY_NODE = 2**63 + 11 * 10**9

Change = Callable[[TrainRequest, TrainReply], TrainReply]


def register(server: Path, name: str, node: int) -> None:
    """Write the files of a registered device, or of the gateway."""
    (server / "devices").mkdir(parents=True, exist_ok=True)
    (server / "devices" / f"{name}.pub").write_text("ecdsa-sha2-nistp384 ...")
    CLIENT.write(client_file(server, name), {"client": client_of_node(node)})


def add_phone(server: Path, name: str) -> None:
    """Give a phone its token."""
    issue_token(server / "delivery", name, server.parent / f"{name}.token")


class Town(InProcessGrid):
    """A gateway's node and devices' nodes.

    Args:
        phones: folder of each phone by name.
        devices: folder of each device by its node.

    Attributes:
        present: the phones that have checked in.
        requests: what the gateway was asked.
        rejecting: reasons of phones that give no update.
        change: changes the gateway's answers to a round.
        lost: how many of the gateway's next answers are lost.
    """

    def __init__(self, phones: Mapping[str, Path], devices: Mapping[int, Path] | None = None):
        super().__init__(self._answer, 0, {})  # type: ignore[arg-type]
        self._phones = {client_of_phone(name): folder for name, folder in phones.items()}
        self.present = set(self._phones)
        self.requests: list[Any] = []
        self.rejecting: dict[int, str] = {}
        self.change: Change = lambda _, reply: reply
        self.lost = 0
        for node, folder in {GATEWAY_NODE: None, **(devices or {})}.items():
            own = (
                {"data": f"folder:{folder / 'images'}", "state": str(folder / "state")}
                if folder
                else {}
            )
            self._contexts[node] = _context(node, own)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        names = list(super().push_messages(messages))
        for name, message in zip(names, messages, strict=True):
            is_round = message.metadata.message_type == "train"
            if is_round and message.metadata.dst_node_id == GATEWAY_NODE and self.lost:
                self.lost -= 1
                del self._replies[name]
        return names

    def asked(self, kind: type[Any]) -> list[Any]:
        """The gateway's requests of a kind."""
        return [request for request in self.requests if isinstance(request, kind)]

    def _answer(self, message: Message, context: Context) -> Message:
        if context.node_id != GATEWAY_NODE:
            return client_app(message, context)
        kind, content = message.metadata.message_type, message.content
        handle = {
            "query.describe": self._describe,
            "query.backbone": self._backbone,
            "train": self._train,
            "evaluate": self._evaluate,
        }[kind]
        return Message(handle(content), reply_to=message)

    def _describe(self, content: RecordDict) -> RecordDict:
        request = DescribeRequest.read(content)
        self.requests.append(request)
        replies = [
            DescribeReply.read(self._ask(i, "query.describe", content))
            for i in sorted(self.present)
        ]
        counts = tuple(reply.num_examples[0] for reply in replies)
        return DescribeReply(
            tuple(sorted(self.present)), counts, simulated=False, changing=True
        ).write()

    def _backbone(self, content: RecordDict) -> RecordDict:
        request = BackboneRequest.read(content)
        for phone in self._phones:
            self._ask(phone, "query.backbone", content)
        return BackboneReply(bool(request.data)).write()

    def _train(self, content: RecordDict) -> RecordDict:
        request = TrainRequest.read(content)
        self.requests.append(request)
        if request.constant_id and not request.has_constant:
            return TrainReply(request.fingerprint, missing_constant=True).write()
        replies, rejected = [], []
        for i, client in enumerate(request.clients):
            if client in self.rejecting:
                rejected.append(Rejection(client, self.rejecting[client]))
                continue
            rounds = request.memory_rounds and (request.memory_rounds[i],)
            own = replace(
                request, clients=(client,), reduce="individual", memory_rounds=rounds,
                seconds=0.0, enough=0,
            )  # fmt: skip
            replies.append(TrainReply.read(self._ask(client, "train", own.write())))
        if any(reply.missing_backbone for reply in replies):
            return TrainReply(request.fingerprint, missing_backbone=True).write()
        return self.change(request, _together(request, replies, rejected)).write()

    def _evaluate(self, content: RecordDict) -> RecordDict:
        request = EvaluateRequest.read(content)
        self.requests.append(request)
        found = []
        for client in request.clients:
            own = replace(request, clients=(client,)).write()
            found += EvaluateReply.read(self._ask(client, "evaluate", own)).evaluations
        return EvaluateReply(tuple(found)).write()

    def _ask(self, phone: int, kind: str, content: RecordDict) -> RecordDict:
        folder = self._phones[phone]
        config = {"data": f"folder:{folder / 'images'}", "state": str(folder / "state")}
        message = Message(content, dst_node_id=phone, message_type=kind)
        reply = client_app(message, _context(phone, config))
        if reply.has_error():
            raise FedheadError(reply.error.reason)
        return reply.content


def _context(node: int, config: dict[str, Any]) -> Context:
    return Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})


def _together(
    request: TrainRequest, replies: list[TrainReply], rejected: list[Rejection]
) -> TrainReply:
    """One reply for all phones, as a gateway makes it."""
    reports = tuple(report for reply in replies for report in reply.reports)
    rows = [{name: row for name, (row,) in reply.payloads.items()} for reply in replies]
    if request.reduce == "sum" and request.uplink.is_summed(len(rows)):
        sums = FieldSums()
        for report, row in zip(reports, rows, strict=True):
            (weight,) = client_weights(request.plan, np.array([report.num_examples]))
            sums.add(request.uplink.decode(report.client, row), weight)
        rows = [encode_sum({name: array[0] for name, array in sums.row().items()})]
    payloads = {name: tuple(row[name] for row in rows) for name in request.plan.fields if rows}
    return TrainReply(request.fingerprint, reports, tuple(rejected), payloads=payloads)
