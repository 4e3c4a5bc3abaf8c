"""One client's part of a round: its examples and the plan in, its update out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from client.fields import ClientFields
from client.sgd import train_head
from common.evaluation import evaluate
from common.messages import TrainRequest
from common.seeding import batch_order
from common.statistics import feature_statistics
from common.types import FeatureSet, FloatArray, LocalTraining

__all__ = ["ClientUpdate", "batch_orders", "client_update"]


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What one client computed.

    Attributes:
        fields: the arrays that the plan asked for.
        loss_before: mean loss of the global head on the client's examples.
        loss_after: the same of the local head; equal where nothing was trained.
        control: the client's next control variate, to be kept when the update has passed.
    """

    fields: dict[str, npt.NDArray[np.generic]]
    loss_before: float
    loss_after: float
    control: FloatArray | None = None


def batch_orders(
    n: int, training: LocalTraining, *, seed: int, round_number: int, client: int
) -> list[npt.NDArray[np.int64]]:
    """The order of visits for each local epoch."""
    return [
        batch_order(n, seed=seed, round_number=round_number, client=client, epoch=epoch)
        for epoch in range(training.local_epochs)
    ]


def client_update(
    request: TrainRequest, client: int, features: FeatureSet, fields: ClientFields
) -> ClientUpdate:
    """Do what the round's plan says with one client's training examples."""
    if request.plan.kind == "statistics":
        statistics = feature_statistics(features, request.head.num_classes)
        loss = evaluate(request.head, features).loss
        known = {"gram": statistics.gram, "moments": statistics.moments}
        return ClientUpdate({name: known[name] for name in request.plan.fields}, loss, loss)
    return _sgd_update(request, client, features, fields)


def _sgd_update(
    request: TrainRequest, client: int, features: FeatureSet, fields: ClientFields
) -> ClientUpdate:
    plan, training = request.plan, request.training
    correction = None
    if fields.corrects:
        correction = torch.from_numpy(fields.corrections(np.array([client]))[0])
    preconditioner = plan.constant.get("preconditioner")
    result = train_head(
        torch.from_numpy(features.x),
        torch.from_numpy(features.labels),
        torch.from_numpy(request.head.matrix),
        training,
        batch_orders(
            len(features),
            training,
            seed=request.seed,
            round_number=request.round_number,
            client=client,
        ),
        mu=plan.mu,
        correction=correction,
        preconditioner=None if preconditioner is None else torch.from_numpy(preconditioner),
    )
    sent, control = fields.of(
        client, result.delta.numpy(), steps=result.steps, loss=result.loss_before
    )
    return ClientUpdate(sent, result.loss_before, result.loss_after, control)
