"""What must hold of a reply before its arrays are looked at."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
from flwr.app import RecordDict

from common.errors import ReplyError
from common.messages import TrainReply, array_bytes
from server.engine import Task

__all__ = ["check_reply", "check_size"]

_LARGEST_NUMBER = 8  # bytes: statistics may come as uint64
_ARRAY_HEADER = 1000  # bytes


def check_size(content: RecordDict, shapes: Iterable[tuple[int, ...]], rows: int) -> None:
    """Refuse, before any of it is read, a reply far larger than its arrays can be.

    Args:
        content: as it came.
        shapes: of the arrays of one row.
        rows: how many of them there can be.

    Raises:
        ReplyError: names both sizes.
    """
    most = sum(_LARGEST_NUMBER * rows * math.prod(shape) + _ARRAY_HEADER for shape in shapes)
    if (size := array_bytes(content)) > most:
        raise ReplyError(f"its arrays take {size} bytes, more than the {most} that they can")


def check_reply(reply: TrainReply, task: Task, asked: set[int], fingerprint: str) -> None:
    """What must hold of any reply before its arrays are looked at.

    Raises:
        ReplyError: a foreign fingerprint, a client that was not asked or is named twice, or
            another number of examples than the client described.
    """
    if reply.fingerprint != fingerprint:
        raise ReplyError(
            f"features are of backbone {reply.fingerprint[:12]}, expected {fingerprint[:12]}"
        )
    if repeated := [c for c, n in Counter(reply.clients).items() if n > 1]:
        raise ReplyError(f"names client {repeated[0]} twice")
    if both := set(reply.clients) & set(reply.rejected_clients):
        raise ReplyError(f"client {min(both)} is in the update and refused")
    if strangers := {*reply.clients, *reply.rejected_clients} - asked:
        raise ReplyError(f"speaks for client {min(strangers)}, which it was not asked for")
    for client, count in zip(reply.clients, reply.num_examples, strict=True):
        known = task.registry.clients[client].num_examples
        if count != known:
            raise ReplyError(f"client {client} reports {count} examples, described {known}")
    if not np.isfinite([*reply.loss_before, *reply.loss_after]).all():
        raise ReplyError("a loss is not finite")
