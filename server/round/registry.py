"""The clients of a run: which are there, on which node, and what they have sent and cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.config import PrivacyConfig
from common.errors import FedheadError, ReplyError
from common.messages import DescribeReply, DescribeRequest
from common.words import one_line
from server.record.accounts import Accounts
from server.record.events import event
from server.record.progress import Progress
from server.round.admission import Admission, check_total
from server.round.arrivals import tell_gone, tell_joined, tell_refused
from server.round.backbone_offer import Offer, deliver
from server.round.complaints import Complaints
from server.round.exchange import Exchange, error_reason
from server.round.stragglers import Stragglers

__all__ = ["Client", "Registry"]

logger = logging.getLogger("fedhead")

_PAUSE_SECONDS = 0.5
_LATECOMER_SECONDS = 10.0  # during a run, a new node must not hold up the others
_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Client:
    """A client's node, and the number of training examples that it reported."""

    node: int
    num_examples: int


class Registry:
    """The known clients, updated as nodes come and go.

    Args:
        grid: to reach the nodes.
        request: the description of the run for each node.
        backbone: the backbone for nodes that do not have it.
        admission: decides which nodes are let in.
        deadline_seconds: a round's deadline.
        progress: receives the number of connected clients.

    Attributes:
        progress: as given.
        clients: clients that are there, by id.
        known: ids of all clients that ever were there.
        stragglers: clients that still owe an answer to an earlier round.
        accounts: each client's contributions and costs.
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
        # Of a device's backbone all bytes are counted where they are sent, the projection's too.
        self.accounts = Accounts(
            admission.name,
            lambda: backbone.basis_bytes if self.simulated else 0,
            counts=not self.privacy.hides_cohorts,
        )

    @property
    def privacy(self) -> PrivacyConfig:
        """The run's."""
        return self._admission.privacy

    @property
    def simulated(self) -> bool:
        """Whether clients are simulated, so that all data is on this machine."""
        return bool(self._admission.simulated)

    @property
    def deployed(self) -> bool:
        """Whether the clients are the devices of a deployment."""
        return self._admission.deployed

    @property
    def population(self) -> int:
        """Number of clients to choose from: all registered devices, or all that ever joined."""
        return self._admission.registered or len(self.known)

    def name(self, client: int) -> str:
        """A client's name for people."""
        return self._admission.name(client)

    def node_name(self, node: int) -> str:
        """A node's name for people; if it has only one client, the client's name."""
        if self._admission.is_unknown(node):
            return "a node with an unknown key"
        clients = self._clients_of(node)
        return self.name(clients[0]) if len(clients) == 1 else f"node {node}"

    def refuse(self, node: int, reason: str) -> None:
        """Count what a node does against the rules, and log it once.

        Args:
            node: Flower's node id.
            reason: what it does: words that follow its name and begin with a verb.
        """
        self.accounts.add("refused", self._clients_of(node))
        reason = one_line(reason)
        # A node that does it again and again must not fill the log.
        if self._complaints.refuse(node, reason):
            name = self.node_name(node)
            tell_refused(node, name, reason)

    def refuse_in_round(self, node: int, reason: str) -> None:
        """The same of a node that a round asks, unless nobody may know that it was asked."""
        if not self.privacy.hides_cohorts:
            self.refuse(node, reason)

    def _clients_of(self, node: int) -> list[int]:
        if own := self._admission.own_clients(node):
            return list(own)
        return [i for i, client in self.clients.items() if client.node == node]

    def refresh(self, timeout_seconds: float = _LATECOMER_SECONDS) -> None:
        """Ask new nodes which clients they host."""
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
        """The nodes that may take part; each of the others gets one log line."""
        strangers = {node for node in nodes if not self._admission.is_registered(node)}
        for node in sorted(strangers - self._strangers):
            self.refuse(node, "is connected, but not registered in this deployment")
        self._strangers = strangers
        return nodes - strangers

    def _drop(self, gone: set[int]) -> None:
        for node in sorted(gone):
            lost = [i for i, client in self.clients.items() if client.node == node]
            why = "is gone" if self._admission.is_registered(node) else "was revoked"
            name = self.node_name(node) + (f", {len(lost)} clients," if len(lost) > 1 else "")
            for client in lost:
                del self.clients[client]
            tell_gone(node, name, why, lost)

    def silence(self, client: int) -> str:
        """Why a client has not answered, as far as is known."""
        self._admission.refresh()
        return "it was revoked" if self._admission.is_revoked(client) else "no answer"

    def complaints(self) -> str:
        """Problems of nodes, as the end of a sentence about missing clients; may be empty."""
        return self._complaints.summary(self.node_name)

    def look(self) -> None:
        """During a round, report every few seconds how many clients are connected."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            present = set(self._grid.get_node_ids())
            connected = sum(client.node in present for client in self.clients.values())
            self.progress.update(connected=connected)

    def ready(self) -> int:
        """Number of clients that are there and owe no answer.

        Where nobody may know who was asked, nobody counts as owing one.
        """
        busy = () if self.privacy.hides_cohorts else self.stragglers.busy()
        return len(self.clients.keys() - busy)

    def _describe(self, new: Sequence[int], timeout_seconds: float) -> None:
        """Ask new nodes which clients they host; take late answers to earlier questions too."""
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
        # A node that answered with an error is asked again next time.
        self._nodes -= set(errors)
        for node in self._complaints.replace_errors(errors):
            name, reason = self.node_name(node), errors[node]
            message = f"{name} cannot take part: {reason}"
            event("node", message, level=logging.WARNING, node=node, name=name, reason=reason)
        self.deliver_backbone(sorted(self._admitted(answers)), timeout_seconds)

    def _admitted(self, answers: Mapping[int, RecordDict]) -> set[int]:
        """Add the clients of nodes with a valid description; return these nodes."""
        replies, admitted = dict[int, DescribeReply](), set[int]()
        for node in sorted(answers):
            try:
                replies[node] = self._admission.read(answers[node])
            except FedheadError as exc:
                self.refuse(node, f"sends an invalid description, {exc}")
        self._admission.settle(replies.values())
        total = sum(client.num_examples for client in self.clients.values())
        for node, reply in replies.items():
            try:
                self._admission.check(node, reply)
                check_total(total, reply)
                if elsewhere := self.clients.keys() & set(reply.clients):
                    name = self.name(min(elsewhere))
                    raise ReplyError(f"speaks for {name}, which is on another node")
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
                tell_joined(client, name, reply, self.privacy)

    def deliver_backbone(
        self,
        nodes: Sequence[int],
        timeout_seconds: float = _LATECOMER_SECONDS,
        *,
        in_round: bool = False,
    ) -> None:
        """Send the backbone to the nodes that do not have it.

        Args:
            nodes: nodes to ask.
            timeout_seconds: time to say whether they have it, and again to receive it. A sent
                backbone may also arrive later. A node without it says so when it is to train.
            in_round: whether the nodes are asked because a round asks them.
        """
        first = {c.node: i for i, c in sorted(self.clients.items(), reverse=True)}

        def sent(lacking: Sequence[int], size: int) -> None:
            self.accounts.add("backbone_bytes", [first[n] for n in lacking if n in first], size)
            event("backbone", f"sending the backbone to {len(lacking)} nodes", bytes_each=size)

        told = not (in_round and self.privacy.hides_cohorts)
        for node, reason in deliver(
            self._backbone, self._grid, nodes, timeout_seconds, self.refuse, sent, told=told
        ):
            logger.warning("%s %s", self.node_name(node), reason)

    def gather(
        self, count: int, seconds: float, answer_seconds: float = _LATECOMER_SECONDS
    ) -> bool:
        """Refresh until at least ``count`` clients are ready; False if that takes too long.

        Args:
            count: at least 1.
            seconds: time to wait for them.
            answer_seconds: time for a new node to say which clients it hosts.
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
