"""The ServerApp: one run from its configuration to the exported model."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import save

from common.backbone.frozen import FrozenBackbone
from common.backbone.prepare import cached_backbone
from common.config import AttackConfig, AvailabilityConfig, BackboneConfig, Config
from common.datasets import Dataset
from common.errors import ConfigError, FedheadError, RunError
from common.evaluation import evaluate
from common.experiment import (
    calibration_positions,
    client_shares,
    experiment_dataset,
    experiment_features,
    held_out_positions,
    malicious_clients,
    run_config,
)
from common.files import cache_root, simulated_state, write_atomic
from common.machine import versions
from common.messages import (
    BaselineRequest,
    DescribeRequest,
    payload_bytes,
    read_heads,
    write_head,
)
from common.types import FeatureSet, Head
from server.build import check_strategy, make_engine
from server.checkpoint import load_latest
from server.client_figures import ask_clients, write_clients
from server.engine import Task
from server.exchange import Registry, ask
from server.export import export
from server.rounds import run_rounds
from server.runfolder import RunFolder, free_folder
from server.stock import is_stock
from server.trained import TrainedModel

logger = logging.getLogger("fedhead")

app = ServerApp()

_JOIN_SECONDS = 120.0
_BASELINE_SECONDS = 3600.0
_SELF_CHECK_IMAGES = 128


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config names."""
    in_flower = _start_log()
    try:
        run_experiment(grid, run_config(context.run_config))
    except FedheadError as exc:
        if in_flower:
            # Flower prints the traceback; what a user can mend is one line.
            logger.error("%s", exc)  # noqa: TRY400
        raise


def _start_log() -> bool:
    """Give the log a handler where the process has none, as in Flower's own engines."""
    if logger.hasHandlers():
        return False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fedhead %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return True


class _Stages:
    """Wall seconds by stage, in the order they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        logger.debug("stage %s", name)
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)


def run_experiment(grid: Grid, config: Config, *, is_cell: bool = False) -> Path:
    """Run or resume an experiment and return its run folder.

    Args:
        grid: reaches the nodes.
        config: what to do.
        is_cell: a cell of a comparison, of which only the figures are wanted: no model, no
            TensorBoard events, no checkpoints; one that was cut off begins again.

    Raises:
        FedheadError: as one clear line; finished rounds stay in the run folder.
    """
    check_strategy(config)
    folder = RunFolder(free_folder(config), config)
    with folder.at_work():
        _run(grid, config, folder, is_cell=is_cell)
    return folder.path


def _run(grid: Grid, config: Config, folder: RunFolder, *, is_cell: bool) -> None:
    checkpoint = load_latest(folder.checkpoints)
    if checkpoint is not None:
        if is_stock(config.strategy.name):
            raise RunError(
                f"{folder.path}: a run with a stock Flower strategy cannot be resumed, "
                "its state is private"
            )
        logger.info("going on after round %d in %s", checkpoint.round_number, folder.path)
    stages = _Stages()
    with stages("data"):
        dataset = experiment_dataset(config)
    with stages("backbone"):
        backbone = prepare(config, dataset)
    folder.bind(backbone.fingerprint, dataset.classes)
    with stages("features"):
        features = experiment_features(config, backbone)
        test = features.select(held_out_positions(config))
    with stages("clients"):
        registry = _registry(grid, config, folder, dataset, backbone)
    if registry.simulated:
        _account(config, dataset)
    task = Task(config, folder.run_id, backbone.fingerprint, grid, registry)
    engine = make_engine(task, features.affine, backbone.spec.feature_zero_point)
    with stages("baselines"):
        baselines = _baselines(task, dataset.num_classes, test)
    with stages("rounds"):
        head, rounds, counters = run_rounds(
            task,
            engine,
            Head.zeros(dataset.num_classes, features.num_features),
            test,
            folder,
            checkpoint,
            is_cell=is_cell,
        )
    if not counters["accepted"]:
        raise RunError(f"no round of {rounds} had enough valid updates: nothing to export")
    with stages("evaluation"):
        figures = ask_clients(task, head, engine.personal)
        if registry.simulated:
            write_clients(folder.clients, task, dataset, figures)
    evaluation = evaluate(head, test)
    exported = None
    if not is_cell:
        with stages("export"):
            trained = trained_model(config, backbone, head, test)
            exported = export(trained, "model", folder.model)
    write_atomic(folder.path / "head.safetensors", save({"weight": head.weight, "bias": head.bias}))
    # What one client would send if the float32 backbone were trained and sent as well.
    full_model_bytes = backbone.spec.float_model_bytes + payload_bytes(
        RecordDict({"arrays": write_head(head)})
    )
    summary = {
        "accuracy": evaluation.accuracy,
        "loss": evaluation.loss,
        **baselines,
        **figures.summary(),
        "rounds": rounds,
        "accepted_rounds": int(counters["accepted"]),
        "clients": len(registry.clients),
        "valid_updates": int(counters["valid"]),
        "rejected_updates": int(counters["rejected"]),
        "failed_updates": int(counters["failed"]),
        "dropped_updates": int(counters["dropped"]),
        "late_updates": int(counters["late"]),
        "attack": config.attack.kind,
        "malicious_clients": len(malicious_clients(config)),
        "uplink_bytes": int(counters["uplink-bytes"]),
        "downlink_bytes": int(counters["downlink-bytes"]),
        "full_model_uplink_bytes": full_model_bytes * int(counters["valid"]),
        "backbone_bytes_sent": registry.backbone_bytes_sent,
        "simulated_seconds": round(counters["simulated-seconds"], 3),
        "seconds": {
            **stages.seconds,
            "rounds_total": round(counters["seconds"], 3),
            "training": round(counters["train-seconds"], 3),
        },
        "strategy": config.strategy.name,
        "run": str(folder.path),
        "head_sha256": head.sha256,
        "fingerprint": backbone.fingerprint,
        "versions": versions(),
    }
    if exported is not None:
        summary |= {
            "model_path": str(folder.model),
            "model_bytes": exported.model_bytes,
            "model_accuracy": exported.accuracy,
            "argmax_agreement": exported.argmax_agreement,
            "max_logit_difference": exported.max_logit_difference,
        }
    folder.write_json(folder.summary, summary)
    if registry.simulated:
        shutil.rmtree(simulated_state() / folder.run_id, ignore_errors=True)


def prepare(config: Config, dataset: Dataset) -> FrozenBackbone:
    """The configured backbone, quantized on the server's unlabelled images, or from the cache."""
    calibration = calibration_positions(config)
    return _prepared_backbone(config.backbone, dataset, calibration.tobytes(), config.data_seed)


@lru_cache(maxsize=1)  # a comparison's runs share it
def _prepared_backbone(
    settings: BackboneConfig, dataset: Dataset, calibration: bytes, seed: int
) -> FrozenBackbone:
    positions = np.frombuffer(calibration, np.int64)
    return cached_backbone(
        arch=settings.arch,
        weights=settings.weights,
        input_size=settings.input_size,
        engine=settings.engine,
        distill_steps=settings.distill_steps,
        feature_scaling=settings.feature_scaling,
        images=dataset.images(positions, settings.input_size),
        seed=seed,
        cache=cache_root(),
    )


def trained_model(
    config: Config, backbone: FrozenBackbone, head: Head, test: FeatureSet
) -> TrainedModel:
    """What an export needs: the head with its backbone, and the images of its test features."""
    dataset, positions = experiment_dataset(config), held_out_positions(config)
    evaluation = evaluate(head, test)
    # The file itself runs on some images of all classes, evenly spread; its head on all.
    count = min(_SELF_CHECK_IMAGES, len(test))
    spread = np.linspace(0, len(test) - 1, count).astype(np.int64)
    order = np.concatenate([spread, np.setdiff1d(np.arange(len(test)), spread)])
    return TrainedModel(
        backbone,
        head,
        classes=dataset.classes,
        metrics={"accuracy": evaluation.accuracy, "loss": evaluation.loss},
        images=dataset.images(positions[spread], backbone.spec.input_size),
        features=test.q[order],
        labels=test.labels[order],
    )


def _registry(
    grid: Grid, config: Config, folder: RunFolder, dataset: Dataset, backbone: FrozenBackbone
) -> Registry:
    request = DescribeRequest(
        run_id=folder.run_id,
        classes=dataset.classes,
        test_fraction=config.partition.test_fraction,
        seed=config.seed,
    )
    registry = Registry(
        grid,
        request,
        (backbone.fingerprint, backbone.to_bytes),
    )
    registry.wait_for(1, _JOIN_SECONDS)
    folder.bind_clients(simulated=registry.simulated)
    if not registry.simulated:
        simulated = {
            "[availability]": config.availability != AvailabilityConfig(),
            "[attack]": config.attack != AttackConfig(),
            "data.label-noise": config.data.label_noise > 0,
        }
        if wrong := [key for key, given in simulated.items() if given]:
            raise ConfigError([f"{key} is for simulated clients, these are real" for key in wrong])
        registry.wait_for(config.train.clients_per_round, _JOIN_SECONDS)
    else:
        # All simulated nodes are there from the start, so each client is or never will be.
        expected = {i for i, share in enumerate(client_shares(config)) if len(share.train)}
        if missing := sorted(expected - set(registry.clients)):
            raise RunError(f"no node hosts the clients {missing[:10]}")
    return registry


def _account(config: Config, dataset: Dataset) -> None:
    """Where the images of a simulation have gone."""
    shares = client_shares(config)
    train, test = (sum(len(getattr(s, part)) for s in shares) for part in ("train", "test"))
    logger.info(
        "%d images: %d to test with on the server, %d to quantize with",
        len(dataset), len(held_out_positions(config)), len(calibration_positions(config)),
    )  # fmt: skip
    logger.info("%d clients train on %d and keep %d to test with", len(shares), train, test)
    if malicious := malicious_clients(config):
        attack = config.attack
        scale = f" with scale {attack.strength:g}" if attack.strength else ""
        logger.info("%d clients are malicious: %s%s", len(malicious), attack.kind, scale)


def _baselines(task: Task, num_classes: int, test: FeatureSet) -> dict[str, float | None]:
    """Accuracy of the centralized and the ridge head; None where data cannot be in one place."""
    config = task.config
    if not (task.registry.simulated and config.baseline.epochs):
        return {"centralized_accuracy": None, "ridge_accuracy": None}
    settings = {"local_epochs": config.baseline.epochs, "lr": config.baseline.lr or config.train.lr}
    training = config.train.model_copy(update=settings).local()
    request = BaselineRequest(
        training=training,
        num_classes=num_classes,
        ridge_lambda=config.baseline.ridge_lambda,
        seed=config.seed,
        fingerprint=task.fingerprint,
    )
    node = min(client.node for client in task.registry.clients.values())
    answers, errors = ask(
        task.grid,
        "query.baselines",
        lambda _: request.write(),
        [node],
        _BASELINE_SECONDS,
    )
    if node not in answers:
        raise RunError(f"the baselines could not be computed: {errors.get(node, 'no answer')}")
    heads = read_heads(answers[node])
    return {f"{name}_accuracy": evaluate(head, test).accuracy for name, head in heads.items()}
