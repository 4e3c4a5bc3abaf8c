"""A node's part of a round: all its clients that take part, and one reply for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from client.device import Host, run_folder
from client.discretion import kind_of
from client.fields import ClientFields
from client.local import client_update
from client.memory import ControlStore
from common.backbone.frozen import FrozenBackbone
from common.errors import FedheadError, ReplyError
from common.messages import TrainReply, TrainRequest, payload_bytes
from common.statistics import feature_statistics
from common.types import IntArray
from common.updates import FieldSums, client_weights
from common.validate import LARGEST, check_fields, field_shapes

if TYPE_CHECKING:  # compiled loops, which a phone needs not
    from client.cohort.cohort import Chunk, Cohort

__all__ = ["node_update", "update_together"]

logger = logging.getLogger("fedhead")

Fields = Mapping[str, npt.NDArray[np.generic]]

_STATISTICS_ROWS = 4096  # examples that are summed up at once


@dataclass
class _Part:
    """What some of the clients gave.

    Attributes:
        clients: whose updates count; the lists beside it are as long.
        rows: their updates, or none if ``total`` is there.
        total: the weighted sum of their updates.
        rejected: whose do not, and why.
    """

    clients: list[int] = field(default_factory=list)
    num_examples: list[int] = field(default_factory=list)
    loss_before: list[float] = field(default_factory=list)
    loss_after: list[float] = field(default_factory=list)
    rows: list[Fields] = field(default_factory=list)
    total: Fields | None = None
    rejected: list[tuple[int, str]] = field(default_factory=list)

    def count(self, client: int, num_examples: int, losses: Sequence[float]) -> None:
        self.clients.append(client)
        self.num_examples.append(num_examples)
        self.loss_before.append(float(losses[0]))
        self.loss_after.append(float(losses[-1]))


def node_update(request: TrainRequest, frozen: FrozenBackbone, host: Host) -> TrainReply:
    """Train the clients that a request lists, or sum up their statistics."""
    # A thousand simulated phones would wait for the disk for seconds in each round.
    control = ControlStore(run_folder(host.state, request.run_id), durable=not host.simulated)
    # A stock strategy sends every node the same content: its one client is meant.
    clients = host.clients() if request.reduce == "stock" else request.clients
    cohort = host.cohort(frozen, "train")
    if cohort is None:
        parts = _one_by_one(request, clients, frozen, host, control)
        return _reply(request, parts, host.name)
    return update_together(request, clients, cohort, control, residents=host.clients())


def update_together(
    request: TrainRequest,
    clients: Sequence[int],
    cohort: Cohort,
    control: ControlStore,
    *,
    residents: Sequence[int],
) -> TrainReply:
    """The same with examples at hand: all clients as one cohort.

    Args:
        request: what to do.
        clients: who takes part.
        cohort: examples and engine, of these clients and maybe of others.
        control: what the clients remember.
        residents: who lives on this node.
    """
    ids = np.unique(np.asarray(clients, np.int64))
    part, head = _Part(), request.head

    def refuse(which: npt.NDArray[np.bool_], reason: str) -> None:
        nonlocal ids
        part.rejected += [(client, reason) for client in ids[which].tolist()]
        ids = ids[~which]

    refuse(~np.isin(ids, np.asarray(residents)), "does not live on this node")
    refuse(cohort.num_examples[ids] == 0, "has no training examples")
    refuse(cohort.largest_label[ids] >= head.num_classes, _more_classes(head.num_classes))
    if head.num_features != cohort.num_features:
        refuse(ids >= 0, _other_width(head.num_features, cohort.num_features))
    if request.plan.kind == "statistics":
        parts = _statistics_together(request, ids, cohort)
    else:
        parts = _train_together(request, ids, cohort, control)
    return _reply(request, (p for some in ([part], parts) for p in some))


def _more_classes(num_classes: int) -> str:
    return f"has examples of more than the {num_classes} classes of the head"


def _other_width(head: int, backbone: int) -> str:
    return f"head has {head} features, the backbone gives {backbone}"


def _one_by_one(
    request: TrainRequest,
    clients: Iterable[int],
    frozen: FrozenBackbone,
    host: Host,
    control: ControlStore,
) -> Iterator[_Part]:
    """The plain reference, and the way of a device."""
    made, head = ClientFields(request, control), request.head
    for client in clients:
        part = _Part()
        # One client's bad data or state must not cost the node's others their round.
        try:
            features = host.train_features(client, frozen, request.run_id)
            if not len(features):
                raise ReplyError("has no training examples")
            if features.labels.max() >= head.num_classes:
                raise ReplyError(_more_classes(head.num_classes))
            if head.num_features != features.num_features:
                raise ReplyError(_other_width(head.num_features, features.num_features))
            update = client_update(request, client, features, made)
            _check(request, update.fields)
            if update.control is not None:
                made.remember(client, update.control)
        except FedheadError as exc:
            part.rejected.append((client, str(exc) if host.simulated else kind_of(exc)))
        else:
            part.count(client, len(features), (update.loss_before, update.loss_after))
            part.rows.append(update.fields)
        yield part


def _check(request: TrainRequest, fields: Fields) -> None:
    head = request.head
    shapes = field_shapes(request.plan.fields, head.num_classes, head.num_features)
    check_fields(fields, shapes, request.max_norm)


def _statistics_together(
    request: TrainRequest, clients: IntArray, cohort: Cohort
) -> Iterator[_Part]:
    _, losses = cohort.evaluate(clients, request.head.matrix)
    counts = cohort.num_examples[clients]
    # Statistics are exact integers: those of several clients' examples are the sum of theirs.
    group = np.cumsum(counts) // _STATISTICS_ROWS
    if request.reduce != "sum":
        group = np.arange(len(clients))
    for number in np.unique(group):
        mine = np.flatnonzero(group == number)
        part = _Part()
        for i in mine:
            part.count(int(clients[i]), int(counts[i]), (losses[i],))
        sums = feature_statistics(cohort.examples(clients[mine]), request.head.num_classes)
        known = {"gram": sums.gram, "moments": sums.moments}
        part.rows = [{name: known[name] for name in request.plan.fields}]
        if request.reduce == "sum":
            part.total = part.rows.pop()
        yield part


def _train_together(
    request: TrainRequest, clients: IntArray, cohort: Cohort, control: ControlStore
) -> Iterator[_Part]:
    from client.cohort.cohort import Objective

    plan = request.plan
    fields = ClientFields(request, control)
    objective = Objective(
        request.training,
        mu=plan.mu,
        corrections=fields.corrections if fields.corrects else None,
        preconditioner=plan.constant.get("preconditioner"),
    )
    # A bound on the norm, a second field or a memory needs each client's delta.
    alone = bool(request.max_norm) or plan.fields != ("delta",) or fields.corrects
    only_sum = request.reduce == "sum" and not alone

    def consume(chunk: Chunk) -> _Part:
        if only_sum and (part := _summed(request, chunk)):
            return part
        return _separate(request, chunk, fields)

    yield from cohort.train(
        clients,
        request.head.matrix,
        objective,
        seed=request.seed,
        round_number=request.round_number,
        consume=consume,
    )


def _summed(request: TrainRequest, chunk: Chunk) -> _Part | None:
    """The weighted sum of who stayed finite; None if it holds numbers that are too large."""
    finite = chunk.finite
    total = chunk.weighted_sum(client_weights(request.plan, chunk.num_examples) * finite)
    if not np.abs(total).max() <= LARGEST:  # which no NaN is
        return None
    refused = chunk.clients[~finite].tolist()
    part = _Part(rejected=[(client, "delta is not finite") for client in refused])
    if finite.any():
        part.total = {"delta": total}
    for client, n, losses in zip(
        chunk.clients[finite].tolist(),
        chunk.num_examples[finite].tolist(),
        chunk.losses[finite].tolist(),
        strict=True,
    ):
        part.count(client, n, losses)
    return part


def _separate(request: TrainRequest, chunk: Chunk, made: ClientFields) -> _Part:
    part = _Part()
    deltas = np.asarray(chunk.deltas(), np.float32)
    for client, n, losses, steps, delta in zip(
        chunk.clients.tolist(),
        chunk.num_examples.tolist(),
        chunk.losses.tolist(),
        chunk.steps.tolist(),
        deltas,
        strict=True,
    ):
        try:
            if not np.isfinite(losses).all():
                raise ReplyError("delta is not finite")
            fields, control = made.of(client, delta, steps=steps, loss=losses[0])
            _check(request, fields)
            if control is not None:
                made.remember(client, control)
        except FedheadError as exc:
            part.rejected.append((client, str(exc)))
            continue
        part.count(client, n, losses)
        part.rows.append(fields)
    return part


def _reply(
    request: TrainRequest,
    parts: Iterable[_Part],
    name: Callable[[int], str] = lambda client: f"client {client}",
) -> TrainReply:
    whole, sums = _Part(), FieldSums()
    for part in parts:
        for client, reason in part.rejected:
            logger.warning(
                "%s left out of round %d: %s", name(client), request.round_number, reason
            )
        if part.total is not None:
            sums.add(part.total)
        elif request.reduce == "sum":
            weights = client_weights(request.plan, np.array(part.num_examples, np.int64))
            for row, weight in zip(part.rows, weights.tolist(), strict=True):
                sums.add(row, weight)
        else:
            whole.rows += part.rows
        whole.clients += part.clients
        whole.num_examples += part.num_examples
        whole.loss_before += part.loss_before
        whole.loss_after += part.loss_after
        whole.rejected += part.rejected
    fields = sums.row()
    if whole.rows:
        fields = {name: np.stack([row[name] for row in whole.rows]) for name in whole.rows[0]}
    layout = tuple((name, array.shape[1:], array.dtype.kind) for name, array in fields.items())
    return TrainReply(
        fingerprint=request.fingerprint,
        clients=tuple(whole.clients),
        num_examples=tuple(whole.num_examples),
        loss_before=tuple(whole.loss_before),
        loss_after=tuple(whole.loss_after),
        payload_bytes=tuple(
            _own_payload(request.fingerprint, layout, n) for n in whole.num_examples
        ),
        rejected_clients=tuple(client for client, _ in whole.rejected),
        rejected_reasons=tuple(reason for _, reason in whole.rejected),
        fields=fields,
    )


@lru_cache(maxsize=4096)
def _own_payload(
    fingerprint: str, layout: tuple[tuple[str, tuple[int, ...], str], ...], num_examples: int
) -> int:
    """What a client's reply weighs if it is a phone of its own: an encoded one, measured."""
    # As common.statistics has it, at full scale.
    integer = np.uint32 if num_examples * 255**2 < 2**32 else np.uint64
    alone = TrainReply(
        fingerprint=fingerprint,
        clients=(0,),
        num_examples=(num_examples,),
        loss_before=(1.0,),
        loss_after=(1.0,),
        payload_bytes=(0,),
        fields={
            name: np.zeros((1, *shape), np.float32 if kind == "f" else integer)
            for name, shape, kind in layout
        },
    )
    return payload_bytes(alone.write())
