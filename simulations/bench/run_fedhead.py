"""fedhead's runner: algorithm, messages and a node's part of a round, over an in-process Grid."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.cohort.cohort import Cohort, warm_up
from client.memory import ClientMemory
from client.together import update_together
from common.config import Config, PrivacyConfig, SimulationConfig, TrainConfig
from common.config.codec import CodecConfig
from common.messages import (
    BackboneReply,
    DescribeReply,
    DescribeRequest,
    TrainRequest,
)
from common.types import Affine, FeatureSet, Head
from server.record.progress import Progress
from server.round.admission import Admission
from server.round.algorithm import Run
from server.round.backbone_offer import Offer
from server.round.join import wait_for
from server.round.own import OwnAlgorithm
from server.round.private import Guard
from server.round.private_terms import decide
from server.round.registry import Registry
from server.strategies.averaging import fedavg
from server.strategies.private import with_privacy
from server.strategy import Strategy
from simulations.bench.work import Data, Result, Work, read_work
from simulations.engines.in_process import InProcessGrid

__all__ = ["make_algorithm"]

_FINGERPRINT = "0" * 64


def _client_app(cohort: Cohort) -> ClientApp:
    """A ClientApp that answers like client.app, with synthetic features."""
    app = ClientApp()
    memory = ClientMemory(Path(tempfile.gettempdir()))  # FedAvg remembers nothing

    @app.query("describe")
    def describe(message: Message, _context: Context) -> Message:
        counts = cohort.num_examples.tolist()
        if DescribeRequest.read(message.content).private:
            counts = [1] * len(counts)
        reply = DescribeReply(tuple(range(len(counts))), tuple(counts), simulated=True)
        return Message(reply.write(), reply_to=message)

    @app.query("backbone")
    def backbone(message: Message, _context: Context) -> Message:
        return Message(BackboneReply(present=True).write(), reply_to=message)

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        request = TrainRequest.read(message.content)
        residents = range(len(cohort.num_examples))
        reply = update_together(request, request.clients, cohort, memory, residents=residents)
        return Message(reply.write(), reply_to=message)

    return app


def make_algorithm(
    work: Work, cohort: Cohort, affine: Affine, codec: str = "", epsilon: float = math.inf
) -> OwnAlgorithm:
    """FedAvg over an in-process Grid with one node.

    Args:
        work: the work.
        cohort: its clients.
        affine: how integer features become x.
        codec: of what clients send.
        epsilon: privacy budget of the run, which keeps its ledger in the work's folder; infinite:
            no privacy.
    """
    config = Config(
        privacy=PrivacyConfig(epsilon=epsilon),
        codec=CodecConfig(up=codec),
        train=TrainConfig.model_validate(
            {
                "rounds": work.rounds + 1,
                "lr": work.lr,
                "local-epochs": work.local_epochs,
                "batch-size": work.batch_size,
            }
        ),
        simulation=SimulationConfig(),
        seed=work.seed,
    )
    grid = InProcessGrid(_client_app(cohort), 1, {})
    classes, is_private = tuple(map(str, range(work.classes))), config.privacy.active
    request = DescribeRequest("bench", classes, 0.0, work.seed, private=is_private)
    registry = Registry(
        grid,
        request,
        Offer(_FINGERPRINT, bytes),
        admission=Admission(None, max_clients=work.clients),
        deadline_seconds=config.round.deadline_seconds,
        progress=Progress(),
    )
    wait_for(registry, work.clients)
    guard: Guard | None = None
    strategy: Strategy[Any] = fedavg()
    if is_private:
        norm = math.sqrt(work.features)  # features have a mean square of 1
        decided = decide(config, work.clients, work.examples, norm)
        guard = Guard(config, decided, Path(work.folder), simulated=True)
        strategy = with_privacy(strategy, decided.terms, guard.release)
    run = Run(config, "bench", _FINGERPRINT, grid, registry, guard)
    return OwnAlgorithm(run, strategy, affine, zero_point=0)


def main() -> None:
    """Run the work that the first argument names."""
    work = read_work(sys.argv[1])
    data = Data(work)
    features = FeatureSet(data.q, data.labels, data.affine, _FINGERPRINT)
    cohort = Cohort(features, data.rows)
    warm_up()
    everyone = np.arange(work.clients)
    started = time.perf_counter()
    cohort.prepare(everyone)
    gram_seconds = time.perf_counter() - started
    algorithm = make_algorithm(work, cohort, data.affine)
    head = Head.zeros(work.classes, work.features)
    algorithm.start(head, None)
    seconds = []
    for number in range(1, work.rounds + 2):
        started = time.perf_counter()
        step = algorithm.step(number, head, lambda _: "")
        seconds.append(time.perf_counter() - started)
        if step is None or step[1].valid != work.clients:
            raise SystemExit(f"round {number}: not every update is valid")
        head = step[0]
    cohort.touch(everyone, head.matrix)  # a warm-up
    floor = []
    for _ in range(work.rounds):
        started = time.perf_counter()
        cohort.touch(everyone, head.matrix)
        floor.append(time.perf_counter() - started)
    accuracy = data.score("fedhead", head.weight, head.bias)
    Result(tuple(seconds[1:]), accuracy, gram_seconds, tuple(floor)).print()


if __name__ == "__main__":
    torch.set_num_threads(1)  # for the main thread; the cohort has its own threads
    main()
