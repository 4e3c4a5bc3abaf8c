"""Whom a run lets in: what a node may say of itself, and what it is called."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from flwr.app import RecordDict

from common.errors import ReplyError
from common.identity import client_of_node
from common.messages import DescribeReply
from server.round.replies import check_lengths
from server.round.roster import Roster

__all__ = ["Admission", "check_total"]

logger = logging.getLogger("fedhead")

_MOST_EXAMPLES = 2**31 - 1  # sums of as many clients' stay exact
_MOST_TOGETHER = 2**40  # of all clients: their sums of squares stay far below 2^64


class Admission:
    """Decides on descriptions of nodes; a refusal names what the node said and may not.

    In a deployment a node is the device whose key it has shown, and hosts this one client; what it
    says of simulation is no matter. Elsewhere nobody vouches for nodes: what most of those say that
    are there first holds for all of them, and a client lives where it was seen first.

    Args:
        roster: the deployment's devices; None: there is no deployment.
        max_clients: that a simulated node may host.
        max_examples: that a client may claim; 0: no bound but that of the arithmetic.
        data: ``content_key`` of what simulated nodes must have read.
        listed: ids, or names of devices, that alone take part; empty: all.

    Attributes:
        simulated: whether clients stand for phones; None: nobody has said so yet.
    """

    def __init__(
        self,
        roster: Roster | None,
        *,
        max_clients: int = 0,
        max_examples: int = 0,
        data: str = "",
        listed: Sequence[int | str] = (),
    ) -> None:
        self._roster = roster
        self._max_clients, self._max_examples = max_clients, max_examples
        self._data, self._listed = data, frozenset(listed)
        self.simulated: bool | None = False if roster else None

    @property
    def deployed(self) -> bool:
        """Whether there is a deployment."""
        return self._roster is not None

    def refresh(self) -> None:
        """Take note of devices that have been added or revoked.

        Raises:
            RunError: the deployment's folder is gone.
        """
        if self._roster:
            self._roster.refresh()

    @property
    def registered(self) -> int:
        """How many devices of the deployment may take part; 0 without one."""
        names = self._roster.names if self._roster else []
        return sum(not self._listed or name in self._listed for name in names)

    def takes_part(self, reply: DescribeReply) -> bool:
        """Whether a node hosts anybody that is listed, where some are; if not, say so."""
        names = {client: self.name(client) for client in reply.clients}
        if not self._listed or not names or self._listed & {*names, *names.values()}:
            return True
        logger.info("%s is not in train.clients: left out", ", ".join(names.values()))
        return False

    def is_registered(self, node: int) -> bool:
        """Whether a node may take part at all."""
        return self._roster is None or self._roster.device(node) is not None

    def is_unknown(self, node: int) -> bool:
        """Whether a node's key belongs to no device that is or was registered."""
        return self._roster is not None and self._roster.name(client_of_node(node)) is None

    def own_clients(self, node: int) -> tuple[int, ...]:
        """The client that a node's key stands for; nothing where keys say nothing."""
        known = self._roster is not None and not self.is_unknown(node)
        return (client_of_node(node),) if known else ()

    def name(self, client: int) -> str:
        """What a person calls a client."""
        known = self._roster.name(client) if self._roster else None
        return known or f"client {client}"

    def read(self, content: RecordDict) -> DescribeReply:
        """What a node says of itself.

        Raises:
            FedheadError: it is no description, or far larger than one can be.
        """
        check_lengths(content, 1 if self.simulated is False else self._max_clients)
        return DescribeReply.read(content)

    def settle(self, replies: Iterable[DescribeReply]) -> None:
        """Decide, where that is open, whether clients are simulated: as most nodes say."""
        said = Counter(reply.simulated for reply in replies)
        if self.simulated is None and said:
            self.simulated = said[True] > said[False]

    def check(self, node: int, reply: DescribeReply) -> None:
        """Refuse a description that cannot be this node's.

        Raises:
            ReplyError: says what it may not.
        """
        if reply.simulated != self.simulated:
            raise ReplyError(f"says that it is {'simulated' if reply.simulated else 'a device'}")
        if self.simulated and reply.data != self._data:
            raise ReplyError(
                "has read other data than the server: does data.source give the same each time?"
            )
        if not self.simulated and len(reply.clients) > 1:
            raise ReplyError(f"speaks for {len(reply.clients)} clients, a device for one")
        own = self.own_clients(node)
        for client, count in zip(reply.clients, reply.num_examples, strict=True):
            if own and client not in own:
                raise ReplyError(f"speaks for {self.name(client)}, which it is not")
            if client < 0:
                raise ReplyError(f"speaks for client {client}, and ids begin at 0")
            if not 0 <= count <= (self._max_examples or _MOST_EXAMPLES):
                raise ReplyError(f"claims {count} examples, expected {self._limit}")

    @property
    def _limit(self) -> str:
        if self._max_examples:
            return f"at most {self._max_examples} (round.max-examples-per-client)"
        return f"at most {_MOST_EXAMPLES}"


def check_total(known: int, reply: DescribeReply) -> None:
    """Refuse examples with which the sums of all clients' statistics might not be exact.

    Args:
        known: how many examples the other clients have.
        reply: what a node says of itself.

    Raises:
        ReplyError: it has too many.
    """
    claimed = sum(reply.num_examples)
    if (total := known + claimed) > _MOST_TOGETHER:
        raise ReplyError(
            f"claims {claimed} examples, with which all clients have {total}, "
            f"expected at most {_MOST_TOGETHER}"
        )
