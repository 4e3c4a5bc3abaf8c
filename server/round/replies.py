"""Checks of a reply before its arrays are read."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from common.errors import ReplyError
from common.messages import (
    TrainReply,
    TrainRequest,
    array_bytes,
    most_report_bytes,
    payload_bytes,
)
from common.types import Layout

if TYPE_CHECKING:  # to avoid a circle: it imports the registry, which imports this module
    from server.round.algorithm import Run

__all__ = ["LARGEST_LOSS", "check_lacks", "check_lengths", "check_payloads", "check_reply",
           "check_size", "weighed"]  # fmt: skip

_MOST_RECORDS, _MOST_KEYS = 8, 64
_LARGEST_NUMBER = 8  # bytes; statistics may be uint64
_ARRAY_HEADER = 1000  # bytes that a codec may write before the numbers
LARGEST_LOSS = 1e30
"""Largest value that is accepted as a loss."""


def check_lengths(content: RecordDict, most: int) -> None:
    """Refuse a reply with more entries than asked clients, before reading any of them.

    Args:
        content: the received content.
        most: largest number of entries of a list: one per client.

    Raises:
        ReplyError: names the list that is too long.
    """
    if len(content) > _MOST_RECORDS:
        raise ReplyError(f"sends {len(content)} records, expected at most {_MOST_RECORDS}")
    for record in content.values():
        if not isinstance(record, ConfigRecord | MetricRecord):
            continue
        if len(record) > _MOST_KEYS:
            raise ReplyError(f"sends {len(record)} values, expected at most {_MOST_KEYS}")
        for key, value in record.items():
            if isinstance(value, list) and len(value) > most:
                raise ReplyError(f"lists {len(value)} {key[:_MOST_KEYS]}, expected at most {most}")


def check_size(
    content: RecordDict, layouts: Iterable[Layout], rows: int, *, clients: int = 1
) -> None:
    """Refuse a reply that is far larger than its arrays can be, before reading any of them.

    Args:
        content: the received content.
        layouts: layouts of one row's arrays.
        rows: largest number of rows.
        clients: largest number of clients that it reports of.

    Raises:
        ReplyError: names both sizes.
    """
    most = rows * sum(map(_largest, layouts)) + most_report_bytes(clients)
    if (size := array_bytes(content)) > most:
        raise ReplyError(f"its content takes {size} bytes, expected at most {most}")


def _largest(layout: Layout) -> int:
    """Largest size of one array, whatever the codec."""
    return _LARGEST_NUMBER * math.prod(layout.shape) + _ARRAY_HEADER


def check_lacks(reply: TrainReply, request: TrainRequest) -> None:
    """Refuse that a node has not got what the request brings: it would be sent again for nothing.

    Raises:
        ReplyError: names what the node claims to miss.
    """
    if reply.missing_head and request.changes is None:
        raise ReplyError("says that it has not got the head, but was sent the whole one")
    if reply.missing_constant and (request.has_constant or not request.constant_id):
        raise ReplyError("says that it has not got the plan's arrays, but was sent them all")


def check_payloads(reply: TrainReply, layouts: Iterable[Layout]) -> None:
    """Refuse an impossible payload size. A node that sums its clients reports it for each.

    Raises:
        ReplyError: names the size.
    """
    most = _ARRAY_HEADER + sum(map(_largest, layouts))
    for report in reply.reports:
        if not 0 <= (size := report.payload_bytes) <= most:
            raise ReplyError(f"reports a payload of {size} bytes, expected at most {most}")


def weighed(reply: TrainReply, content: RecordDict) -> TrainReply:
    """A device's reply with the size of its update as it has arrived, whatever it says of it.

    Args:
        reply: of a node with one client.
        content: the received content.
    """
    size = payload_bytes(content)
    reports = (dataclasses.replace(report, payload_bytes=size) for report in reply.reports)
    return dataclasses.replace(reply, reports=tuple(reports))


def check_reply(reply: TrainReply, run: Run, asked: set[int], fingerprint: str) -> None:
    """Check everything in a reply except its arrays.

    Raises:
        ReplyError: it has a wrong fingerprint, a client that was not asked or is named twice,
            another number of examples than the client's description, or impossible figures.
    """
    name = run.registry.name
    if reply.fingerprint != fingerprint:
        raise ReplyError(
            f"features are of backbone {reply.fingerprint[:12]}, expected {fingerprint[:12]}"
        )
    clients, refused = reply.clients, reply.rejected_clients
    if both := set(clients) & set(refused):
        raise ReplyError(f"{name(min(both))} is both in the update and refused")
    if repeated := [c for c, n in Counter([*clients, *refused]).items() if n > 1]:
        raise ReplyError(f"names {name(repeated[0])} twice")
    if strangers := {*clients, *refused} - asked:
        raise ReplyError(f"speaks for {name(min(strangers))}, which it was not asked for")
    for report in reply.reports:
        known = run.registry.clients[report.client].num_examples
        if report.num_examples != known:
            whose = f" of {name(report.client)}" if len(asked) > 1 else ""
            raise ReplyError(
                f"reports {report.num_examples} examples{whose}, but described {known}"
            )
    losses = np.array([(report.loss_before, report.loss_after) for report in reply.reports])
    if not np.isfinite(losses).all():
        raise ReplyError("a loss is not finite")
    # The mean over the round must be finite too.
    if (impossible := losses[(losses < 0) | (losses > LARGEST_LOSS)]).size:
        raise ReplyError(f"a loss is {impossible[0]:g}, which is impossible")
