"""A node's reply: what its clients gave, encoded, measured, and added up where that is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from common.codecs.uplink import encode_sum
from common.messages import ClientReport, Rejection, TrainReply, TrainRequest, payload_bytes
from common.types import IntArray
from common.updates import FieldSums, client_weights

__all__ = [
    "LARGEST_32_BIT",
    "Contribution",
    "has_more_classes",
    "has_other_width",
    "node_reply",
    "of_one",
    "of_sum",
]

logger = logging.getLogger("fedhead")

Fields = Mapping[str, npt.NDArray[np.generic]]

LARGEST_32_BIT = (2**32 - 1) // 255**2
"""Of so many examples the statistics fit into 32 bits, whatever the features are."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """What some of a node's clients gave.

    Attributes:
        reports: of the clients whose updates count.
        payloads: for each of them its update as it is encoded, and
        rows: as the server will decode it, where there is a sum to be formed; or
        total: in place of both, the weighted sum of their updates.
        rejected: the clients whose updates do not count, and why.
    """

    reports: tuple[ClientReport, ...] = ()
    payloads: tuple[Mapping[str, bytes], ...] = ()
    rows: tuple[Fields, ...] = ()
    total: Fields | None = None
    rejected: tuple[Rejection, ...] = ()


def has_more_classes(num_classes: int) -> str:
    """Why a client with a label beyond the head's classes takes no part."""
    return f"has examples of more than the {num_classes} classes of the head"


def has_other_width(head: int, backbone: int) -> str:
    """Why nobody takes part whose backbone is not the head's."""
    return f"head has {head} features, the backbone gives {backbone}"


def of_one(
    request: TrainRequest, client: int, num_examples: int, losses: Sequence[float], fields: Fields
) -> Contribution:
    """A client's checked update, through the plan's codec."""
    uplink = request.uplink
    payloads = uplink.encode(client, fields)
    lengths = tuple((name, len(payload)) for name, payload in payloads.items())
    size = _own_bytes(request.fingerprint, num_examples, lengths)
    report = ClientReport(client, num_examples, float(losses[0]), float(losses[-1]), size)
    rows = (uplink.decode(client, payloads),) if request.reduce == "sum" else ()
    return Contribution((report,), (payloads,), rows)


def of_sum(
    request: TrainRequest,
    clients: IntArray,
    num_examples: IntArray,
    losses: npt.NDArray[np.float64],
    total: Fields | None,
) -> Contribution:
    """Several clients' weighted sum, whose codec makes no difference to it.

    Args:
        request: of the round; its plan's codec is transparent.
        clients: int64 (m,), ids; who has more than LARGEST_32_BIT examples is alone.
        num_examples: int64 (m,).
        losses: float64 (m, 2) or (m, 1), before and after training.
        total: the sum; None without clients.
    """
    # Who has more than LARGEST_32_BIT examples is alone here, and the sum is its own.
    widths = [a.dtype.itemsize for a in (total or {}).values() if a.dtype.kind == "u"]
    lengths = request.uplink.lengths(max(widths, default=4) if len(clients) == 1 else 4)
    sizes = {
        n: _own_bytes(request.fingerprint, n, lengths) for n in np.unique(num_examples).tolist()
    }
    reports = tuple(
        ClientReport(client, n, before, after, sizes[n])
        for client, n, before, after in zip(
            clients.tolist(),
            num_examples.tolist(),
            losses[:, 0].tolist(),
            losses[:, -1].tolist(),
            strict=True,
        )
    )
    return Contribution(reports, total=total if reports else None)


def node_reply(
    request: TrainRequest,
    contributions: Iterable[Contribution],
    name: Callable[[int], str] = lambda client: f"client {client}",
) -> TrainReply:
    """One reply for all clients of a node.

    Args:
        request: that it answers.
        contributions: of its clients, in the order in which they are added up.
        name: what the node's log calls a client.
    """
    reports: list[ClientReport] = []
    rejected: list[Rejection] = []
    payloads: list[Mapping[str, bytes]] = []
    sums = FieldSums()
    for part in contributions:
        for rejection in part.rejected:
            logger.warning(
                "%s left out of round %d: %s",
                name(rejection.client),
                request.round_number,
                rejection.reason,
            )
        reports += part.reports
        rejected += part.rejected
        payloads += part.payloads
        if part.total is not None:
            sums.add(part.total)
        counts = np.array([report.num_examples for report in part.reports], np.int64)
        weights = client_weights(request.plan, counts).tolist()
        for row, weight in zip(part.rows, weights, strict=False):
            sums.add(row, weight)
    if request.reduce == "sum" and request.uplink.is_summed(len(reports)):
        payloads = [encode_sum({key: row[0] for key, row in sums.row().items()})]
    return TrainReply(
        fingerprint=request.fingerprint,
        reports=tuple(reports),
        rejected=tuple(rejected),
        payloads=_by_field(payloads if reports else []),
    )


def _by_field(rows: Sequence[Mapping[str, bytes]]) -> dict[str, tuple[bytes, ...]]:
    return {name: tuple(row[name] for row in rows) for name in (rows[0] if rows else ())}


@lru_cache(maxsize=4096)
def _own_bytes(fingerprint: str, num_examples: int, lengths: tuple[tuple[str, int], ...]) -> int:
    """What a client's reply weighs if it is a phone of its own: such a one, measured.

    Payloads of equal length weigh the same, whatever is in them.
    """
    alone = TrainReply(
        fingerprint=fingerprint,
        reports=(ClientReport(0, num_examples, 1.0, 1.0, 0),),
        payloads={name: (bytes(length),) for name, length in lengths},
    )
    return payload_bytes(alone.write())
