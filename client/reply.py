"""A node's reply: its clients' updates, encoded, measured, and summed if the server asks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from client.discretion import UNTOLD
from common.codecs.codec import Through
from common.codecs.uplink import encode_sum
from common.errors import ReplyError
from common.messages import ClientReport, Rejection, TrainReply, TrainRequest, payload_bytes
from common.types import IntArray
from common.updates import FieldSums, client_weights
from common.validate import LARGEST, check_fields

__all__ = [
    "LARGEST_32_BIT",
    "Contribution",
    "Fields",
    "has_more_classes",
    "has_other_width",
    "is_small",
    "node_reply",
    "of_encoded",
    "of_many",
    "of_one",
    "of_sum",
    "with_sum",
]

logger = logging.getLogger("fedhead")

Fields = Mapping[str, npt.NDArray[np.generic]]

_BLANK = 1, (0.0,)  # number of examples and losses of a client that tells neither

LARGEST_32_BIT = (2**32 - 1) // 255**2
"""Up to this many examples, statistics always fit into 32 bits, whatever the features."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """The updates of some of a node's clients.

    Attributes:
        reports: reports of the clients whose updates count.
        payloads: each of these clients' encoded update; a sum of several clients may do without.
        rows: the same updates as the server will decode them, if they are to be summed.
        total: the weighted sum of the updates, instead of ``rows``.
        rejected: the clients whose updates do not count, with the reasons.
    """

    reports: tuple[ClientReport, ...] = ()
    payloads: tuple[Mapping[str, bytes], ...] = ()
    rows: tuple[Fields, ...] = ()
    total: Fields | None = None
    rejected: tuple[Rejection, ...] = ()


def has_more_classes(num_classes: int) -> str:
    """Reason for rejecting a client that has a label beyond the head's classes."""
    return f"has examples of more than the {num_classes} classes of the head"


def has_other_width(head: int, backbone: int) -> str:
    """Reason for rejecting clients whose backbone does not fit the head."""
    return f"head has {head} features, but the backbone gives {backbone}"


def of_one(
    request: TrainRequest, client: int, num_examples: int, losses: Sequence[float], fields: Fields
) -> Contribution:
    """One client's checked update, encoded by the plan's codec.

    Raises:
        ReplyError: it is to be summed here, and the server would refuse what it decodes.
    """
    payloads = request.uplink.encode(client, fields)
    return of_encoded(request, client, num_examples, losses, payloads)


def of_encoded(
    request: TrainRequest,
    client: int,
    num_examples: int,
    losses: Sequence[float],
    payloads: Mapping[str, bytes],
) -> Contribution:
    """One client's checked update, as the plan's codec has encoded it.

    Raises:
        ReplyError: it is to be summed here, and the server would refuse what it decodes.
    """
    uplink = request.uplink
    if request.plan.private:
        num_examples, losses = _BLANK
    lengths = tuple((name, len(payload)) for name, payload in payloads.items())
    size = _own_bytes(request.fingerprint, num_examples, lengths)
    report = ClientReport(client, num_examples, float(losses[0]), float(losses[-1]), size)
    if request.reduce != "sum":
        return Contribution((report,), (payloads,))
    row = uplink.decode(client, payloads)
    if not uplink.is_transparent:
        check_fields(row, uplink.layouts, request.max_norm)
    return Contribution((report,), (payloads,), (row,))


def of_many(
    request: TrainRequest,
    clients: IntArray,
    num_examples: IntArray,
    losses: npt.NDArray[np.float64],
    fields: Fields,
    compiled: Mapping[str, Through],
    summed: Callable[[npt.NDArray[np.generic], npt.NDArray[np.float64]], npt.NDArray[np.float64]],
) -> Contribution | None:
    """Several clients' checked updates, summed as the server would decode them.

    Args:
        request: the round's request, which wants sums; its plan ``is_batched``.
        clients: int64 (m,), ids.
        num_examples: int64 (m,).
        losses: float64 (m, 2), before and after training.
        fields: each (m, ...).
        compiled: see ``Uplink.through``.
        summed: gives the sum of arrays (m, ...), each times its weight (m,), bit for bit as
            ``FieldSums`` does.

    Returns:
        None: something in it would be refused, and each update must be looked at on its own.
    """
    uplink = request.uplink
    decoded = uplink.through(clients, fields, compiled)
    if not all(is_small(array) for array in decoded.values()):
        return None
    try:
        for i in range(len(clients)) if request.max_norm else ():
            row = {name: array[i] for name, array in decoded.items()}
            check_fields(row, uplink.layouts, request.max_norm)
    except ReplyError:
        return None
    reports = _reports(request, clients, num_examples, losses, uplink.lengths())
    weights = client_weights(request.plan, num_examples)
    return Contribution(reports, total={name: summed(a, weights) for name, a in decoded.items()})


def is_small(array: npt.NDArray[np.generic]) -> bool:
    """Whether no number is too large to be summed, or NaN."""
    return bool(array.max() <= LARGEST and array.min() >= -LARGEST)


def with_sum(request: TrainRequest, part: Contribution) -> Contribution:
    """The same contribution with the sum of its rows.

    Parts that are summed first have other last bits than rows that ``node_reply`` adds one by one.
    So whoever adds up parts must do it for all of a plan's, or none.
    """
    counts = np.array([report.num_examples for report in part.reports], np.int64)
    sums = FieldSums()
    for row, weight in zip(part.rows, client_weights(request.plan, counts).tolist(), strict=True):
        sums.add(row, weight)
    return replace(part, rows=(), total=sums.totals if part.reports else None)


def of_sum(
    request: TrainRequest,
    clients: IntArray,
    num_examples: IntArray,
    losses: npt.NDArray[np.float64],
    total: Fields | None,
) -> Contribution:
    """Several clients' weighted sum.

    Args:
        request: the round's request; each field of its plan is sent as it is.
        clients: int64 (m,), ids; a client with more than LARGEST_32_BIT examples is alone.
        num_examples: int64 (m,).
        losses: float64 (m, 2) or (m, 1), before and after training.
        total: the sum; None if there are no clients.
    """
    # A client with more than LARGEST_32_BIT examples is alone, so the sum is its own update.
    widths = [a.dtype.itemsize for a in (total or {}).values() if a.dtype.kind == "u"]
    lengths = request.uplink.lengths(max(widths, default=4) if len(clients) == 1 else 4)
    reports = _reports(request, clients, num_examples, losses, lengths)
    return Contribution(reports, total=total if reports else None)


def _reports(
    request: TrainRequest,
    clients: IntArray,
    num_examples: IntArray,
    losses: npt.NDArray[np.float64],
    lengths: tuple[tuple[str, int], ...],
) -> tuple[ClientReport, ...]:
    """Reports of clients whose payloads all have the same lengths."""
    if request.plan.private:
        count, loss = _BLANK
        num_examples, losses = np.full(len(clients), count), np.full((len(clients), 1), loss)
    sizes = {
        n: _own_bytes(request.fingerprint, n, lengths) for n in np.unique(num_examples).tolist()
    }
    return tuple(
        ClientReport(client, n, before, after, sizes[n])
        for client, n, before, after in zip(
            clients.tolist(),
            num_examples.tolist(),
            losses[:, 0].tolist(),
            losses[:, -1].tolist(),
            strict=True,
        )
    )


def node_reply(
    request: TrainRequest,
    contributions: Iterable[Contribution],
    name: Callable[[int], str] | None = lambda client: f"client {client}",
) -> TrainReply:
    """One reply for all clients of a node.

    Args:
        request: the request that it answers.
        contributions: its clients' contributions, in the order of summation.
        name: returns a client's name in the node's log; None: no log and no reason tells why a
            client is left out, because no noise covers that.
    """
    reports: list[ClientReport] = []
    rejected: list[Rejection] = []
    payloads: list[Mapping[str, bytes]] = []
    sums = FieldSums()
    for part in contributions:
        left_out = part.rejected
        if name:
            _log(left_out, request.round_number, name)
        else:
            left_out = tuple(Rejection(rejection.client, UNTOLD) for rejection in left_out)
        reports += part.reports
        rejected += left_out
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


def _log(rejected: Iterable[Rejection], number: int, name: Callable[[int], str]) -> None:
    for rejection in rejected:
        who = name(rejection.client)
        logger.warning("%s left out of round %d: %s", who, number, rejection.reason)


def _by_field(rows: Sequence[Mapping[str, bytes]]) -> dict[str, tuple[bytes, ...]]:
    return {name: tuple(row[name] for row in rows) for name in (rows[0] if rows else ())}


@lru_cache(maxsize=4096)
def _own_bytes(fingerprint: str, num_examples: int, lengths: tuple[tuple[str, int], ...]) -> int:
    """Size of a client's reply if it were a device of its own; measured on such a reply.

    It depends only on the lengths of the payloads.
    """
    alone = TrainReply(
        fingerprint=fingerprint,
        reports=(ClientReport(0, num_examples, 1.0, 1.0, 0),),
        payloads={name: (bytes(length),) for name, length in lengths},
    )
    return payload_bytes(alone.write())
