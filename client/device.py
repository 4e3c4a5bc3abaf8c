"""Who lives on this node: one phone with its own folder, or many simulated clients."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from client.budget import Budget, device_budget
from common.backbone.frozen import FrozenBackbone
from common.cache import keep_newest
from common.datasets.base import Dataset
from common.datasets.folder import load_folder
from common.errors import ConfigError, DataError, FedheadError, ProtocolError
from common.features import extract
from common.files import cache_root, simulated_state
from common.identity import client_of_node
from common.messages import DescribeReply, DescribeRequest
from common.partition import evenly, local_split
from common.readback import JsonFile
from common.types import FeatureSet, IntArray
from common.words import one_line

if TYPE_CHECKING:
    from client.cohort.cohort import Cohort
    from common.experiment import ClientShare

__all__ = ["TASK", "Host", "Part", "SimulatedHost", "host_of", "run_folder", "used_positions"]

logger = logging.getLogger("fedhead")

Part = Literal["train", "test"]

TASK = JsonFile("task of a device")

# Runs at once, and images before and after a change: each has features of its own.
_KEPT_FEATURES = 8


class Host(Protocol):
    """The clients of one node and their data.

    Attributes:
        simulated: whether the clients' data is all on this machine.
        state: folder for what the clients of a run remember.
        budget: what the node's owner allows.
    """

    simulated: bool
    state: Path
    budget: Budget

    def describe(self, request: DescribeRequest) -> DescribeReply:
        """Which clients live here, and how many training examples each has."""
        ...

    def clients(self) -> tuple[int, ...]:
        """Ids of the clients that live here."""
        ...

    def train_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        """What the client trains on."""
        ...

    def test_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        """The client's own test part, possibly empty."""
        ...

    def cohort(self, backbone: FrozenBackbone, part: Part) -> Cohort | None:
        """All clients' examples for an engine that trains them together; None: one by one."""
        ...

    def name(self, client: int) -> str:
        """What the node's log calls a client."""
        ...

    def tell(self, run_id: str, words: str) -> None:
        """Tell a device's owner what it does."""
        ...


def host_of(
    node_config: Mapping[str, object], run_config: Mapping[str, object], node_id: int
) -> Host:
    """The host that a node's configuration describes.

    ``data="folder:PATH"`` makes it a device; ``partition-id`` and ``num-partitions``, which
    Flower gives each simulated node, make it node i of N.

    Raises:
        ConfigError: neither is there.
    """
    if "data" in node_config:
        return _DeviceHost(node_config, node_id)
    if "partition-id" in node_config and "num-partitions" in node_config:
        index, count = node_config["partition-id"], node_config["num-partitions"]
        return SimulatedHost(int(str(index)), int(str(count)), run_config)
    raise ConfigError(
        ["""expected data="folder:PATH", or partition-id and num-partitions"""], "node config"
    )


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
        if self._config.simulation.trainer == "cohort":
            from client.cohort.cohort import warm_up

            warm_up()
        shares = self._experiment.client_shares(self._config)
        clients = self.clients()
        return DescribeReply(clients, tuple(len(shares[i].train) for i in clients), True)

    def clients(self) -> tuple[int, ...]:
        total = len(self._experiment.client_shares(self._config))
        return tuple(range(self._index, total, self._count))

    def train_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        return self._select(client, backbone, "train")

    def test_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        return self._select(client, backbone, "test")

    def cohort(self, backbone: FrozenBackbone, part: Part) -> Cohort | None:
        if self._config.simulation.trainer == "reference":
            return None
        return _cohort(
            self._features(backbone, part),
            self._experiment.client_shares(self._config),
            part,
            int(self._config.simulation.cohort_memory),
        )

    def name(self, client: int) -> str:
        return f"client {client}"

    def tell(self, run_id: str, words: str) -> None:
        """Nobody owns a simulated client, and there are thousands."""

    def all_train_features(self, backbone: FrozenBackbone) -> FeatureSet:
        """The training examples of all clients, as if in one place; nobody attacks."""
        return _pooled(
            self._experiment.training_features(self._config, backbone, honest=True),
            self._experiment.client_shares(self._config),
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


class _DeviceHost:
    """One phone: its images stay in its own folder, features are cached beside its state."""

    simulated = False

    def __init__(self, node_config: Mapping[str, object], node_id: int) -> None:
        kind, _, path = str(node_config["data"]).partition(":")
        if kind != "folder" or not path:
            raise ConfigError([f"data={node_config['data']!r} must be folder:PATH"], "node config")
        self._folder = Path(path).expanduser()
        self._cache = Path(str(node_config.get("state", cache_root()))).expanduser()
        self._shares_cache = "state" not in node_config
        self._client = int(str(node_config.get("client-id", client_of_node(node_id))))
        self.state = self._cache / "clients"
        self.budget = device_budget(node_config)

    def describe(self, request: DescribeRequest) -> DescribeReply:
        dataset, (train, test) = self._load(request)
        # The next message may find another process: what the task is has to be on disk. The last
        # three are for client/held_out.
        task = {
            "classes": list(request.classes),
            "test-fraction": request.test_fraction,
            "seed": request.seed,
            "name": request.name,
            "max-examples": request.max_examples,
            "client": self._client,
            "budget": self.budget.max_examples,
            "images": dataset.content_key,
        }
        TASK.write(self._task_file(request.run_id), task)
        allowed = len(used_positions(dataset, self.budget.max_examples))
        unused = allowed - len(train) - len(test)
        self.tell(request.run_id, f"joined it with {len(train)} examples to train on")
        if unused:
            bound = f"it takes at most {request.max_examples} images of a device"
            self.tell(request.run_id, f"{bound}, {unused} others are left out, evenly")
        return DescribeReply((self._client,), (len(train),), False, unused)

    def clients(self) -> tuple[int, ...]:
        return (self._client,)

    def train_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        return self._features(client, backbone, run_id, part=0)

    def test_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        return self._features(client, backbone, run_id, part=1)

    def cohort(self, backbone: FrozenBackbone, part: Part) -> Cohort | None:
        return None

    def name(self, client: int) -> str:
        return "this device"

    def tell(self, run_id: str, words: str) -> None:
        logger.info("run %s: %s", one_line(self._task(run_id).name), words)

    def _task_file(self, run_id: str) -> Path:
        return run_folder(self.state, run_id) / "task.json"

    def _task(self, run_id: str) -> DescribeRequest:
        path = self._task_file(run_id)
        try:
            task = TASK.read(path)
        except OSError as exc:
            raise FedheadError(f"{path} cannot be read: the server must describe first") from exc
        return DescribeRequest(
            run_id,
            tuple(task["classes"]),
            float(task["test-fraction"]),
            int(task["seed"]),
            str(task["name"]),
            int(task["max-examples"]),
        )

    def _load(self, task: DescribeRequest) -> tuple[Dataset, tuple[IntArray, IntArray]]:
        memory = self._cache / "images.json"
        dataset = load_folder(self._folder, classes=task.classes, strict=False, memory=memory)
        parts = local_split(
            used_positions(dataset, self.budget.max_examples, task.max_examples),
            dataset.labels,
            client=self._client,
            test_fraction=task.test_fraction,
            seed=task.seed,
        )
        return dataset, parts

    def _features(
        self, client: int, backbone: FrozenBackbone, run_id: str, part: int
    ) -> FeatureSet:
        if client != self._client:
            raise DataError(f"client {client} does not live here, {self._client} does")
        task = self._task(run_id)
        dataset, parts = self._load(task)
        used = used_positions(dataset, self.budget.max_examples, task.max_examples)
        q = extract(
            backbone,
            lambda index: dataset.images(used[index], backbone.spec.input_size),
            len(used),
            content_key=dataset.images_key,
            cache=self._cache,
        )
        if not self._shares_cache:
            keep_newest(self._cache / "features", _KEPT_FEATURES)
        labels = dataset.labels[used]
        features = FeatureSet(q, labels, backbone.affine, backbone.fingerprint)
        return features.select(np.searchsorted(used, parts[part]))


def used_positions(dataset: Dataset, *limits: int) -> IntArray:
    """Positions of as many images as all limits allow; 0 limits nothing."""
    return evenly(len(dataset), min((limit for limit in limits if limit), default=0))


@lru_cache(maxsize=1)
def _pooled(features: FeatureSet, shares: tuple[ClientShare, ...]) -> FeatureSet:
    return features.select(np.sort(np.concatenate([share.train for share in shares])))


@lru_cache(maxsize=2)
def _cohort(
    features: FeatureSet, shares: tuple[ClientShare, ...], part: Part, memory_bytes: int
) -> Cohort:
    from client.cohort.cohort import Cohort

    return Cohort(features, [getattr(s, part) for s in shares], memory_bytes=memory_bytes)


def run_folder(state: Path, run_id: str) -> Path:
    """The folder of one run below a host's state.

    Raises:
        ProtocolError: the id, which comes from outside, is not a plain name.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", run_id):
        raise ProtocolError(f"run-id {run_id!r} is not a plain name")
    return state / run_id
