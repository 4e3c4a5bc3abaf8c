"""The ClientApp: what a node answers.

Flower starts a process for each message on a device, so this file imports nothing heavy that a
message may not need.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.device import Host, SimulatedHost, host_of, run_folder
from client.local import ClientUpdate, batch_orders, client_update
from client.sgd import train_head
from client.state import ControlStore
from common.backbone.frozen import FrozenBackbone, load_by_fingerprint, store
from common.errors import FedheadError, ProtocolError, ReplyError
from common.evaluation import evaluate as evaluate_head
from common.files import cache_root
from common.messages import (
    BackboneReply,
    BackboneRequest,
    BaselineRequest,
    DescribeReply,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    payload_bytes,
    write_heads,
)
from common.statistics import feature_statistics, ridge
from common.types import Head
from common.updates import client_weights, sum_fields
from common.validate import check_fields, field_shapes

logger = logging.getLogger("fedhead")

app = ClientApp()


@lru_cache(maxsize=2)
def _load_backbone(fingerprint: str, cache: Path) -> FrozenBackbone | None:
    return load_by_fingerprint(fingerprint, cache)


def _backbone(fingerprint: str, cache: Path) -> FrozenBackbone | None:
    backbone = _load_backbone(fingerprint, cache)
    if backbone is None:
        _load_backbone.cache_clear()  # it may arrive later
    return backbone


def _cache(context: Context) -> Path:
    return Path(str(context.node_config.get("state", cache_root()))).expanduser()


def _host(context: Context) -> Host:
    return host_of(context.node_config, context.run_config, context.node_id)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Which clients this node hosts, and how many examples each has."""
    request = DescribeRequest.read(message.content)
    host = _host(context)
    counts = host.describe(request)
    reply = DescribeReply(tuple(counts), tuple(counts.values()), host.simulated)
    return Message(reply.write(), reply_to=message)


@app.query("backbone")
def backbone(message: Message, context: Context) -> Message:
    """Whether the backbone is here; if the message brings it, check it and keep it."""
    request = BackboneRequest.read(message.content)
    cache = _cache(context)
    if request.data:
        received = FrozenBackbone.from_bytes(request.data, request.fingerprint)
        store(received, cache)
    present = _backbone(request.fingerprint, cache) is not None
    return Message(BackboneReply(present).write(), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message lists, or sum up their statistics."""
    request = TrainRequest.read(message.content)
    frozen = _backbone(request.fingerprint, _cache(context))
    if frozen is None:
        reply = TrainReply(request.fingerprint, missing_backbone=True)
        return Message(reply.write(), reply_to=message)
    reply = _train(request, frozen, _host(context))
    if request.reduce != "stock":
        return Message(reply.write(), reply_to=message)
    if not reply.clients:
        raise ReplyError("; ".join(reply.rejected_reasons) or "no client")
    local = Head.from_matrix(request.head.matrix + np.asarray(reply.fields["delta"][0], np.float32))
    return Message(reply.write_stock(local), reply_to=message)


def _train(request: TrainRequest, frozen: FrozenBackbone, host: Host) -> TrainReply:
    shapes = field_shapes(request.plan.fields, request.head.num_classes, request.head.num_features)
    control = ControlStore(run_folder(host.state, request.run_id))
    clients: list[int] = []
    counts: list[int] = []
    updates: list[ClientUpdate] = []
    rejected: list[tuple[int, str]] = []
    # A stock strategy sends every node the same content: its one client is meant.
    for client in host.clients() if request.reduce == "stock" else request.clients:
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
            check_fields(update.fields, shapes, request.max_norm)
            if update.control is not None:
                control.save(client, request.round_number, update.control)
        except FedheadError as exc:
            rejected.append((client, str(exc)))
            logger.warning("client %d left out of round %d: %s", client, request.round_number, exc)
            continue
        clients.append(client)
        counts.append(len(features))
        updates.append(update)
    return _reply(request, clients, counts, updates, rejected)


def _reply(
    request: TrainRequest,
    clients: list[int],
    counts: list[int],
    updates: list[ClientUpdate],
    rejected: list[tuple[int, str]],
) -> TrainReply:
    rows = [update.fields for update in updates]
    if not rows:
        fields = {}
    elif request.reduce == "sum":
        fields = sum_fields(rows, client_weights(request.plan, np.array(counts, np.int64)))
    else:
        fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return TrainReply(
        fingerprint=request.fingerprint,
        clients=tuple(clients),
        num_examples=tuple(counts),
        loss_before=tuple(update.loss_before for update in updates),
        loss_after=tuple(update.loss_after for update in updates),
        payload_bytes=tuple(
            _own_payload(request, u, n) for u, n in zip(updates, counts, strict=True)
        ),
        rejected_clients=tuple(client for client, _ in rejected),
        rejected_reasons=tuple(reason for _, reason in rejected),
        fields=fields,
    )


def _own_payload(request: TrainRequest, update: ClientUpdate, num_examples: int) -> int:
    """What this client's reply would weigh if it were a phone of its own."""
    alone = TrainReply(
        fingerprint=request.fingerprint,
        clients=(0,),
        num_examples=(num_examples,),
        loss_before=(update.loss_before,),
        loss_after=(update.loss_after,),
        payload_bytes=(0,),
        fields={name: array[None] for name, array in update.fields.items()},
    )
    return payload_bytes(alone.write())


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """How well a head does on each client's own test part."""
    request = EvaluateRequest.read(message.content)
    frozen = _backbone(request.fingerprint, _cache(context))
    if frozen is None:
        raise ProtocolError("the backbone is not here")
    host = _host(context)
    results = []
    for client in request.clients:
        features = host.test_features(client, frozen, request.run_id)
        if len(features):
            result = evaluate_head(request.head, features)
            results.append((client, len(features), result.correct, result.loss))
    columns = tuple(zip(*results, strict=True)) or ((), (), (), ())
    return Message(EvaluateReply(*columns).write(), reply_to=message)


@app.query("baselines")
def baselines(message: Message, context: Context) -> Message:
    """In simulation only: the heads that all clients' examples in one place would give."""
    request = BaselineRequest.read(message.content)
    frozen, host = _backbone(request.fingerprint, _cache(context)), _host(context)
    if frozen is None or not isinstance(host, SimulatedHost):
        raise ProtocolError("baselines need a simulated node that has the backbone")
    features = host.all_train_features(frozen)
    num_classes = request.num_classes
    start = Head.zeros(num_classes, features.num_features)
    orders = batch_orders(
        len(features), request.training, seed=request.seed, round_number=0, client=0
    )
    result = train_head(
        torch.from_numpy(features.x),
        torch.from_numpy(features.labels),
        torch.from_numpy(start.matrix),
        request.training,
        orders,
    )
    a, b = feature_statistics(features, num_classes).in_feature_space(features.affine)
    heads = {
        "centralized": Head.from_matrix(result.delta.numpy()),
        "ridge": Head.from_matrix(ridge(a, b, request.ridge_lambda)),
    }
    return Message(write_heads(heads), reply_to=message)
