"""The clients of a run: who is there, where they live, what they have given and cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import FedheadError, ReplyError, RunError
from common.messages import DescribeReply, DescribeRequest
from common.words import one_line
from server.record.accounts import Accounts
from server.record.events import event
from server.record.progress import Progress
from server.round.admission import Admission, check_total
from server.round.backbone_offer import Offer, deliver
from server.round.complaints import Complaints
from server.round.exchange import Exchange, error_reason
from server.round.stragglers import Stragglers

__all__ = ["Client", "Registry"]

logger = logging.getLogger("fedhead")

_PAUSE_SECONDS = 0.5
_SETUP_SECONDS = 600.0  # a node may have to start and to read its data
_LATECOMER_SECONDS = 10.0  # while a run is on, nobody waits long for a new node
_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Client:
    """Where a client lives, and how many training examples it said it has."""

    node: int
    num_examples: int


class Registry:
    """The clients that are known, kept up to date as nodes come.

    Args:
        grid: to reach the nodes.
        request: what each node is told about the run.
        backbone: for nodes that lack it.
        admission: who is let in.
        deadline_seconds: of a round.
        progress: is told how many clients are connected.

    Attributes:
        progress: as given.
        clients: those that are there, by id.
        known: ids of all that ever were.
        stragglers: those whose answer to an earlier round is still to come.
        accounts: what they have given and cost.
    """

    def __init__(
        self,
        grid: Grid,
        request: DescribeRequest,
        backbone: Offer,
        *,
        admission: Admission,
        deadline_seconds: float,
        progress: Progress,
    ) -> None:
        self._grid, self._request, self._backbone = grid, request, backbone
        self._admission, self._complaints = admission, Complaints()
        self._nodes, self._strangers = set[int](), set[int]()
        self._describing: list[Exchange] = []
        self.progress, self._looked = progress, 0.0
        self.clients: dict[int, Client] = {}
        self.known: set[int] = set()
        self.stragglers = Stragglers(grid, deadline_seconds)
        self.accounts = Accounts(admission.name)

    @property
    def simulated(self) -> bool:
        """Whether clients stand for phones, and all data are on this machine."""
        return bool(self._admission.simulated)

    @property
    def deployed(self) -> bool:
        """Whether the clients are the devices of a deployment."""
        return self._admission.deployed

    @property
    def population(self) -> int:
        """How many clients there are to choose from: all registered devices, or all that came."""
        return self._admission.registered or len(self.known)

    def name(self, client: int) -> str:
        """What a person calls a client."""
        return self._admission.name(client)

    def node_name(self, node: int) -> str:
        """What a person calls a node: as its client, where it has one alone."""
        if self._admission.is_unknown(node):
            return "a node with an unknown key"
        clients = self._clients_of(node)
        return self.name(clients[0]) if len(clients) == 1 else f"node {node}"

    def refuse(self, node: int, reason: str) -> None:
        """Count, and say once, that a node does what it may not.

        Args:
            node: as Flower has it.
            reason: what it does, as a verb that follows its name.
        """
        self.accounts.add("refused", self._clients_of(node))
        reason = one_line(reason)
        # A node that says it again and again must not fill the log.
        if self._complaints.refuse(node, reason):
            name = self.node_name(node)
            event(
                "refused", f"{name} {reason}: refused",
                level=logging.WARNING, node=node, name=name, reason=reason,
            )  # fmt: skip

    def _clients_of(self, node: int) -> list[int]:
        if own := self._admission.own_clients(node):
            return list(own)
        return [i for i, client in self.clients.items() if client.node == node]

    def refresh(self, timeout_seconds: float = _LATECOMER_SECONDS) -> None:
        """Ask nodes that have come since the last time what they host."""
        self._admission.refresh()
        present = self._registered(set(self._grid.get_node_ids()))
        self._drop({client.node for client in self.clients.values()} - present)
        new = sorted(present - self._nodes)
        self._nodes = present
        if new or self._describing:
            self._describe(new, timeout_seconds)
        if not self.simulated:
            self.accounts.see(list(self.clients))
        self.progress.update(connected=len(self.clients))

    def _registered(self, nodes: set[int]) -> set[int]:
        """Those that may take part; of each other there is one line."""
        strangers = {node for node in nodes if not self._admission.is_registered(node)}
        for node in sorted(strangers - self._strangers):
            self.refuse(node, "is connected, but not registered in this deployment")
        self._strangers = strangers
        return nodes - strangers

    def _drop(self, gone: set[int]) -> None:
        for node in sorted(gone):
            lost = [i for i, client in self.clients.items() if client.node == node]
            name = self.node_name(node) + (f", {len(lost)} clients," if len(lost) > 1 else "")
            for client in lost:
                del self.clients[client]
            event(
                "gone", f"{name} is gone",
                level=logging.WARNING, node=node, client=lost[0], name=name, clients=len(lost),
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
        exchange = Exchange(self._grid, messages, timeout_seconds, refuse=self.refuse)
        self._describing.append(exchange)
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
        for node in self._complaints.replace_errors(errors):
            name, reason = self.node_name(node), errors[node]
            message = f"{name} cannot take part: {reason}"
            event("node", message, level=logging.WARNING, node=node, name=name, reason=reason)
        self.deliver_backbone(sorted(self._admitted(answers)), timeout_seconds)

    def _admitted(self, answers: Mapping[int, RecordDict]) -> set[int]:
        """The nodes whose description holds; their clients are there from now on."""
        replies, admitted = dict[int, DescribeReply](), set[int]()
        for node in sorted(answers):
            try:
                replies[node] = self._admission.read(answers[node])
            except FedheadError as exc:
                self.refuse(node, f"describes itself badly, {exc}")
        self._admission.settle(replies.values())
        total = sum(client.num_examples for client in self.clients.values())
        for node, reply in replies.items():
            try:
                self._admission.check(node, reply)
                check_total(total, reply)
                if elsewhere := self.clients.keys() & set(reply.clients):
                    name = self.name(min(elsewhere))
                    raise ReplyError(f"speaks for {name}, which lives on another node")
            except FedheadError as exc:
                self.refuse(node, str(exc))
                continue
            if self._admission.takes_part(reply):
                admitted.add(node)
                total += sum(reply.num_examples)
                self._add(node, reply)
        return admitted

    def _add(self, node: int, reply: DescribeReply) -> None:
        for client, num_examples in zip(reply.clients, reply.num_examples, strict=True):
            name = self.name(client)
            if not num_examples:
                logger.warning("%s has no training examples and is left out", name)
                continue
            self.clients[client] = Client(node, num_examples)
            self.known.add(client)
            if not reply.simulated:
                message = f"{name} has joined with {num_examples} examples"
                if reply.unused > 0:
                    message += f", {reply.unused} more images than a device may use are left out"
                event("joined", message, client=client, name=name, num_examples=num_examples)

    def deliver_backbone(
        self, nodes: Sequence[int], timeout_seconds: float = _LATECOMER_SECONDS
    ) -> None:
        """Send the backbone to those of the nodes that lack it.

        Args:
            nodes: are asked.
            timeout_seconds: to say whether they lack it, and again to take it. What has been sent
                arrives later too: a node that still lacks it says so when it is to train.
        """
        first = {c.node: i for i, c in sorted(self.clients.items(), reverse=True)}

        def sent(lacking: Sequence[int], size: int) -> None:
            self.accounts.add("backbone_bytes", [first[n] for n in lacking if n in first], size)
            event("backbone", f"sending the backbone to {len(lacking)} nodes", bytes_each=size)

        for node, reason in deliver(
            self._backbone, self._grid, nodes, timeout_seconds, refuse=self.refuse, sent=sent
        ):
            logger.warning("%s %s", self.node_name(node), reason)

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
            raise RunError(
                f"{len(self.clients)} clients with training examples are there after "
                f"{time.monotonic() - started:.0f} s, {count} are needed"
                f"{self._complaints.summary(self.node_name)}"
            )
