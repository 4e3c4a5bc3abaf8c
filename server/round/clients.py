"""The clients that are there, by node: admitted by what their nodes say of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import RecordDict

from common.errors import FedheadError, ReplyError
from common.messages import DescribeReply
from server.round.admission import Admission, check_total
from server.round.arrivals import tell_joined, tell_phones
from server.round.exchange import Refuse

__all__ = ["Client", "Clients"]

logger = logging.getLogger("fedhead")


@dataclass(frozen=True)
class Client:
    """A client's node, and the number of training examples that it reported."""

    node: int
    num_examples: int


class Clients:
    """The clients of the nodes that were let in.

    Args:
        admission: decides which nodes are let in.
        refuse: called for a node whose description is refused.

    Attributes:
        there: clients that are there, by id.
        known: ids of all clients that ever were there.
    """

    def __init__(self, admission: Admission, refuse: Refuse) -> None:
        self._admission, self._refuse = admission, refuse
        self._phones: dict[int, int] = {}  # how many were told of, by gateway
        self.there: dict[int, Client] = {}
        self.known: set[int] = set()

    def of(self, node: int) -> list[int]:
        """A node's clients."""
        return [i for i, client in self.there.items() if client.node == node]

    def drop(self, node: int) -> list[int]:
        """Take out a node's clients, which are returned."""
        lost = self.of(node)
        for client in lost:
            del self.there[client]
        return lost

    def admit(self, answers: Mapping[int, RecordDict]) -> set[int]:
        """Add the clients of nodes with a valid description.

        A gateway's description replaces its earlier one.

        Returns:
            The nodes that take part since now.
        """
        replies, admitted = dict[int, DescribeReply](), set[int]()
        if any(map(self._admission.is_gateway, answers)):
            self._admission.refresh()  # it may know of phones that are newer than the last look
        for node in sorted(answers):
            try:
                replies[node] = self._admission.read(node, answers[node])
            except FedheadError as exc:
                self._refuse(node, f"sends an invalid description, {exc}")
        self._admission.settle(replies.values())
        for node, reply in replies.items():
            is_known = node in self._phones
            try:
                takes_part = self._take(node, reply)
            except FedheadError as exc:
                self._refuse(node, str(exc))
                continue
            if takes_part and not is_known:
                admitted.add(node)
        return admitted

    def _take(self, node: int, reply: DescribeReply) -> bool:
        """Add a node's clients; return whether it takes part.

        Raises:
            FedheadError: its description is refused.
        """
        self._admission.check(node, reply)
        is_gateway = self._admission.is_gateway(node)
        if is_gateway:
            self.drop(node)
            reply = self._phones_in(node, reply)
        check_total(sum(client.num_examples for client in self.there.values()), reply)
        if elsewhere := self.there.keys() & set(reply.clients):
            name = self._admission.name(min(elsewhere))
            raise ReplyError(f"speaks for {name}, which is on another node")
        if not is_gateway and not self._admission.takes_part(reply):
            return False
        for client, num_examples in zip(reply.clients, reply.num_examples, strict=True):
            if num_examples:
                self.there[client] = Client(node, num_examples)
                self.known.add(client)
        if is_gateway:
            self._tell_phones(node)
        else:
            self._tell(reply)
        return True

    def _phones_in(self, node: int, reply: DescribeReply) -> DescribeReply:
        """A gateway's description without those who are no phones."""
        reply, strangers = self._admission.phones_in(reply)
        if strangers:
            name = self._admission.name(strangers[0])
            self._refuse(node, f"speaks for {name}, which is no phone of this deployment")
        return reply

    def _tell_phones(self, node: int) -> None:
        count = len(self.of(node))
        if self._phones.get(node) != count:
            self._phones[node] = count
            tell_phones(node, count)

    def _tell(self, reply: DescribeReply) -> None:
        for client, num_examples in zip(reply.clients, reply.num_examples, strict=True):
            name = self._admission.name(client)
            if not num_examples:
                logger.warning("%s has no training examples and is left out", name)
            elif not reply.simulated:
                tell_joined(client, name, reply, self._admission.privacy)
