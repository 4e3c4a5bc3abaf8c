"""What a client sends, by its own code; and what everybody else learns of it from the heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from client.client_round import ClientRound
from client.local import client_update
from client.memory import ClientMemory
from common.local_loss import find_loss
from common.messages import TrainRequest, content_id
from common.privacy.integers import OFFSET, RESOLUTION, offset_sum
from common.scatter import sound_sums
from common.statistics import Statistics
from common.types import ClientPlan, FeatureSet, UpdateBatch
from common.updates import client_weights
from server.round.private import Decided, Guard
from server.strategies.averaging import fedavg
from server.strategies.private import with_privacy
from server.strategy import with_metrics
from simulations.probe.audit.scenes import Scene

__all__ = [
    "Others",
    "Sent",
    "Told",
    "added_up",
    "first_plan",
    "sent_by",
    "told_by_heads",
    "update_of",
]

Fields = Mapping[str, npt.NDArray[np.generic]]
Doubles = npt.NDArray[np.float64]

_RUN = "audit"
_UPDATES = ("clipped_delta", "delta", "normalized_delta", "fair_delta")
"""Fields that are a change of the head, or a multiple of one."""
_RIDGE = ("fed3r", "ditto", "afl")
"""Strategies whose head is that of ridge regression."""


@dataclass(frozen=True, eq=False)
class Sent:
    """What one client has sent.

    Attributes:
        fields: after the server has decoded them.
        num_examples: that the client has.
    """

    fields: Fields
    num_examples: int


def first_plan(scene: Scene) -> ClientPlan:
    """The plan of a first round, with privacy around the strategy if the scene has it."""
    if scene.decided is None:
        return scene.plan
    with TemporaryDirectory() as folder:
        guard = Guard(scene.config, scene.decided, Path(folder), simulated=True)
        strategy = with_privacy(scene.strategy, scene.decided.terms, guard.release)
        return strategy.plan(strategy.init(scene.head), scene.context)


def sent_by(scene: Scene, plan: ClientPlan, client: int, features: FeatureSet) -> Sent:
    """What a client with these training examples sends in a first round.

    Args:
        scene: the run.
        plan: of the round.
        client: its id.
        features: its training examples.
    """
    config = scene.config
    request = TrainRequest(
        head=scene.head,
        plan=plan,
        training=config.train.local(1),
        clients=(client,),
        round_number=1,
        run_id=_RUN,
        seed=config.seed,
        fingerprint=features.fingerprint,
        reduce="individual",
        memory_rounds=() if plan.correction == "none" else (0,),
        constant_id=content_id(plan.constant),
        has_constant=bool(plan.constant),
    )
    loss = find_loss(config.train.loss, config.train.loss_root)
    with TemporaryDirectory() as folder:
        part = ClientRound(request, ClientMemory(Path(folder), durable=False))
        update = client_update(part, client, features, loss.gradient if loss else None)
    uplink = request.uplink
    return Sent(uplink.decode(client, uplink.encode(client, update.fields)), len(features))


def update_of(sent: Sent) -> Doubles:
    """The change of the head that a client has sent after training, float64 (K, d + 1).

    Of clipped updates it is in units of ``clip / RESOLUTION``.
    """
    name = next(name for name in _UPDATES if name in sent.fields)
    array = sent.fields[name].astype(np.float64)
    return array - OFFSET if name == "clipped_delta" else array


@dataclass(frozen=True, eq=False)
class Others:
    """The sum of what all other clients of a round have sent.

    Attributes:
        totals: by field: integers as uint64, updates as float64 times the clients' weights.
        weight: sum of these weights.
        num_examples: of all of them.
        clients: how many.
    """

    totals: Fields
    weight: float
    num_examples: int
    clients: int


def added_up(plan: ClientPlan, like: Sent, sents: Iterable[Sent]) -> Others:
    """The sum of what clients have sent, or of none; ``like`` says which fields they have."""
    totals: dict[str, npt.NDArray[Any]] = {
        name: np.zeros(array.shape, np.uint64 if array.dtype.kind == "u" else np.float64)
        for name, array in like.fields.items()
    }
    weight, examples, clients = 0.0, 0, 0
    for sent in sents:
        own = _weight(plan, sent)
        for name, array in sent.fields.items():
            row: npt.NDArray[Any] = (
                array.astype(np.uint64) if array.dtype.kind == "u" else array.astype(float) * own
            )
            totals[name] = totals[name] + row
        weight, examples, clients = weight + own, examples + sent.num_examples, clients + 1
    return Others(totals, weight, examples, clients)


def _weight(plan: ClientPlan, sent: Sent) -> float:
    return float(client_weights(plan, np.array([sent.num_examples], np.int64))[0])


@dataclass(frozen=True, eq=False)
class Told:
    """What a new head tells whoever knows what all others have sent.

    Attributes:
        update: float64 (K, d + 1), the target's update with whatever hides it, in the units of
            ``update_of``. Of a ridge head it is ``sum (y - W x) x^T`` of the target's images, like
            a step of SGD on them.
        head: float64 (K, d + 1), W.
    """

    update: Doubles
    head: Doubles


def told_by_heads(
    scene: Scene, plan: ClientPlan, target: Sent, others: Others, seed: int = 0
) -> Told | None:
    """What is left of a round's change of the head for whoever knows what all others have sent.

    The server's own functions make the head. With FedAvg in place of another strategy that needs
    only sums: what these make of the mean tells no more than the mean.

    Args:
        scene: the run.
        plan: of the round.
        target: what the client sent that is attacked.
        others: what all others of the round sent.
        seed: of the noise, if there is privacy.

    Returns:
        None: the strategy's head is no sum that could be taken apart like this.
    """
    if scene.strategy.reduce != "sum":
        return None
    if plan.kind == "statistics":
        return _ridge_undone(scene, target, others)
    if scene.decided is None:
        return _mean_undone(scene, plan, target, others)
    return _release_undone(scene, scene.decided, target, others, seed)


def _mean_undone(scene: Scene, plan: ClientPlan, target: Sent, others: Others) -> Told | None:
    name = next((name for name in _UPDATES if name in target.fields), None)
    if name is None:
        return None
    weight, known = _weight(plan, target), others.totals[name].astype(np.float64)
    batch = UpdateBatch(
        ((0,), tuple(range(1, 1 + others.clients))),
        np.array([target.num_examples, others.num_examples], np.int64),
        np.array([weight, others.weight]),
        {"delta": np.stack([target.fields[name].astype(np.float64) * weight, known])},
    )
    strategy = fedavg()
    _, head = strategy.aggregate(strategy.init(scene.head), scene.head, batch, scene.context)[:2]
    new = head.matrix.astype(np.float64)
    change = (new - scene.head.matrix) * (weight + others.weight)
    return Told((change - known) / weight, new)


def _release_undone(
    scene: Scene, decided: Decided, target: Sent, others: Others, seed: int
) -> Told:
    config = scene.config.model_copy(update={"seed": seed})
    with TemporaryDirectory() as folder:
        guard = Guard(config, decided, Path(folder), simulated=True)
        strategy = with_privacy(fedavg(), decided.terms, guard.release)
        state, batch = strategy.init(scene.head), _sums(target, others)
        _, head = strategy.aggregate(state, scene.head, batch, scene.context)[:2]
    new = head.matrix.astype(np.float64)
    noisy = (new - scene.head.matrix) * (
        decided.divisor * RESOLUTION / (decided.clip * decided.step)
    )
    known = offset_sum(others.totals["clipped_delta"].astype(np.uint64), others.clients)
    return Told(noisy - known, new)


def _sums(target: Sent, others: Others) -> UpdateBatch:
    """One row for all clients, of exact integers."""
    fields = {
        name: (array.astype(np.uint64) + target.fields[name].astype(np.uint64))[None]
        for name, array in others.totals.items()
    }
    clients = np.array([1 + others.clients], np.int64)
    return UpdateBatch((tuple(range(int(clients[0]))),), clients, clients.astype(float), fields)


def _ridge_undone(scene: Scene, target: Sent, others: Others) -> Told | None:
    """``W (A + lambda I) - B`` of the others' A and B.

    It is ``sum (y - W x) x^T`` of the target, because ``W (A + X^T X + lambda I) = B + Y^T X``.
    """
    state, strategy = scene.strategy.init(scene.head), scene.strategy
    if strategy.name not in _RIDGE or "gram" not in target.fields:
        return None
    given = strategy.aggregate(state, scene.head, _sums(target, others), scene.context)
    _, head, metrics = with_metrics(given, strategy.name)
    if not {"ridge-lambda", "head-temperature"} <= metrics.keys():
        return None  # a penalty of the user's own, or rows of norm 1
    sums = Statistics(*(others.totals[name].astype(np.uint64) for name in ("gram", "moments")))
    a, b = sound_sums(sums, scene.context.affine)
    w = head.matrix.astype(np.float64)
    return Told(w @ a + metrics["ridge-lambda"] * w - b, w)
