"""A node's part of a round with all clients' examples at hand: one cohort, in compiled loops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from client.client_round import ClientRound
from client.cohort.codecs import THROUGH, weighted_sum
from client.cohort.cohort import Chunk, Cohort, Objective
from client.memory import ClientMemory
from client.reply import (
    LARGEST_32_BIT,
    Contribution,
    Fields,
    has_more_classes,
    has_other_width,
    is_small,
    node_reply,
    of_many,
    of_one,
    of_sum,
    with_sum,
)
from common.errors import FedheadError, ReplyError
from common.fields import FIELDS, fields_of_statistics
from common.messages import Rejection, TrainReply, TrainRequest
from common.privacy.integers import MAX_SIZE, OFFSET
from common.statistics import feature_statistics
from common.types import IntArray, Layout
from common.updates import client_weights
from common.validate import LARGEST, check_fields

__all__ = ["update_together"]

_STATISTICS_ROWS = 4096  # examples that are summed up at once


def update_together(
    request: TrainRequest,
    clients: Sequence[int],
    cohort: Cohort,
    memory: ClientMemory,
    *,
    residents: Sequence[int],
) -> TrainReply:
    """Train some clients of a cohort, or sum up their statistics.

    Args:
        request: what to do.
        clients: who takes part.
        cohort: examples and engine, of these clients and maybe of others.
        memory: what the clients remember.
        residents: who lives on this node.
    """
    ids = np.unique(np.asarray(clients, np.int64))
    rejected: list[Rejection] = []
    head = request.head

    def refuse(which: npt.NDArray[np.bool_], reason: str) -> None:
        nonlocal ids
        rejected.extend(Rejection(client, reason) for client in ids[which].tolist())
        ids = ids[~which]

    refuse(~np.isin(ids, np.asarray(residents)), "does not live on this node")
    refuse(cohort.num_examples[ids] == 0, "has no training examples")
    refuse(cohort.largest_label[ids] >= head.num_classes, has_more_classes(head.num_classes))
    if head.num_features != cohort.num_features:
        refuse(ids >= 0, has_other_width(head.num_features, cohort.num_features))
    work = _statistics if request.plan.kind == "statistics" else _train
    contributions = chain(
        [Contribution(rejected=tuple(rejected))], work(request, ids, cohort, memory)
    )
    if request.plan.private:  # the log is the server's
        return node_reply(request, contributions, None)
    return node_reply(request, contributions)


def _statistics(
    request: TrainRequest, clients: IntArray, cohort: Cohort, _memory: ClientMemory
) -> Iterator[Contribution]:
    _, losses = cohort.evaluate(clients, request.head.matrix)
    counts = cohort.num_examples[clients]
    adds_up = request.reduce == "sum" and request.uplink.is_transparent
    for mine in _groups(counts) if adds_up else np.arange(len(clients))[:, None]:
        # Statistics are exact integers: those of several clients' examples are the sum of theirs.
        sums = feature_statistics(cohort.examples(clients[mine]), request.head.num_classes)
        fields = fields_of_statistics(request.plan.fields, sums)
        if adds_up:
            yield of_sum(request, clients[mine], counts[mine], losses[mine, None], fields)
        else:
            i = int(mine[0])
            yield of_one(request, int(clients[i]), int(counts[i]), (float(losses[i]),), fields)


def _groups(counts: IntArray) -> Iterator[IntArray]:
    """Positions of clients whose examples are summed at once; of the largest each is alone."""
    first, rows = 0, 0
    for i, n in enumerate(counts.tolist()):
        alone = n > LARGEST_32_BIT or (i and counts[i - 1] > LARGEST_32_BIT)
        if i > first and (alone or rows + n > _STATISTICS_ROWS):
            yield np.arange(first, i)
            first, rows = i, 0
        rows += n
    if first < len(counts):
        yield np.arange(first, len(counts))


def _train(
    request: TrainRequest, clients: IntArray, cohort: Cohort, memory: ClientMemory
) -> Iterator[Contribution]:
    plan = request.plan
    client_round = ClientRound(request, memory)
    objective = Objective(
        request.training,
        mu=plan.mu,
        corrections=client_round.corrections if client_round.corrects else None,
        preconditioner=plan.constant.get("preconditioner"),
        unit_norm=plan.unit_norm,
        private=plan.private,
    )
    uplink, wants_sum = request.uplink, request.reduce == "sum"
    needs_each = any(FIELDS[name].needs_each for name in plan.fields)
    each = needs_each or client_round.remembers
    only_sum = wants_sum and uplink.is_transparent and not (each or request.max_norm)
    coded_sum = wants_sum and uplink.is_batched and not uplink.is_transparent

    def consume(chunk: Chunk) -> Contribution:
        if wants_sum and plan.private and (summed := _clipped(request, chunk)):
            return summed
        if only_sum and (summed := _summed(request, chunk)):
            return summed
        if coded_sum and not each and (summed := _summed_as_coded(request, chunk)):
            return summed
        return _separate(client_round, chunk, coded_sum)

    yield from cohort.train(
        clients,
        request.head.matrix,
        objective,
        seed=request.seed,
        round_number=request.round_number,
        consume=consume,
    )


def _summed(request: TrainRequest, chunk: Chunk) -> Contribution | None:
    """The weighted sum of who stayed finite; None if it holds numbers that are too large."""
    finite = chunk.finite
    total = chunk.weighted_sum(client_weights(request.plan, chunk.num_examples) * finite)
    if not np.abs(total).max() <= LARGEST:  # which no NaN is
        return None
    fields = dict.fromkeys(request.plan.fields, total)
    summed = of_sum(
        request, chunk.clients[finite], chunk.num_examples[finite], chunk.losses[finite], fields
    )
    refused = chunk.clients[~finite].tolist()
    return replace(
        summed, rejected=tuple(Rejection(client, "delta is not finite") for client in refused)
    )


def _clipped(request: TrainRequest, chunk: Chunk) -> Contribution | None:
    """The exact sum of clipped updates; None if they have too many numbers for it."""
    if request.head.matrix.size > MAX_SIZE:
        return None
    total, within, finite = chunk.clipped_sum(request.plan.clip)
    total = total[:, : request.head.num_features + 1]
    count = int(finite.sum())
    # One client's integers fit 32 bits, and are sent as such.
    dtype = np.uint32 if count == 1 else np.uint64
    sums = {
        "clipped_delta": (total + OFFSET * count).astype(dtype),
        "within_clip": np.array([within.sum()], dtype),
    }
    refused = tuple(Rejection(c, "delta is not finite") for c in chunk.clients[~finite].tolist())
    kept = chunk.clients[finite], chunk.num_examples[finite], chunk.losses[finite]
    summed = of_sum(request, *kept, {name: sums[name] for name in request.plan.fields})
    return replace(summed, rejected=refused)


def _summed_as_coded(request: TrainRequest, chunk: Chunk) -> Contribution | None:
    """The weighted sum of what the server would decode; None if one update must not count."""
    # A client that is alone in its node's answer sends its bytes instead of a sum.
    if len(chunk.clients) == 1 or not np.isfinite(chunk.losses).all():
        return None
    deltas = np.asarray(chunk.deltas(), np.float32)
    if not is_small(deltas):
        return None
    try:
        for delta in deltas if request.max_norm else ():
            check_fields({"delta": delta}, {"delta": Layout(delta.shape)}, request.max_norm)
    except ReplyError:
        return None
    fields = dict.fromkeys(request.plan.fields, deltas)
    of = chunk.clients, chunk.num_examples, chunk.losses
    return of_many(request, *of, fields, THROUGH, weighted_sum)


def _separate(client_round: ClientRound, chunk: Chunk, coded_sum: bool) -> Contribution:
    """Each client's own update.

    Args:
        client_round: what the node's clients share.
        chunk: the clients after training.
        coded_sum: whether the sum of what is decoded is wanted, and can be had without bytes.
    """
    request, deltas = client_round.request, np.asarray(chunk.deltas(), np.float32)
    kept: list[int] = []
    rows: list[Fields] = []
    rejected = []
    for i, client in enumerate(chunk.clients.tolist()):
        losses = chunk.losses[i]
        try:
            if not (request.plan.private or np.isfinite(losses).all()):
                raise ReplyError("delta is not finite")
            fields = client_round.finish(
                client, deltas[i], steps=int(chunk.steps[i]), loss=float(losses[0])
            )
        except FedheadError as exc:
            rejected.append(Rejection(client, str(exc)))
        else:
            kept.append(i)
            rows.append(fields)
    if coded_sum and len(kept) > 1:
        stacked = {name: np.stack([row[name] for row in rows]) for name in request.plan.fields}
        of = chunk.clients[kept], chunk.num_examples[kept], chunk.losses[kept]
        if together := of_many(request, *of, stacked, THROUGH, weighted_sum):
            return replace(together, rejected=tuple(rejected))
    part = _encoded(request, chunk, dict(zip(kept, rows, strict=True)))
    rejected = sorted((*rejected, *part.rejected), key=lambda rejection: rejection.client)
    return replace(part, rejected=tuple(rejected))


def _encoded(request: TrainRequest, chunk: Chunk, fields: Mapping[int, Fields]) -> Contribution:
    """The updates of the clients at some positions of a chunk, each encoded."""
    parts, rejected = [], []
    for i, row in fields.items():
        client, n = int(chunk.clients[i]), int(chunk.num_examples[i])
        try:
            parts.append(of_one(request, client, n, chunk.losses[i].tolist(), row))
        except ReplyError as exc:
            rejected.append(Rejection(client, str(exc)))
    part = Contribution(
        tuple(report for part in parts for report in part.reports),
        tuple(payload for part in parts for payload in part.payloads),
        tuple(row for part in parts for row in part.rows),
        rejected=tuple(rejected),
    )
    if request.reduce != "sum" or request.uplink.is_transparent:
        return part
    return with_sum(request, part)
