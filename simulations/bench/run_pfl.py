"""pfl-research's SimulatedBackend: FederatedAveraging of a torch model, the same features."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

from simulations.bench.work import Data, Result, read_work


class _Linear(torch.nn.Linear):
    """A head with the two functions that pfl needs of a model."""

    def loss(self, x: torch.Tensor, y: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor, **_: Any) -> dict[str, Any]:
        return {}


class _Clock(TrainingProcessCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *, model: Any) -> Metrics:
        self.ends.append(time.perf_counter())
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.ends.append(time.perf_counter())
        return False, Metrics()


def main() -> None:
    """Run the work that the first argument names, in this process or in one of torchrun's."""
    torch.set_num_threads(1)
    work = read_work(sys.argv[1])
    data = Data(work)
    torch.manual_seed(work.seed)

    def user(number: int) -> Dataset:
        x, y = (torch.from_numpy(a) for a in data.client(number))
        order = torch.randperm(len(y))  # pfl itself would use examples in their order
        return Dataset(raw_data=[x[order], y[order]], user_id=str(number))

    linear = _Linear(work.features, work.classes)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    model = PyTorchModel(linear, torch.optim.SGD, torch.optim.SGD(linear.parameters(), lr=1.0))
    sampler = get_user_sampler("minimize_reuse", list(range(work.clients)))
    users = FederatedDataset(user, sampler)
    clock = _Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds + 1,
            evaluation_frequency=work.rounds + 2,  # only for the warm-up
            train_cohort_size=work.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=users, val_data=users),
        model,
        NNTrainHyperParams(
            local_num_epochs=work.local_epochs,
            local_learning_rate=work.lr,
            local_batch_size=work.batch_size,
        ),
        callbacks=[clock],
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if int(os.environ.get("RANK", "0")):
        return
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    accuracy = data.score("pfl", linear.weight.detach().numpy(), linear.bias.detach().numpy())
    Result(tuple(seconds[1:]), accuracy).print()


if __name__ == "__main__":
    main()
