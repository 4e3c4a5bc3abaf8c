"""The clients of a run: who is there, where they live, what they have given and cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import FedheadError, RunError
from common.messages import BackboneReply, DescribeReply, DescribeRequest
from server.accounts import Accounts
from server.backbones import Offer
from server.events import event
from server.exchange import Exchange, ask, error_reason
from server.progress import Progress
from server.stragglers import Stragglers

__all__ = ["Client", "Registry"]

logger = logging.getLogger("fedhead")

_PAUSE_SECONDS = 0.5
_SETUP_SECONDS = 600.0  # a node may have to start and to read its data
_LATECOMER_SECONDS = 10.0  # while a run is on, nobody waits long for a new node
_LOOK_SECONDS = 5.0


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
        backbone: for nodes that lack it.
        deadline_seconds: of a round.
        progress: is told how many clients are connected.

    Attributes:
        progress: as given.
        clients: those that are there, by id.
        known: ids of all that ever were.
        simulated: whether they stand for phones, and all data are on this machine.
        stragglers: those whose answer to an earlier round is still to come.
        accounts: what they have given and cost.
    """

    def __init__(
        self,
        grid: Grid,
        request: DescribeRequest,
        backbone: Offer,
        *,
        deadline_seconds: float,
        progress: Progress,
    ) -> None:
        self._grid, self._request = grid, request
        self._backbone = backbone
        self._nodes: set[int] = set()
        self._errors: dict[int, str] = {}
        self._describing: list[Exchange] = []
        self.progress, self._looked = progress, 0.0
        self.clients: dict[int, Client] = {}
        self.known: set[int] = set()
        self.simulated = False
        self.stragglers = Stragglers(grid, deadline_seconds)
        self.accounts = Accounts()

    def refresh(self, timeout_seconds: float = _LATECOMER_SECONDS) -> None:
        """Ask nodes that have come since the last time what they host."""
        present = set(self._grid.get_node_ids())
        self._drop({client.node for client in self.clients.values()} - present)
        new = sorted(present - self._nodes)
        self._nodes = present
        if new or self._describing:
            self._describe(new, timeout_seconds)
        if not self.simulated:
            self.accounts.see(list(self.clients))
        self.progress.update(connected=len(self.clients))

    def _drop(self, gone: set[int]) -> None:
        for node in sorted(gone):
            lost = [i for i, client in self.clients.items() if client.node == node]
            for client in lost:
                del self.clients[client]
            who = f"client {lost[0]}" if len(lost) == 1 else f"node {node}, {len(lost)} clients,"
            event(
                "gone", f"{who} has lost its connection",
                level=logging.WARNING, node=node, client=lost[0], clients=len(lost),
            )  # fmt: skip

    def look(self) -> None:
        """Tell, every few seconds, how many clients are connected while a round is under way."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            present = set(self._grid.get_node_ids())
            connected = sum(client.node in present for client in self.clients.values())
            self.progress.update(connected=connected)

    def ready(self) -> int:
        """How many clients are there and have answered what they were asked."""
        return len(self.clients.keys() - self.stragglers.busy())

    def _describe(self, new: Sequence[int], timeout_seconds: float) -> None:
        """Ask new nodes what they host, and listen to those that did not answer in time before."""
        messages = [
            Message(content=self._request.write(), dst_node_id=node, message_type="query.describe")
            for node in new
        ]
        self._describing.append(Exchange(self._grid, messages, timeout_seconds))
        answers, errors = {}, {}
        for exchange in self._describing:
            for node, reply in exchange:
                if reply.has_error():
                    errors[node] = error_reason(reply)
                else:
                    answers[node] = reply.content
        self._describing = [exchange for exchange in self._describing if exchange.outstanding]
        # One that answered with an error is asked again next time.
        self._nodes -= set(errors)
        for node, reason in errors.items():
            if self._errors.get(node) != reason:
                message = f"node {node} cannot take part: {reason}"
                event("node", message, level=logging.WARNING, node=node, reason=reason)
        self._errors = errors
        for node in sorted(answers):
            self._add(node, answers[node])
        self.deliver_backbone(sorted(answers))

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
                self.known.add(client)
                if not reply.simulated:
                    message = f"client {client} has joined with {num_examples} examples"
                    event("joined", message, client=client, num_examples=num_examples)

    def deliver_backbone(self, nodes: Sequence[int]) -> None:
        """Send the backbone to those of the nodes that lack it."""
        question = self._backbone.request(brings=False)
        answers, refusals = ask(
            self._grid, "query.backbone", lambda _: question.write(), nodes, _SETUP_SECONDS
        )
        for node, reason in refusals.items():
            logger.warning("node %d does not take the backbone: %s", node, reason)
        lacking = [node for node, answer in sorted(answers.items()) if not _present(node, answer)]
        if not lacking:
            return
        delivery = self._backbone.request(brings=True)
        size = len(delivery.data)
        first = {c.node: i for i, c in sorted(self.clients.items(), reverse=True)}
        self.accounts.add("backbone_bytes", [first[n] for n in lacking if n in first], size)
        event("backbone", f"sending the backbone to {len(lacking)} nodes", bytes_each=size)
        _, errors = ask(
            self._grid, "query.backbone", lambda _: delivery.write(), lacking, _SETUP_SECONDS
        )
        for node, reason in errors.items():
            logger.warning("node %d did not take the backbone: %s", node, reason)

    def gather(
        self, count: int, seconds: float, answer_seconds: float = _LATECOMER_SECONDS
    ) -> bool:
        """Refresh until at least ``count`` clients are ready; False if they do not come in time.

        Args:
            count: at least 1.
            seconds: to wait for them.
            answer_seconds: that a new node has to say what it hosts.
        """
        deadline = time.monotonic() + seconds
        if self.ready() < count:
            message = f"{self.ready()} of {count} clients are ready, waiting"
            event("waiting", message, ready=self.ready(), needed=count)
        while self.ready() < count and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
            self.stragglers.poll()
            self.refresh(min(answer_seconds, max(0.0, deadline - time.monotonic())))
        return self.ready() >= count

    def wait_for(
        self, count: int, timeout_seconds: float, answer_seconds: float = _SETUP_SECONDS
    ) -> None:
        """Gather ``count`` clients before the first round.

        Args:
            count: at least 1.
            timeout_seconds: to wait for them.
            answer_seconds: that nodes which are there from the start have to say what they host.

        Raises:
            RunError: they did not come in time.
        """
        started = time.monotonic()
        self.refresh(answer_seconds)
        left = timeout_seconds - (time.monotonic() - started)
        if not self.gather(count, left, _SETUP_SECONDS):
            why = "".join(
                f"; node {node}: {reason}" for node, reason in sorted(self._errors.items())
            )
            raise RunError(
                f"{len(self.clients)} clients with training examples are there after "
                f"{time.monotonic() - started:.0f} s, {count} are needed{why}"
            )
