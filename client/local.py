"""One client's part of a round: its examples and the plan in, its update out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from client.sgd import train_head
from client.state import ControlStore
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
    request: TrainRequest, client: int, features: FeatureSet, store: ControlStore
) -> ClientUpdate:
    """Do what the round's plan says with one client's training examples."""
    if request.plan.kind == "statistics":
        statistics = feature_statistics(features, request.head.num_classes)
        loss = evaluate(request.head, features).loss
        fields = {"gram": statistics.gram, "moments": statistics.moments}
        return ClientUpdate(dict(fields), loss, loss)
    return _sgd_update(request, client, features, store)


def _sgd_update(
    request: TrainRequest, client: int, features: FeatureSet, store: ControlStore
) -> ClientUpdate:
    plan, training = request.plan, request.training
    start = request.head.matrix
    scaffold = None
    if plan.correction == "scaffold":
        own = store.load(client, request.round_number, start.shape)
        scaffold = (plan.arrays["control"], own)
    result = train_head(
        torch.from_numpy(features.x),
        torch.from_numpy(features.labels),
        torch.from_numpy(start),
        training,
        batch_orders(
            len(features),
            training,
            seed=request.seed,
            round_number=request.round_number,
            client=client,
        ),
        mu=plan.mu,
        correction=torch.from_numpy(scaffold[0] - scaffold[1]) if scaffold else None,
        preconditioner=(
            torch.from_numpy(plan.arrays["preconditioner"])
            if "preconditioner" in plan.arrays
            else None
        ),
    )
    delta = result.delta.numpy()
    if not scaffold:
        return ClientUpdate({"delta": delta}, result.loss_before, result.loss_after)
    # Option II of the paper: c_i+ - c_i = -c + (w - y) / (T lr)
    control_delta = -scaffold[0] - delta / np.float32(result.steps * training.lr)
    control: FloatArray = np.asarray(scaffold[1] + control_delta, np.float32)
    return ClientUpdate(
        {"delta": delta, "control_delta": control_delta},
        result.loss_before,
        result.loss_after,
        control=control,
    )
