"""A deployment's private run: its files, its log and the operator's view tell nothing un-noised."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from common.datasets.folder import load_folder
from common.evaluation import evaluate
from common.experiment import experiment_dataset
from common.types import FeatureSet, Head
from server.export.run_model import backbone_of_run
from server.record.runfolder import read_run_json
from simulations.deploy.last_run import read_last_run
from simulations.report import load_runs, write_report
from simulations.run import open_run, read_summary
from tests.unnoised import Planted, Seen, of_folder, of_text

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment

IMAGES = {"attic": 311, "cellar": 523, "garden": 401}
KEYS = ("train.rounds=3", "train.clients-per-round=0", "train.local-epochs=1",
        "partition.test-fraction=0", "round.keep-checkpoints=9", "strategy.name=fedavg",
        "backbone.projection=off", "train.batch-size=0")  # fmt: skip
PRIVATE = ("privacy.epsilon=30",)
POISSON = (*PRIVATE, "privacy.mechanism=poisson", "train.clients-per-round=2")
NOT_PRIVATE = "not private: single images may show in updates and model; see docs/privacy.md"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_files_log_and_the_operators_table_tell_nothing_that_no_noise_covers(
    deployment: Callable[..., Deployment], tiny: Callable[..., Path]
) -> None:
    deployed = deployment(*IMAGES)
    deployed.start_server()
    for number, (name, count) in enumerate(IMAGES.items()):
        deployed.give_images(name, number, count)
        deployed.start_device(name)

    path = tiny(*KEYS, name="open")
    assert deployed.run(path)["valid_updates"] == 9
    found = planted_in(path, deployed).found(all_of(path, deployed))
    # The search finds them where they are told.
    assert {f"examples of {name}" for name in IMAGES} <= found.keys()
    assert {"all examples", "loss in 2", "loss in 3"} <= found.keys()
    places = {place for places in found.values() for place in places}
    assert {"flower.log", "events.jsonl", "metrics.jsonl"} <= places
    assert examples_of(deployed) == [*IMAGES.values()]
    assert NOT_PRIVATE in (path / "flower.log").read_text()

    for name, keys in {"everyone": PRIVATE, "poisson": POISSON}.items():
        path = tiny(*KEYS, *keys, name=name)
        summary = deployed.run(path)
        assert summary["valid_updates"] == (9 if name == "everyone" else None)
        write_report(load_runs([path]), path)
        assert planted_in(path, deployed).found(all_of(path, deployed)) == {}
        assert examples_of(deployed) == [None] * 3
        log = (path / "flower.log").read_text()
        assert NOT_PRIVATE not in log
        assert not (path / "privacy.secret").exists()
        assert summary["privacy"]["noise"] == "secret"
        assert read_summary(path)["client_tests"] is None

    # Of a device the log of secret cohorts has that it is there, and nothing else. Neither has
    # Flower's own, which names the nodes that it knows and not those that answer.
    of_nodes = [line for line in deployed.said("server").splitlines() if "node_id=" in line]
    about = {re.sub(r"\W*node_id=\d+.*", "", line).rpartition("      ")[2] for line in of_nodes}
    assert about == {
        "[ControlServicer.RegisterNode] Created", "[Fleet.ActivateNode] Activated",
    }  # fmt: skip
    assert len(re.findall(r"\b(?:attic|cellar|garden)\b", log)) == 3
    assert all(log.count(f"{name} has joined") == 1 for name in IMAGES)
    with (path / "devices.csv").open() as file:
        for row in csv.DictReader(file):
            assert {key for key, value in row.items() if value} == {"client", "name", "last_seen"}


def examples_of(deployed: Deployment) -> list[int | None]:
    """The devices' numbers of examples, as the operator's table has them."""
    last = read_last_run(deployed.folder / "server")
    assert last is not None
    return [last.devices[deployed.client(name)].examples for name in IMAGES]


def all_of(path: Path, deployed: Deployment) -> Iterator[Seen]:
    """The run folder, and what the server has said meanwhile."""
    yield from of_folder(path)
    yield of_text("the server's output", deployed.said("server").encode())


def planted_in(path: Path, deployed: Deployment) -> Planted:
    """What the devices have, and what each head loses on it."""
    config = open_run(path)
    dataset = experiment_dataset(config)
    backbone = backbone_of_run(path, config, dataset)
    numbers: dict[str, float] = {"all examples": sum(IMAGES.values())}
    rows: dict[str, list[float]] = {}
    owned: dict[str, FeatureSet] = {}
    for name, count in IMAGES.items():
        images = load_folder(deployed.device(name) / "images", classes=dataset.classes)
        pixels: Any = images.images(np.arange(len(images)), backbone.spec.input_size)
        q = np.concatenate([backbone.features(part) for part in np.array_split(pixels, 8)])
        owned[name] = FeatureSet(q, images.labels, backbone.affine, backbone.fingerprint)
        assert len(images) == count
        numbers[f"examples of {name}"] = count
        rows[f"labels of {name}"] = np.bincount(images.labels, minlength=10).tolist()
    norm = read_run_json(path).get("privacy", {}).get("norm", 1.0)
    for number in (1, 2):
        state = load_file(path / "checkpoint" / f"{number:06d}" / "head.safetensors")
        head = Head(state["weight"], state["bias"])
        losses = {name: losses_of(head, features, norm) for name, features in owned.items()}
        numbers |= {f"loss of {name} in {number + 1}": n for name, (n, _) in losses.items()}
        numbers |= {f"unit loss of {name} in {number + 1}": n for name, (_, n) in losses.items()}
        plain, unit = np.average([*losses.values()], 0, [*IMAGES.values()])
        numbers |= {f"loss in {number + 1}": plain, f"unit loss in {number + 1}": unit}
    return Planted(numbers, rows)


def losses_of(head: Head, features: FeatureSet, norm: float) -> tuple[float, float]:
    """Of a head on plain features, and on features of this norm without a bias."""
    x: NDArray[np.float64] = features.x.astype(np.float64)[:, :-1]
    unit_x = x / np.linalg.norm(x, axis=1, keepdims=True)
    logits = norm * unit_x @ head.weight.T.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    of_truth = logits[np.arange(len(logits)), features.labels]
    unit = float(np.mean(np.log(np.exp(logits).sum(axis=1)) - of_truth))
    return evaluate(head, features).loss, unit
