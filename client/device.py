"""A device: one client with its own folder of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.budget import device_budget
from client.host import Part, run_folder
from common.backbone.frozen import FrozenBackbone
from common.cache import keep_newest
from common.datasets.base import Dataset
from common.datasets.folder import load_folder
from common.errors import ConfigError, DataError, FedheadError
from common.features import extract
from common.files import cache_root
from common.identity import client_of_node
from common.messages import DescribeReply, DescribeRequest
from common.partition import evenly, local_split
from common.readback import JsonFile
from common.types import FeatureSet, IntArray
from common.words import one_line

if TYPE_CHECKING:
    from client.cohort.cohort import Cohort
    from client.sgd import Gradient

__all__ = ["TASK", "DeviceHost", "used_positions"]

logger = logging.getLogger("fedhead")

TASK = JsonFile("task of a device")

# Several runs at once, and images before and after a change, each have their own features.
_KEPT_FEATURES = 8


class DeviceHost:
    """One device. Its images stay in its own folder; features are cached beside its state."""

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
        # The next message may be handled by another process, so the task has to be on disk. The
        # last three values are for client/held_out.
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
            bound = f"it uses at most {request.max_examples} images of a device"
            self.tell(request.run_id, f"{bound}; {unused} others are left out, evenly spread")
        if request.private:
            return DescribeReply((self._client,), (min(len(train), 1),), simulated=False)
        return DescribeReply((self._client,), (len(train),), False, unused)

    def counts(self, request: DescribeRequest) -> tuple[int, int]:
        """Examples of the train and of the test part, of the images as they are now."""
        _, (train, test) = self._load(request)
        return len(train), len(test)

    def clients(self) -> tuple[int, ...]:
        return (self._client,)

    def train_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        return self._features(client, backbone, run_id, part=0)

    def test_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        return self._features(client, backbone, run_id, part=1)

    def cohort(self, backbone: FrozenBackbone, part: Part) -> Cohort | None:
        return None

    def gradient(self) -> Gradient | None:
        return None  # a device runs no code that a server names

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
            raise DataError(f"client {client} is not on this node, only {self._client}")
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
    """Positions of the images to use, as many as all limits allow; 0: no limit."""
    return evenly(len(dataset), min((limit for limit in limits if limit), default=0))
