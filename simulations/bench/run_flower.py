"""Flower's simulation: stock FedAvg on Ray, a plain torch ClientApp, the same features."""

from __future__ import annotations

import os
import sys
import time
from functools import lru_cache

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from simulations.bench.work import Data, Result, Work, read_work

WORK = "FEDHEAD_BENCH_WORK"

client = ClientApp()
server = ServerApp()


@lru_cache(maxsize=1)
def _load() -> tuple[Work, Data]:
    torch.set_num_threads(1)  # because one actor per core runs at the same time
    work = read_work(os.environ[WORK])
    return work, Data(work)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train as a user would write it: an nn.Linear, an optimizer, a loop."""
    work, data = _load()
    features, labels = map(torch.from_numpy, data.client(int(context.node_config["partition-id"])))
    model = torch.nn.Linear(work.features, work.classes)
    arrays = message.content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise TypeError("no arrays")
    model.load_state_dict(arrays.to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=work.lr)
    for _ in range(work.local_epochs):
        for batch in torch.randperm(len(labels)).split(work.batch_size):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(features[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(labels)}),
        }
    )
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, _context: Context) -> None:
    """Run stock FedAvg over all nodes; a round ends when its evaluation begins."""
    work, data = _load()
    seconds: list[float] = []
    started = accuracy = 0.0

    def evaluate(number: int, arrays: ArrayRecord) -> None:
        nonlocal accuracy, started
        if number:
            seconds.append(time.perf_counter() - started)
        head = {name: np.asarray(array.numpy(), np.float32) for name, array in arrays.items()}
        accuracy = data.score("flower", head["weight"], head["bias"])
        started = time.perf_counter()

    zeros = {
        "weight": torch.zeros(work.classes, work.features),
        "bias": torch.zeros(work.classes),
    }

    def everybody(contents: list[RecordDict], _weighted_by: str) -> MetricRecord:
        # Flower itself would continue without failed clients, and be faster.
        if len(contents) != work.clients:
            raise RuntimeError(f"{len(contents)} of {work.clients} clients answered")
        return MetricRecord()

    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=work.clients,
        min_available_nodes=work.clients,
        train_metrics_aggr_fn=everybody,
    )
    # The nodes register while the actors start; neither belongs to a round.
    while len(list(grid.get_node_ids())) < work.clients:
        time.sleep(0.1)
    strategy.start(grid, ArrayRecord(zeros), num_rounds=work.rounds + 1, evaluate_fn=evaluate)
    Result(tuple(seconds[1:]), accuracy).print()


if __name__ == "__main__":
    # Ray's processes import the apps by this name.
    from simulations.bench import run_flower

    os.environ[WORK] = sys.argv[1]
    run_simulation(
        run_flower.server,
        run_flower.client,
        num_supernodes=read_work(sys.argv[1]).clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
