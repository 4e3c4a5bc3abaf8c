"""The ClientApp: a node's answers to messages.

On a device Flower starts a process for each message, so this file imports heavy packages only for
messages that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, wraps
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.backbones import Backbones
from client.best_linear import best_linear_heads
from client.device import DeviceHost
from client.discretion import SPEAKABLE, kind_of
from client.host import Host, run_folder
from client.known_head import with_head
from client.memory import with_constant
from client.node import node_update
from client.personal import own_correct
from client.simulated import SimulatedHost
from client.trust import Trust
from common.backbone.frozen import FrozenBackbone
from common.errors import ConfigError, DeclinedError, FedheadError, ProtocolError, ReplyError
from common.evaluation import evaluate as evaluate_head
from common.evaluation import losses_of
from common.files import cache_root
from common.messages import (
    BackboneReply,
    BackboneRequest,
    BaselineRequest,
    ClientEvaluation,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    write_heads,
)
from common.types import FeatureSet, Head

app = ClientApp()

Handler = Callable[[Message, Context], Message]


def host_of(
    node_config: Mapping[str, object], run_config: Mapping[str, object], node_id: int
) -> Host:
    """The host that a node's configuration describes.

    ``data="folder:PATH"`` makes it a device; ``partition-id`` and ``num-partitions``, which
    Flower gives each simulated node, make it node i of N.

    Raises:
        ConfigError: neither is given.
    """
    if "data" in node_config:
        return DeviceHost(node_config, node_id)
    if "partition-id" in node_config and "num-partitions" in node_config:
        index, count = node_config["partition-id"], node_config["num-partitions"]
        return SimulatedHost(int(str(index)), int(str(count)), run_config)
    raise ConfigError(
        ["""expected data="folder:PATH", or partition-id and num-partitions"""], "node config"
    )


def _discreet(handler: Handler) -> Handler:
    """The handler, but on a device its errors say only their kind; see client.discretion."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as exc:
            is_device = "data" in context.node_config
            if not is_device or isinstance(exc, SPEAKABLE):
                raise
            raise FedheadError(kind_of(exc)) from None

    return answer


def _backbones(context: Context) -> Backbones:
    config = context.node_config
    cache = Path(str(config.get("state", cache_root()))).expanduser()
    trusted = config.get("trusted")
    return Backbones(cache, Trust.of(Path(str(trusted)), cache) if trusted else None)


def _host(context: Context) -> Host:
    return host_of(context.node_config, context.run_config, context.node_id)


@app.query("describe")
@_discreet
def describe(message: Message, context: Context) -> Message:
    """Answer which clients this node hosts, and how many examples each has."""
    request = DescribeRequest.read(message.content)
    host = _host(context)
    return Message(host.describe(request).write(), reply_to=message)


@app.query("backbone")
@_discreet
def backbone(message: Message, context: Context) -> Message:
    """Answer whether the backbone is here; if the message brings it, check and keep it."""
    request = BackboneRequest.read(message.content)
    present = _backbones(context).receive(request)
    return Message(BackboneReply(present).write(), reply_to=message)


@app.train()
@_discreet
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message lists, or sum up their statistics."""
    request = TrainRequest.read(message.content)
    frozen = _backbones(context).get(request.fingerprint)
    if frozen is None:
        reply = TrainReply(request.fingerprint, missing_backbone=True)
        return Message(reply.write(), reply_to=message)
    host = _host(context)
    complete = _completed(request, host)
    if isinstance(complete, TrainReply):
        return Message(complete.write(), reply_to=message)
    try:
        host.budget.begin(host.state)
    except DeclinedError as exc:
        host.tell(request.run_id, f"round {request.round_number}: declined: {exc}")
        raise
    if host.budget.max_threads:
        torch.set_num_threads(host.budget.max_threads)
    reply = node_update(complete, frozen, host)
    result = _result(reply, private=request.plan.private)
    host.tell(request.run_id, f"round {request.round_number}: {result}")
    if request.reduce != "stock":
        return Message(reply.write(), reply_to=message)
    if not reply.reports:
        raise ReplyError("; ".join(r.reason for r in reply.rejected) or "no client")
    row = {name: rows[0] for name, rows in reply.payloads.items()}
    delta = request.uplink.decode(reply.clients[0], row)["delta"]
    local = Head.from_matrix(request.head.matrix + np.asarray(delta, np.float32))
    return Message(reply.write_stock(local), reply_to=message)


def _completed(request: TrainRequest, host: Host) -> TrainRequest | TrainReply:
    """The request with what this machine keeps; or the answer that it has not got it."""
    folder = run_folder(host.state, request.run_id)
    complete = with_constant(request, folder, durable=not host.simulated)
    if complete is None:
        return TrainReply(request.fingerprint, missing_constant=True)
    if host.simulated and complete.changes is None:
        return complete  # the whole head, for all the node's clients in each round
    known = with_head(complete, folder)
    return known or TrainReply(request.fingerprint, missing_head=True)


def _result(reply: TrainReply, *, private: bool) -> str:
    """The result of a round on a device, in words."""
    if not reply.reports:
        return "nothing to send"  # the reason has been logged
    if private:
        return "sent its clipped update, and neither its loss nor its number of examples"
    report = reply.reports[0]
    loss = f"loss {report.loss_before:.3f} -> {report.loss_after:.3f}"
    return f"trained on {report.num_examples} examples, {loss}"


@app.evaluate()
@_discreet
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate a head, and personal heads if asked, on each client's own test part."""
    request = EvaluateRequest.read(message.content)
    frozen = _backbones(context).get(request.fingerprint)
    if frozen is None:
        raise ProtocolError("the backbone is not on this node")
    host = _host(context)
    results = list(_evaluate(request, frozen, host))
    if request.personal or request.alone:
        own = [own_correct(request, result.client, frozen, host) for result in results]
        results = [
            replace(result, personal_correct=personal, alone_correct=alone)
            for result, (personal, alone) in zip(results, own, strict=True)
        ]
    correct, total = (sum(r.correct for r in results), sum(r.num_examples for r in results))
    host.tell(request.run_id, f"evaluated its head: {correct} of {total} correct")
    return Message(EvaluateReply(tuple(results)).write(), reply_to=message)


def _evaluate(
    request: EvaluateRequest, frozen: FrozenBackbone, host: Host
) -> Iterator[ClientEvaluation]:
    """Evaluate each client that has a test part."""
    cohort = host.cohort(frozen, "test")
    if cohort is not None:
        clients = np.intersect1d(request.clients, host.clients())
        clients = clients[cohort.num_examples[clients] > 0]
        clients = clients[cohort.largest_label[clients] < request.head.num_classes]
        correct, losses = cohort.evaluate(clients, request.head.matrix)
        counts = cohort.num_examples[clients].tolist()
        columns = clients.tolist(), counts, correct.tolist(), losses.tolist()
        curves = cohort.losses(clients, request.head.matrix)
        results = zip(map(ClientEvaluation, *columns), curves, strict=True)
        yield from (replace(result, losses=_told(curve)) for result, curve in results)
        return
    for client in request.clients:
        features = host.test_features(client, frozen, request.run_id)
        if len(features):
            result = evaluate_head(request.head, features)
            curve = losses_of(request.head, features)
            yield ClientEvaluation(
                client, len(features), result.correct, result.loss, losses=_told(curve)
            )


def _told(curve: npt.NDArray[np.float64]) -> bytes:
    return curve.astype("<f8").tobytes()


@app.query("baselines")
@_discreet
def baselines(message: Message, context: Context) -> Message:
    """In simulation only: train heads on all clients' examples in one place."""
    request = BaselineRequest.read(message.content)
    frozen, host = _backbones(context).get(request.fingerprint), _host(context)
    if frozen is None or not isinstance(host, SimulatedHost):
        raise ProtocolError("baselines need a simulated node that has the backbone")
    heads = _baseline_heads(request, host.all_train_features(frozen))
    return Message(write_heads(heads), reply_to=message)


@lru_cache(maxsize=4)  # runs that differ only in their strategy ask for the same heads
def _baseline_heads(request: BaselineRequest, features: FeatureSet) -> dict[str, Head]:
    return best_linear_heads(
        features, request.num_classes, ridge_lambda=request.ridge_lambda, seed=request.seed
    )
