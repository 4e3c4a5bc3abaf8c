"""What must hold of a reply before its arrays are looked at."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from common.errors import ReplyError
from common.messages import TrainReply, array_bytes
from common.types import Layout

if TYPE_CHECKING:  # which imports the registry, and that this module
    from server.round.algorithm import Run

__all__ = ["LARGEST_LOSS", "check_lengths", "check_payloads", "check_reply", "check_size"]

_MOST_RECORDS, _MOST_KEYS = 8, 64
_LARGEST_NUMBER = 8  # bytes: statistics may come as uint64
_ARRAY_HEADER = 1000  # bytes, for whatever a codec writes before the numbers
LARGEST_LOSS = 1e30
"""Above this no loss is taken for one."""


def check_lengths(content: RecordDict, most: int) -> None:
    """Refuse, before any of it is read, a reply with more entries than clients were asked.

    Args:
        content: as it came.
        most: entries that a list may have: one a client.

    Raises:
        ReplyError: names what is too long.
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


def check_size(content: RecordDict, layouts: Iterable[Layout], rows: int) -> None:
    """Refuse, before any of it is read, a reply far larger than its arrays can be.

    Args:
        content: as it came.
        layouts: of the arrays of one row.
        rows: how many of them there can be.

    Raises:
        ReplyError: names both sizes.
    """
    most = rows * sum(map(_largest, layouts))
    if (size := array_bytes(content)) > most:
        raise ReplyError(f"its arrays take {size} bytes, more than the {most} that they can")


def _largest(layout: Layout) -> int:
    """What one array takes at most, whatever the codec."""
    return _LARGEST_NUMBER * math.prod(layout.shape) + _ARRAY_HEADER


def check_payloads(reply: TrainReply, layouts: Iterable[Layout]) -> None:
    """Refuse what no client's own reply can weigh: a node that sums up reports it of each.

    Raises:
        ReplyError: names the size.
    """
    most = _ARRAY_HEADER + sum(map(_largest, layouts))
    for report in reply.reports:
        if not 0 <= (size := report.payload_bytes) <= most:
            raise ReplyError(f"reports a payload of {size} bytes, expected at most {most}")


def check_reply(reply: TrainReply, run: Run, asked: set[int], fingerprint: str) -> None:
    """What must hold of any reply before its arrays are looked at.

    Raises:
        ReplyError: a foreign fingerprint, a client that was not asked or is named twice, another
            number of examples than the client described, or figures that cannot be.
    """
    name = run.registry.name
    if reply.fingerprint != fingerprint:
        raise ReplyError(
            f"features are of backbone {reply.fingerprint[:12]}, expected {fingerprint[:12]}"
        )
    clients, refused = reply.clients, reply.rejected_clients
    if both := set(clients) & set(refused):
        raise ReplyError(f"{name(min(both))} is in the update and refused")
    if repeated := [c for c, n in Counter([*clients, *refused]).items() if n > 1]:
        raise ReplyError(f"names {name(repeated[0])} twice")
    if strangers := {*clients, *refused} - asked:
        raise ReplyError(f"speaks for {name(min(strangers))}, which it was not asked for")
    for report in reply.reports:
        known = run.registry.clients[report.client].num_examples
        if report.num_examples != known:
            whose = f" of {name(report.client)}" if len(asked) > 1 else ""
            raise ReplyError(f"reports {report.num_examples} examples{whose}, described {known}")
    losses = np.array([(report.loss_before, report.loss_after) for report in reply.reports])
    if not np.isfinite(losses).all():
        raise ReplyError("a loss is not finite")
    # A mean over the round must stay finite as well.
    if (impossible := losses[(losses < 0) | (losses > LARGEST_LOSS)]).size:
        raise ReplyError(f"a loss is {impossible[0]:g}, which no loss is")
