"""A node's part of a round: all its clients that take part, and one reply for them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from client.device import Host, run_folder
from client.local import client_update
from client.state import ControlStore
from common.backbone.frozen import FrozenBackbone
from common.errors import FedheadError, ReplyError
from common.messages import TrainReply, TrainRequest, payload_bytes
from common.statistics import feature_statistics
from common.types import FloatArray, IntArray
from common.updates import FieldSums, client_weights
from common.validate import check_fields, field_shapes

if TYPE_CHECKING:  # compiled loops, which a phone needs not
    from client.cohort import Chunk, Cohort

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
    control = ControlStore(run_folder(host.state, request.run_id))
    # A stock strategy sends every node the same content: its one client is meant.
    clients = host.clients() if request.reduce == "stock" else request.clients
    cohort = host.cohort(frozen, "train")
    if cohort is None:
        return _reply(request, _one_by_one(request, clients, frozen, host, control))
    strangers = sorted(set(clients) - set(host.clients()))
    reply = _Part(rejected=[(client, "does not live on this node") for client in strangers])
    known = [client for client in clients if client not in set(strangers)]
    return update_together(request, known, cohort, control, reply)


def update_together(
    request: TrainRequest,
    clients: Sequence[int],
    cohort: Cohort,
    control: ControlStore,
    before: _Part | None = None,
) -> TrainReply:
    """The same with examples at hand: all clients as one cohort.

    Args:
        request: what to do.
        clients: who of the cohort takes part.
        cohort: examples and engine.
        control: what the clients remember.
        before: who has been refused already.
    """
    part = before or _Part()
    ids = np.asarray(clients, np.int64)
    part.rejected += [
        (int(c), "has no training examples") for c in ids[cohort.num_examples[ids] == 0]
    ]
    ids = ids[cohort.num_examples[ids] > 0]
    if request.head.num_features != cohort.num_features:
        reason = (
            f"head has {request.head.num_features} features, "
            f"the backbone gives {cohort.num_features}"
        )
        part.rejected += [(int(client), reason) for client in ids]
        return _reply(request, [part])
    if request.plan.kind == "statistics":
        parts = _statistics_together(request, ids, cohort)
    else:
        parts = _train_together(request, ids, cohort, control)
    return _reply(request, (p for some in ([part], parts) for p in some))


def _one_by_one(
    request: TrainRequest,
    clients: Iterable[int],
    frozen: FrozenBackbone,
    host: Host,
    control: ControlStore,
) -> Iterator[_Part]:
    """The plain reference, and the way of a device."""
    for client in clients:
        part = _Part()
        # One client's bad data or state must not cost the node's others their round.
        try:
            features = host.train_features(client, frozen, request.run_id)
            if not len(features):
                raise ReplyError("has no training examples")
            if request.head.num_features != features.num_features:
                raise ReplyError(
                    f"head has {request.head.num_features} features, "
                    f"the backbone gives {features.num_features}"
                )
            update = client_update(request, client, features, control)
            _check(request, update.fields)
            if update.control is not None:
                control.save(client, request.round_number, update.control)
        except FedheadError as exc:
            part.rejected.append((client, str(exc)))
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
        part.rows = [{"gram": sums.gram, "moments": sums.moments}]
        if request.reduce == "sum":
            part.total = part.rows.pop()
        yield part


def _train_together(
    request: TrainRequest, clients: IntArray, cohort: Cohort, control: ControlStore
) -> Iterator[_Part]:
    from client.cohort import Objective

    plan = request.plan
    own = _OwnControls(request, control)
    objective = Objective(
        request.training,
        mu=plan.mu,
        corrections=own.corrections if plan.correction == "scaffold" else None,
        preconditioner=plan.arrays.get("preconditioner"),
    )
    # A bound on the norm, or a second field, needs each client's delta.
    only_sum = request.reduce == "sum" and plan.fields == ("delta",) and not request.max_norm

    def consume(chunk: Chunk) -> _Part:
        if only_sum and (part := _summed(request, chunk)):
            return part
        return _separate(request, chunk, own)

    yield from cohort.train(
        clients,
        request.head.matrix,
        objective,
        seed=request.seed,
        round_number=request.round_number,
        consume=consume,
    )


def _summed(request: TrainRequest, chunk: Chunk) -> _Part | None:
    """The chunk's weighted sum; None if it holds what must not be summed."""
    if not chunk.finite.all():
        return None
    total = chunk.weighted_sum(client_weights(request.plan, chunk.num_examples))
    if not np.isfinite(total).all():
        return None
    part = _Part(total={"delta": total})
    for client, n, losses in zip(
        chunk.clients.tolist(), chunk.num_examples.tolist(), chunk.losses.tolist(), strict=True
    ):
        part.count(client, n, losses)
    return part


def _separate(request: TrainRequest, chunk: Chunk, own: _OwnControls) -> _Part:
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
            fields, control = own.fields(client, delta, steps)
            _check(request, fields)
            if control is not None:
                own.store.save(client, request.round_number, control)
        except FedheadError as exc:
            part.rejected.append((client, str(exc)))
            continue
        part.count(client, n, losses)
        part.rows.append(fields)
    return part


class _OwnControls:
    """SCAFFOLD's c_i of the clients that are being trained."""

    def __init__(self, request: TrainRequest, store: ControlStore) -> None:
        self.store = store
        self._request = request
        self._own: dict[int, FloatArray | FedheadError] = {}

    def corrections(self, clients: IntArray) -> FloatArray:
        """C - c_i of each, (m, K, d + 1); zeros for one whose file is damaged."""
        control = self._request.plan.arrays["control"]
        out = np.zeros((len(clients), *control.shape), np.float32)
        for row, client in zip(out, clients.tolist(), strict=True):
            try:
                own = self.store.load(client, self._request.round_number, control.shape)
            except FedheadError as exc:
                self._own[client] = exc
                continue
            self._own[client] = own
            row[:] = control - own
        return out

    def fields(
        self, client: int, delta: FloatArray, steps: int
    ) -> tuple[dict[str, FloatArray], FloatArray | None]:
        """What the client sends, and its next c_i: option II of the paper."""
        if self._request.plan.correction != "scaffold":
            return {"delta": delta}, None
        own = self._own.pop(client)
        if isinstance(own, FedheadError):
            raise own
        control = self._request.plan.arrays["control"]
        control_delta = -control - delta / np.float32(steps * self._request.training.lr)
        return {"delta": delta, "control_delta": control_delta}, own + control_delta


def _reply(request: TrainRequest, parts: Iterable[_Part]) -> TrainReply:
    whole, sums = _Part(), FieldSums()
    for part in parts:
        for client, reason in part.rejected:
            logger.warning(
                "client %d left out of round %d: %s", client, request.round_number, reason
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
    layout = tuple((name, array.shape[1:], array.dtype.str) for name, array in fields.items())
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
    alone = TrainReply(
        fingerprint=fingerprint,
        clients=(0,),
        num_examples=(num_examples,),
        loss_before=(1.0,),
        loss_after=(1.0,),
        payload_bytes=(0,),
        fields={name: np.zeros((1, *shape), dtype) for name, shape, dtype in layout},
    )
    return payload_bytes(alone.write())
