"""The clients of a run: which are there, on which node, and what they have sent and cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence, Set

from flwr.serverapp import Grid

from common.config import PrivacyConfig
from common.messages import DescribeRequest
from common.phones import GATEWAY
from common.words import one_line
from server.record.accounts import Accounts
from server.record.events import event
from server.record.progress import Progress
from server.round.admission import Admission
from server.round.arrivals import tell_gone, tell_refused
from server.round.backbone_offer import Offer, deliver
from server.round.clients import Client, Clients
from server.round.complaints import Complaints
from server.round.descriptions import Descriptions
from server.round.stragglers import Stragglers

__all__ = ["Registry"]

logger = logging.getLogger("fedhead")

_PAUSE_SECONDS = 0.5
_LATECOMER_SECONDS = 10.0  # during a run, a new node must not hold up the others
_LOOK_SECONDS = 5.0


class Registry:
    """The known clients, updated as nodes come and go, and a gateway's phones.

    Args:
        grid: to reach the nodes.
        request: the description of the run for each node.
        backbone: the backbone for nodes that do not have it.
        admission: decides which nodes are let in.
        deadline_seconds: a round's deadline.
        progress: receives the number of connected clients.

    Attributes:
        progress: as given.
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
        self._grid, self._backbone = grid, backbone
        self._admission, self._complaints = admission, Complaints()
        self._nodes, self._strangers = set[int](), set[int]()
        self._descriptions = Descriptions(
            grid, request, backbone.fingerprint, admission.is_gateway, self.refuse
        )
        self._clients = Clients(admission, self.refuse)
        self.progress, self._looked = progress, 0.0
        self.stragglers = Stragglers(grid, deadline_seconds)
        # Of a device's backbone all bytes are counted where they are sent, the projection's too.
        self.accounts = Accounts(
            admission.name,
            lambda: backbone.basis_bytes if self.simulated else 0,
            counts=not self.privacy.hides_cohorts,
        )

    @property
    def clients(self) -> Mapping[int, Client]:
        """The clients that are there, by id."""
        return self._clients.there

    @property
    def known(self) -> Set[int]:
        """Ids of all clients that ever were there."""
        return self._clients.known

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
    def has_phones(self) -> bool:
        """Whether phones may take part, by way of a gateway."""
        return self._admission.has_phones

    def is_gateway(self, node: int) -> bool:
        """Whether a node is a gateway, whose clients are phones."""
        return self._admission.is_gateway(node)

    def is_phone(self, client: int) -> bool:
        """Whether a client that is there is a phone."""
        return client in self.clients and self.is_gateway(self.clients[client].node)

    @property
    def population(self) -> int:
        """Number of clients to choose from: all that are registered, or all that ever joined."""
        return self._admission.registered or len(self.known)

    def name(self, client: int) -> str:
        """A client's name for people."""
        return self._admission.name(client)

    def node_name(self, node: int) -> str:
        """A node's name for people; if it has only one client, the client's name."""
        if self._admission.is_unknown(node):
            return "a node with an unknown key"
        if self.is_gateway(node):
            return GATEWAY
        clients = self._clients_of(node)
        return self.name(clients[0]) if len(clients) == 1 else f"node {node}"

    def refuse(self, node: int, reason: str) -> None:
        """Count what a node does against the rules, and log it once.

        Args:
            node: Flower's node id.
            reason: what it does: words that follow its name and begin with a verb.
        """
        if not self.is_gateway(node):  # what it does is not its phones' fault
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
        return self._clients.of(node)

    def refresh(self, timeout_seconds: float = _LATECOMER_SECONDS) -> None:
        """Ask new nodes which clients they host, and gateways which of their phones are there."""
        self._admission.refresh()
        present = self._registered(set(self._grid.get_node_ids()))
        self._drop({client.node for client in self.clients.values()} - present)
        due = self._descriptions.due(present, present - self._nodes)
        self._nodes = present
        if due or self._descriptions.is_waiting:
            self._describe(due, timeout_seconds)
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
            lost = self._clients.drop(node)
            why = "is gone" if self._admission.is_registered(node) else "was revoked"
            name = self.node_name(node) + (f", {len(lost)} clients," if len(lost) > 1 else "")
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

    def _describe(self, due: Sequence[int], timeout_seconds: float) -> None:
        """Ask nodes which clients they host."""
        answers, errors = self._descriptions.ask(due, timeout_seconds)
        # A node that answered with an error is asked again next time.
        self._nodes -= set(errors)
        for node in filter(self.is_gateway, errors):
            self._clients.drop(node)
        for node in self._complaints.replace_errors(errors):
            name, reason = self.node_name(node), errors[node]
            message = f"{name} cannot take part: {reason}"
            event("node", message, level=logging.WARNING, node=node, name=name, reason=reason)
        self.deliver_backbone(sorted(self._clients.admit(answers)), timeout_seconds)

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
