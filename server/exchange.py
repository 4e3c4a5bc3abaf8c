"""Talking to nodes through a Flower Grid: who is there, and one question to many of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import FedheadError, RunError
from common.messages import BackboneReply, BackboneRequest, DescribeReply, DescribeRequest

__all__ = ["Client", "Registry", "ask", "error_reason", "exchange"]

logger = logging.getLogger("fedhead")

_POLL_SECONDS = 0.02
_SLOWEST_POLL_SECONDS = 0.5
_SETUP_SECONDS = 600.0  # a node may have to start, read its data and quantize nothing yet
_LATECOMER_SECONDS = 10.0  # while a run is on, nobody waits long for a new node


def exchange(
    grid: Grid, messages: Iterable[Message], deadline_seconds: float
) -> Iterator[tuple[int, Message]]:
    """Send messages and yield the replies that arrive before the deadline, as they do.

    Flower's own ``send_and_receive`` waits 3 s between polls and does not filter duplicates.

    Yields:
        At most one reply for each message, errors included, with the node that was asked:
        Flower's own error replies (node gone, message expired) do not name it.
    """
    messages = list(messages)
    ids = [str(name) if name else "" for name in grid.push_messages(messages)]
    # A message that could not even be pushed has no id.
    outstanding = {
        name: message.metadata.dst_node_id
        for name, message in zip(ids, messages, strict=True)
        if name
    }
    deadline = time.monotonic() + deadline_seconds
    arrived = 0
    pause = _POLL_SECONDS
    while outstanding:
        for reply in grid.pull_messages(list(outstanding)):
            answered = reply.metadata.reply_to_message_id
            if answered in outstanding:
                yield outstanding.pop(answered), reply
                arrived += 1
                pause = _POLL_SECONDS
        if not outstanding or time.monotonic() >= deadline:
            break
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(pause * 1.5, _SLOWEST_POLL_SECONDS)
    if outstanding:
        logger.warning(
            "%d of %d replies missed the deadline of %g s",
            len(outstanding), len(outstanding) + arrived, deadline_seconds,
        )  # fmt: skip


def ask(
    grid: Grid,
    kind: str,
    content: Callable[[int], RecordDict],
    nodes: Sequence[int],
    deadline_seconds: float,
) -> tuple[dict[int, RecordDict], dict[int, str]]:
    """Ask each node a question.

    Returns:
        Content of the good replies and reasons of the errors, by node id; a node that did not
        answer in time is in neither.
    """
    messages = [
        Message(content=content(node), dst_node_id=node, message_type=kind) for node in nodes
    ]
    answers: dict[int, RecordDict] = {}
    errors: dict[int, str] = {}
    for node, reply in exchange(grid, messages, deadline_seconds):
        if reply.has_error():
            errors[node] = error_reason(reply)
        else:
            answers[node] = reply.content
    return answers, errors


def error_reason(reply: Message) -> str:
    """The last line of a remote error: the exception itself."""
    lines = (reply.error.reason or f"error {reply.error.code}").strip().splitlines()
    return lines[-1] if lines else "no reason given"


def _present(node: int, answer: RecordDict) -> bool:
    try:
        return BackboneReply.read(answer).present
    except FedheadError as exc:
        logger.warning("node %d answered badly: %s", node, exc)
        return True  # it will say so when it is to train


@dataclass(frozen=True)
class Client:
    """Where a client lives, and how many training examples it said it has."""

    node: int
    num_examples: int


class Registry:
    """The clients that are known, kept up to date as nodes come.

    Args:
        grid: to reach the nodes.
        request: what each node is told about the task.
        backbone: fingerprint, and how to get the bytes for a node that lacks it.
    """

    def __init__(
        self,
        grid: Grid,
        request: DescribeRequest,
        backbone: tuple[str, Callable[[], bytes]],
    ) -> None:
        self._grid, self._request = grid, request
        self._fingerprint, self._backbone_bytes = backbone
        self._nodes: set[int] = set()
        self._errors: dict[int, str] = {}
        self.clients: dict[int, Client] = {}
        self.simulated = False
        self.backbone_bytes_sent = 0

    def refresh(self, timeout_seconds: float = _LATECOMER_SECONDS) -> None:
        """Ask nodes that have come since the last time what they host."""
        present = set(self._grid.get_node_ids())
        for client in [i for i, c in self.clients.items() if c.node not in present]:
            del self.clients[client]
        new = sorted(present - self._nodes)
        self._nodes = present
        if not new:
            return
        answers, errors = ask(
            self._grid, "query.describe", lambda _: self._request.write(), new, timeout_seconds
        )
        # One that answered with an error is asked again next time; a silent one when it returns.
        self._nodes -= set(errors)
        for node, reason in errors.items():
            if self._errors.get(node) != reason:
                logger.warning("node %d cannot take part: %s", node, reason)
        self._errors = errors
        for node in sorted(answers):
            self._add(node, answers[node])
        self.deliver_backbone([node for node in new if node in answers])

    def _add(self, node: int, answer: RecordDict) -> None:
        try:
            reply = DescribeReply.read(answer)
        except FedheadError as exc:
            logger.warning("node %d described itself badly: %s", node, exc)
            return
        self.simulated = self.simulated or reply.simulated
        for client, num_examples in zip(reply.clients, reply.num_examples, strict=True):
            if client in self.clients:
                logger.warning("node %d: client %d lives elsewhere already", node, client)
            elif num_examples < 1:
                logger.warning("client %d has no training examples and is left out", client)
            else:
                self.clients[client] = Client(node, num_examples)

    def deliver_backbone(self, nodes: Sequence[int]) -> None:
        """Send the backbone to those of the nodes that lack it."""
        question = BackboneRequest(self._fingerprint)
        answers, _ = ask(
            self._grid, "query.backbone", lambda _: question.write(), nodes, _SETUP_SECONDS
        )
        lacking = [node for node, answer in sorted(answers.items()) if not _present(node, answer)]
        if not lacking:
            return
        delivery = BackboneRequest(self._fingerprint, self._backbone_bytes())
        self.backbone_bytes_sent += len(delivery.data) * len(lacking)
        logger.info("sending the backbone to %d nodes", len(lacking))
        _, errors = ask(
            self._grid, "query.backbone", lambda _: delivery.write(), lacking, _SETUP_SECONDS
        )
        for node, reason in errors.items():
            logger.warning("node %d did not take the backbone: %s", node, reason)

    def wait_for(self, count: int, timeout_seconds: float) -> None:
        """Refresh until at least ``count`` clients are known.

        Raises:
            RunError: they did not come in time.
        """
        deadline = time.monotonic() + timeout_seconds
        self.refresh(_SETUP_SECONDS)
        while len(self.clients) < count and time.monotonic() < deadline:
            time.sleep(_SLOWEST_POLL_SECONDS)
            self.refresh(_SETUP_SECONDS)
        if len(self.clients) < count:
            why = "".join(
                f"; node {node}: {reason}" for node, reason in sorted(self._errors.items())
            )
            raise RunError(
                f"{len(self.clients)} clients with training examples are there after "
                f"{timeout_seconds:g} s, {count} are needed{why}"
            )
