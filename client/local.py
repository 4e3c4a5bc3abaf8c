"""One client's part of a round: its examples and the plan in, its update out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from client.client_round import ClientRound
from client.reply import has_more_classes, has_other_width
from client.sgd import Gradient, Terms, train_head
from common.errors import ReplyError
from common.evaluation import evaluate
from common.fields import fields_of_statistics
from common.seeding import batch_order
from common.softmax import rows_of_norm
from common.statistics import feature_statistics
from common.types import FeatureSet, Head, LocalTraining

__all__ = ["ClientUpdate", "batch_orders", "check_examples", "client_update"]


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What one client computed, fit to count.

    Attributes:
        fields: the arrays that the plan asked for.
        loss_before: mean loss of the global head on the client's examples.
        loss_after: the same of the local head; equal where nothing was trained.
    """

    fields: Mapping[str, npt.NDArray[np.generic]]
    loss_before: float
    loss_after: float


def check_examples(features: FeatureSet, head: Head) -> None:
    """Refuse examples that a head cannot be trained on.

    Raises:
        ReplyError: there are none, or they have more classes or other features.
    """
    if not len(features):
        raise ReplyError("has no training examples")
    if features.labels.max() >= head.num_classes:
        raise ReplyError(has_more_classes(head.num_classes))
    if head.num_features != features.num_features:
        raise ReplyError(has_other_width(head.num_features, features.num_features))


def batch_orders(
    n: int, training: LocalTraining, *, seed: int, round_number: int, client: int
) -> list[npt.NDArray[np.int64]]:
    """The order of visits for each local epoch."""
    return [
        batch_order(n, seed=seed, round_number=round_number, client=client, epoch=epoch)
        for epoch in range(training.local_epochs)
    ]


def client_update(
    client_round: ClientRound,
    client: int,
    features: FeatureSet,
    gradient: Gradient | None = None,
) -> ClientUpdate:
    """Do what the round's plan says with one client's training examples.

    Args:
        client_round: what the node's clients share.
        client: its id.
        features: its training examples.
        gradient: of what it minimises; None: the cross-entropy.

    Raises:
        FedheadError: see ``ClientRound.finish``; or a loss of the user's own that is none.
    """
    request = client_round.request
    if request.plan.kind == "statistics":
        statistics = feature_statistics(features, request.head.num_classes)
        loss = evaluate(request.head, features).loss
        fields = fields_of_statistics(request.plan.fields, statistics)
        client_round.check(fields)
        return ClientUpdate(fields, loss, loss)
    return _trained_update(client_round, client, features, gradient)


def _trained_update(
    client_round: ClientRound, client: int, features: FeatureSet, gradient: Gradient | None
) -> ClientUpdate:
    request = client_round.request
    plan, training = request.plan, request.training
    correction = None
    if client_round.corrects:
        correction = torch.from_numpy(client_round.corrections(np.array([client]))[0])
    preconditioner = plan.constant.get("preconditioner")
    x = torch.from_numpy(features.x)
    result = train_head(
        rows_of_norm(x, plan.unit_norm) if plan.unit_norm else x,
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
        Terms(
            plan.mu,
            correction,
            None if preconditioner is None else torch.from_numpy(preconditioner),
            gradient,
        ),
    )
    fields = client_round.finish(
        client, result.delta.numpy(), steps=result.steps, loss=result.loss_before
    )
    return ClientUpdate(fields, result.loss_before, result.loss_after)
