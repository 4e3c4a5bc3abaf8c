"""Decides which nodes a run lets in, checks what they say about themselves, and names them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from flwr.app import RecordDict

from common.config import NO_PRIVACY, PrivacyConfig
from common.errors import ReplyError
from common.identity import client_of_node
from common.messages import DescribeReply
from server.round.replies import check_lengths
from server.round.roster import Roster

__all__ = ["Admission", "check_total"]

logger = logging.getLogger("fedhead")

_MOST_EXAMPLES = 2**31 - 1  # of one client; keeps sums over clients exact
_MOST_TOGETHER = 2**40  # of all clients; keeps their sums of squares far below 2^64


class Admission:
    """Decides on descriptions of nodes; a refusal names what the node must not say.

    In a deployment a node is the device whose key it has proved to have, and it hosts one client;
    whether it says that it is simulated does not matter. The gateway's node is no device: it hosts
    phones that are registered by their tokens, and says each time which of them are there.

    Elsewhere nodes have no keys. There, the majority of the first nodes decides whether all nodes
    are simulated, and a client belongs to the node that named it first.

    Args:
        roster: the deployment's devices; None: there is no deployment.
        max_clients: largest number of clients of a simulated node.
        max_examples: largest number of examples of a client; 0: only the arithmetic's bound.
        data: ``content_key`` of the data that simulated nodes must have read.
        listed: ids, or names of devices, of the only clients that take part; empty: all.
        privacy: the run's.

    Attributes:
        privacy: as given.
        simulated: whether clients are simulated; None: no node has said it yet.
    """

    def __init__(
        self,
        roster: Roster | None,
        *,
        max_clients: int = 0,
        max_examples: int = 0,
        data: str = "",
        listed: Sequence[int | str] = (),
        privacy: PrivacyConfig = NO_PRIVACY,
    ) -> None:
        self._roster = roster
        self._max_clients, self._max_examples = max_clients, max_examples
        self._data, self._listed, self.privacy = data, frozenset(listed), privacy
        self.simulated: bool | None = False if roster else None

    @property
    def deployed(self) -> bool:
        """Whether there is a deployment."""
        return self._roster is not None

    def refresh(self) -> None:
        """Read which devices and phones have been added or revoked.

        Raises:
            RunError: the deployment's folder is missing.
        """
        if self._roster:
            self._roster.refresh()

    @property
    def registered(self) -> int:
        """Number of devices and phones of the deployment that may take part; 0 if there is none."""
        names = self._roster.names if self._roster else ()
        return sum(name in self._listed for name in names) if self._listed else len(names)

    @property
    def has_phones(self) -> bool:
        """Whether a registered phone may take part."""
        names = self._roster.phones.values() if self._roster else ()
        return any(not self._listed or name in self._listed for name in names)

    def takes_part(self, reply: DescribeReply) -> bool:
        """Whether a node hosts a listed client, or none are listed; logs a line if not."""
        names = {client: self.name(client) for client in reply.clients}
        if not self._listed or not names or self._listed & {*names, *names.values()}:
            return True
        logger.info("%s is not in train.clients: left out", ", ".join(names.values()))
        return False

    def is_registered(self, node: int) -> bool:
        """Whether a node may take part at all."""
        return self._roster is None or self._roster.has_key(node)

    def is_gateway(self, node: int) -> bool:
        """Whether a node is the deployment's gateway."""
        return self._roster is not None and self._roster.is_gateway(node)

    def is_unknown(self, node: int) -> bool:
        """Whether a node's key belongs to no device that is or was registered."""
        return self._roster is not None and self._roster.name(client_of_node(node)) is None

    def is_revoked(self, client: int) -> bool:
        """Whether a client is a device or phone that was registered and is no more."""
        return self._roster is not None and self._roster.has_lost(client)

    def own_clients(self, node: int) -> tuple[int, ...]:
        """The client of a device's key; empty if there is no deployment, or it is the gateway's."""
        known = self._roster is not None and not self.is_unknown(node)
        return (client_of_node(node),) if known and not self.is_gateway(node) else ()

    def name(self, client: int) -> str:
        """A client's name for people."""
        known = self._roster.name(client) if self._roster else None
        return known or f"client {client}"

    def read(self, node: int, content: RecordDict) -> DescribeReply:
        """Read what a node says about itself.

        Raises:
            FedheadError: it is not a description, or far too large.
        """
        most = 1 if self.simulated is False else self._max_clients
        if self._roster and self.is_gateway(node):
            most = self._roster.most_phones
        check_lengths(content, most)
        return DescribeReply.read(content)

    def phones_in(self, reply: DescribeReply) -> tuple[DescribeReply, list[int]]:
        """The registered and listed phones of a gateway's description, and who is no phone.

        Of those who are no phone, the ones that were revoked just now are left out of both: the
        gateway may not have seen it yet.
        """
        phones = self._roster.phones if self._roster else {}
        rows = [
            (client, count)
            for client, count in zip(reply.clients, reply.num_examples, strict=True)
            if client in phones and (not self._listed or phones[client] in self._listed)
        ]
        strangers = [i for i in reply.clients if i not in phones and not self.is_revoked(i)]
        ids, counts = zip(*rows, strict=True) if rows else ((), ())
        return replace(reply, clients=ids, num_examples=counts), strangers

    def settle(self, replies: Iterable[DescribeReply]) -> None:
        """Decide by majority whether clients are simulated, if that is still open."""
        said = Counter(reply.simulated for reply in replies)
        if self.simulated is None and said:
            self.simulated = said[True] > said[False]

    def check(self, node: int, reply: DescribeReply) -> None:
        """Refuse a description that cannot be true of this node.

        Raises:
            ReplyError: names what the node must not say.
        """
        if reply.simulated != self.simulated:
            raise ReplyError(f"says that it is {'simulated' if reply.simulated else 'a device'}")
        if self.simulated and reply.data != self._data:
            raise ReplyError(
                "has read other data than the server: does data.source return the same every time?"
            )
        is_gateway = self.is_gateway(node)
        if reply.changing and not is_gateway:
            raise ReplyError("says that its clients change, which only a gateway's do")
        if not self.simulated and len(reply.clients) > 1 and not is_gateway:
            raise ReplyError(f"speaks for {len(reply.clients)} clients, expected one for a device")
        if self.privacy.active and any(count > 1 for count in reply.num_examples):
            raise ReplyError("tells how many examples it has, but the run is private")
        self._check_clients(node, reply)

    def _check_clients(self, node: int, reply: DescribeReply) -> None:
        if len({*reply.clients}) < len(reply.clients):
            raise ReplyError("names a client twice")
        own = self.own_clients(node)
        for client, count in zip(reply.clients, reply.num_examples, strict=True):
            if own and client not in own:
                raise ReplyError(f"speaks for {self.name(client)}, which it is not")
            if client < 0:
                raise ReplyError(f"speaks for client {client}, expected an id of at least 0")
            if not 0 <= count <= (self._max_examples or _MOST_EXAMPLES):
                raise ReplyError(f"claims {count} examples, expected {self._limit}")

    @property
    def _limit(self) -> str:
        if self._max_examples:
            return f"at most {self._max_examples} (round.max-examples-per-client)"
        return f"at most {_MOST_EXAMPLES}"


def check_total(known: int, reply: DescribeReply) -> None:
    """Refuse so many examples that sums of all clients' statistics might not be exact.

    Args:
        known: number of examples of the other clients.
        reply: a node's description.

    Raises:
        ReplyError: it has too many.
    """
    claimed = sum(reply.num_examples)
    if (total := known + claimed) > _MOST_TOGETHER:
        raise ReplyError(
            f"claims {claimed} examples, which makes {total} of all clients, "
            f"expected at most {_MOST_TOGETHER}"
        )
