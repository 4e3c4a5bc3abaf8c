"""A node's part of a round: it trains its clients and sends one reply for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from client.client_round import ClientRound
from client.discretion import kind_of
from client.host import Host, run_folder
from client.local import ClientUpdate, client_update
from client.memory import ClientMemory
from client.reply import Contribution, has_more_classes, has_other_width, node_reply, of_one
from client.sgd import Gradient
from common.backbone.frozen import FrozenBackbone
from common.errors import FedheadError, ReplyError
from common.messages import Rejection, TrainReply, TrainRequest
from common.types import FeatureSet

__all__ = ["node_update"]


def node_update(request: TrainRequest, frozen: FrozenBackbone, host: Host) -> TrainReply:
    """Train the clients that a request lists, or sum up their statistics."""
    # For a thousand simulated clients, flushing to the disk would take seconds in each round.
    memory = ClientMemory(run_folder(host.state, request.run_id), durable=not host.simulated)
    # A stock strategy sends every node the same content; a node's one client is meant.
    clients = host.clients() if request.reduce == "stock" else request.clients
    cohort = host.cohort(frozen, "train")
    if cohort is None:
        # The log of simulated clients is the server's, which must not tell what gets no noise.
        name = None if request.plan.private and host.simulated else host.name
        return node_reply(request, _one_by_one(request, clients, frozen, host, memory), name)
    from client.together import update_together  # compiled loops, not needed on a phone

    return update_together(request, clients, cohort, memory, residents=host.clients())


def _one_by_one(
    request: TrainRequest,
    clients: Iterable[int],
    frozen: FrozenBackbone,
    host: Host,
    memory: ClientMemory,
) -> Iterator[Contribution]:
    """Train clients one by one: the plain reference, which devices use."""
    client_round = ClientRound(request, memory)
    for client in clients:
        # One client's bad data or state must not stop the node's other clients.
        try:
            features = host.train_features(client, frozen, request.run_id)
            update = _update(client_round, client, features, host.gradient())
            losses = (update.loss_before, update.loss_after)
            contribution = of_one(request, client, len(features), losses, update.fields)
        except FedheadError as exc:
            reason = _reason(exc, host, private=request.plan.private)
            yield Contribution(rejected=(Rejection(client, reason),))
        else:
            yield contribution


def _reason(exc: FedheadError, host: Host, *, private: bool) -> str:
    """What the server is told of a client's failure, and what its own log says."""
    if host.simulated and not private:
        return str(exc)
    return kind_of(exc, has_log=not host.simulated)


def _update(
    client_round: ClientRound, client: int, features: FeatureSet, gradient: Gradient | None
) -> ClientUpdate:
    head = client_round.request.head
    if not len(features):
        raise ReplyError("has no training examples")
    if features.labels.max() >= head.num_classes:
        raise ReplyError(has_more_classes(head.num_classes))
    if head.num_features != features.num_features:
        raise ReplyError(has_other_width(head.num_features, features.num_features))
    return client_update(client_round, client, features, gradient)
