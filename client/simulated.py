"""Many simulated clients on one node, whose data this machine can read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from client.budget import Budget
from client.host import Part
from common.backbone.frozen import FrozenBackbone
from common.errors import DataError
from common.files import simulated_state
from common.messages import DescribeReply, DescribeRequest
from common.types import FeatureSet

if TYPE_CHECKING:
    from client.cohort.cohort import Cohort
    from client.sgd import Gradient
    from common.experiment import ClientShare

__all__ = ["SimulatedHost"]


class SimulatedHost:
    """Clients i, i + N, ... of an experiment whose data this machine can read."""

    simulated = True
    budget = Budget()

    def __init__(self, index: int, count: int, run_config: Mapping[str, object]) -> None:
        # Configuration, data sets and partitions are heavy, and a phone needs none of them.
        from common import experiment

        self._experiment = experiment
        self._config = experiment.run_config(run_config)
        self._index, self._count = index, count
        self.state = simulated_state()

    def describe(self, request: DescribeRequest) -> DescribeReply:
        if self._config.trainer == "cohort":
            from client.cohort.cohort import warm_up

            warm_up(private=request.private)
        shares = self._experiment.client_shares(self._config)
        clients = self.clients()
        counts = [len(shares[i].train) for i in clients]
        return DescribeReply(
            clients,
            tuple(min(n, 1) for n in counts) if request.private else tuple(counts),
            simulated=True,
            data=self._experiment.experiment_dataset(self._config).content_key,
        )

    def clients(self) -> tuple[int, ...]:
        total = len(self._experiment.client_shares(self._config))
        taking_part = self._config.train.participants(total)
        return tuple(client for client in taking_part if client % self._count == self._index)

    def train_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        return self._select(client, backbone, "train")

    def test_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        return self._select(client, backbone, "test")

    def cohort(self, backbone: FrozenBackbone, part: Part) -> Cohort | None:
        # What cannot be trained together can still be tested together.
        config = self._config
        if (config.trainer if part == "train" else config.simulation.trainer) == "reference":
            return None
        return _cohort(
            self._features(backbone, part),
            self._experiment.client_shares(self._config),
            part,
            int(self._config.simulation.cohort_memory),
        )

    def gradient(self) -> Gradient | None:
        from common.local_loss import find_loss

        loss = find_loss(self._config.train.loss, self._config.train.loss_root)
        return loss.gradient if loss else None

    def name(self, client: int) -> str:
        return f"client {client}"

    def tell(self, run_id: str, words: str) -> None:
        """Nobody owns a simulated client, and there are thousands."""

    def all_train_features(self, backbone: FrozenBackbone) -> FeatureSet:
        """The training examples of all that take part, as if in one place; nobody attacks."""
        shares = self._experiment.client_shares(self._config)
        return _pooled(
            self._experiment.training_features(self._config, backbone, honest=True),
            shares,
            self._config.train.participants(len(shares)),
        )

    def _features(self, backbone: FrozenBackbone, part: Part) -> FeatureSet:
        """All clients' features, with the labels that they have in this part."""
        if part == "train":
            return self._experiment.training_features(self._config, backbone)
        return self._experiment.experiment_features(self._config, backbone)

    def _select(self, client: int, backbone: FrozenBackbone, part: Part) -> FeatureSet:
        shares = self._experiment.client_shares(self._config)
        if not 0 <= client < len(shares) or client % self._count != self._index:
            raise DataError(f"client {client} does not live on node {self._index}")
        positions = getattr(shares[client], part)
        return self._features(backbone, part).select(positions)


@lru_cache(maxsize=1)
def _pooled(
    features: FeatureSet, shares: tuple[ClientShare, ...], clients: tuple[int, ...]
) -> FeatureSet:
    return features.select(np.sort(np.concatenate([shares[i].train for i in clients])))


@lru_cache(maxsize=2)
def _cohort(
    features: FeatureSet, shares: tuple[ClientShare, ...], part: Part, memory_bytes: int
) -> Cohort:
    from client.cohort.cohort import Cohort

    return Cohort(features, [getattr(s, part) for s in shares], memory_bytes=memory_bytes)
