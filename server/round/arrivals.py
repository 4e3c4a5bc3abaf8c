"""What is logged of nodes that come, go, or break the rules."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from common.config import PrivacyConfig
from common.messages import DescribeReply
from common.phones import GATEWAY
from server.record.events import event

__all__ = ["tell_gone", "tell_joined", "tell_phones", "tell_refused"]


def tell_joined(client: int, name: str, reply: DescribeReply, privacy: PrivacyConfig) -> None:
    """Log that a device takes part; in a private run without what it has.

    Args:
        client: its id.
        name: its name for people.
        reply: what it said of itself, its one client.
        privacy: the run's.
    """
    if privacy.active:
        event("joined", f"{name} has joined", client=client, name=name)
        return
    (num_examples,) = reply.num_examples
    message = f"{name} has joined with {num_examples} examples"
    if reply.unused > 0:
        message += f"; {reply.unused} images above its limit are left out"
    event("joined", message, client=client, name=name, num_examples=num_examples)


def tell_phones(node: int, count: int) -> None:
    """Log how many phones a gateway has; single ones come and go without a line."""
    words = "1 phone is" if count == 1 else f"{count:,} phones are"
    event("phones", f"{GATEWAY}: {words} there", node=node, name=GATEWAY, phones=count)


def tell_gone(node: int, name: str, why: str, clients: Sequence[int]) -> None:
    """Log that a node is no longer there, with its clients: at least one."""
    event(
        "gone", f"{name} {why}",
        level=logging.WARNING, node=node, client=clients[0], name=name, clients=len(clients),
    )  # fmt: skip


def tell_refused(node: int, name: str, reason: str) -> None:
    """Log what a node does against the rules."""
    event(
        "refused", f"{name} {reason}: refused",
        level=logging.WARNING, node=node, name=name, reason=reason,
    )  # fmt: skip
