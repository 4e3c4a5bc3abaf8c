"""A node's part of a round: it trains its clients and sends one reply for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from client.client_round import ClientRound
from client.discretion import kind_of
from client.host import Host, run_folder
from client.local import ClientUpdate, check_examples, client_update
from client.memory import ClientMemory
from client.reply import Contribution, node_reply, of_one
from client.sgd import Gradient
from common.backbone.frozen import FrozenBackbone
from common.errors import FedheadError
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
        # The log of simulated clients is the server's.
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
            reason = str(exc) if host.simulated else kind_of(exc)
            yield Contribution(rejected=(Rejection(client, reason),))
        else:
            yield contribution


def _update(
    client_round: ClientRound, client: int, features: FeatureSet, gradient: Gradient | None
) -> ClientUpdate:
    check_examples(features, client_round.request.head)
    return client_update(client_round, client, features, gradient)
