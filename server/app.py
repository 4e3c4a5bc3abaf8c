"""The ServerApp: one run from its configuration to the exported model."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.backbone.frozen import FrozenBackbone
from common.config import Config
from common.datasets import Dataset
from common.errors import ExportError, FedheadError, RunError
from common.evaluation import evaluate
from common.experiment import (
    experiment_dataset,
    experiment_features,
    held_out_positions,
    run_config,
)
from common.log import start_log
from common.progress import stage
from common.types import Affine, FeatureSet
from server.backbones import offer
from server.baselines import baselines
from server.build import check_strategy, make_engine
from server.checkpoint import Checkpoint, load_latest
from server.client_figures import ask_clients, write_clients
from server.client_memory import bring_back, put_away
from server.engine import Task
from server.events import event_log
from server.export import export
from server.first_head import first_head, former_head
from server.join import join
from server.lease import follow
from server.model import backbone_of_run, drop_backbone, keep_backbone, trained_model
from server.progress import Progress
from server.roster import Roster
from server.rounds import run_rounds
from server.runfolder import (
    HEAD,
    SUMMARY,
    RunFolder,
    free_folder,
    intact_rounds,
    read_run_json,
)
from server.stock import is_stock
from server.summary import Outcome, of_export, summarize
from server.targets.cards import ExportReport
from server.unreadable import survive_unreadable_replies

logger = logging.getLogger("fedhead")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config names."""
    in_flower = start_log()
    if in_flower:
        survive_unreadable_replies()
    if lease := str(context.run_config.get("lease", "")):
        follow(Path(lease))
    try:
        address = str(context.run_config.get("health", ""))
        deployment = str(context.run_config.get("deployment", ""))
        roster = Roster(Path(deployment)) if deployment else None
        with _progress(address) as progress:
            folder = str(context.run_config.get("backbones", ""))
            run_experiment(
                grid,
                run_config(context.run_config),
                progress=progress,
                roster=roster,
                backbones=Path(folder) if folder else None,
            )
    except FedheadError as exc:
        if in_flower:
            # Flower prints the traceback; what a user can mend is one line.
            logger.error("%s", exc)  # noqa: TRY400
        raise


@contextmanager
def _progress(address: str) -> Iterator[Progress]:
    """Tells a health service at an address how the run stands; nobody where there is none."""
    if not address:
        yield Progress()
        return
    from server.health import health_service

    with health_service(address) as progress:
        logger.info("answering health checks on %s", address)
        yield progress


class _Stages:
    """Wall seconds by stage, in the order they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        logger.debug("stage %s", name)
        with stage(name):
            yield
        self.seconds[name] = round(time.perf_counter() - started, 3)


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is there before the first round."""

    folder: RunFolder
    stages: _Stages
    dataset: Dataset
    backbone: FrozenBackbone
    affine: Affine
    test: FeatureSet
    task: Task


def run_experiment(
    grid: Grid,
    config: Config,
    *,
    is_cell: bool = False,
    progress: Progress | None = None,
    roster: Roster | None = None,
    backbones: Path | None = None,
) -> Path:
    """Run or resume an experiment and return its run folder.

    Args:
        grid: reaches the nodes.
        config: what to do.
        is_cell: a cell of a comparison, of which only the figures are wanted: no model, no
            TensorBoard events, no log, no checkpoints; one that was cut off begins again.
        progress: is told how the run stands.
        roster: the devices of the deployment that it runs on; None: it runs on none.
        backbones: folder of signed ones, for devices that take no others.

    Raises:
        FedheadError: as one clear line; finished rounds stay in the run folder.
    """
    check_strategy(config)
    folder = RunFolder(free_folder(config), config)
    log = nullcontext() if is_cell else event_log(folder.events)
    with folder.at_work(), log, stage(folder.path.name):
        checkpoint = _checkpoint(folder, config)
        resumes = checkpoint is not None
        if former := former_head(config, folder.path):
            former.keep(folder.path)
        bring_back(folder.path, folder.run_id)
        scene = _set_up(
            grid, config, folder, progress or Progress(), roster, backbones, resumes=resumes
        )
        if is_cell:
            drop_backbone(folder.path)  # hundreds have the same
        else:
            keep_backbone(scene.backbone, folder.path)
        with scene.stages("baselines"):
            without = baselines(scene.task, scene.dataset.num_classes, scene.test)
        outcome = _train(scene, checkpoint, is_cell=is_cell)
        figures = {**summarize(scene.task, scene.backbone, outcome), **without}
        _close(scene, outcome, figures, is_cell=is_cell)
    return folder.path


def _checkpoint(folder: RunFolder, config: Config) -> Checkpoint | None:
    rounds, because = intact_rounds(folder.path)
    checkpoint = load_latest(folder.checkpoints, rounds=rounds, because=because)
    if checkpoint is not None:
        if is_stock(config.strategy.name):
            raise RunError(
                f"{folder.path}: a run with a stock Flower strategy cannot be resumed, "
                "its state is private"
            )
        logger.info("going on after round %d in %s", checkpoint.round_number, folder.path)
    return checkpoint


def _set_up(
    grid: Grid,
    config: Config,
    folder: RunFolder,
    progress: Progress,
    roster: Roster | None,
    backbones: Path | None,
    *,
    resumes: bool,
) -> _Scene:
    """Data, backbone and features, and the clients gathered."""
    stages = _Stages()
    with stages("data"):
        dataset = experiment_dataset(config)
    with stages("backbone"):
        backbone = backbone_of_run(folder.path, config, dataset)
    folder.bind(backbone.fingerprint, dataset.classes, dataset.content_key)
    offered = offer(backbone, config.name, backbones)
    with stages("features"):
        features = experiment_features(config, backbone)
        test = features.select(held_out_positions(config))
    with stages("clients"):
        devices = read_run_json(folder.path).get("simulated") is False
        registry = join(
            grid, config, folder.run_id, dataset, offered, progress, roster,
            devices=devices, resumes=resumes,
        )  # fmt: skip
    folder.bind_clients(simulated=registry.simulated)
    task = Task(config, folder.run_id, backbone.fingerprint, grid, registry)
    return _Scene(folder, stages, dataset, backbone, features.affine, test, task)


def _train(scene: _Scene, checkpoint: Checkpoint | None, *, is_cell: bool) -> Outcome:
    """All rounds, and what the clients make of the last head."""
    task, backbone, folder = scene.task, scene.backbone, scene.folder
    engine = make_engine(task, scene.affine, backbone.spec.feature_zero_point)
    classes = scene.dataset.classes
    start = checkpoint.head if checkpoint else first_head(folder.path, backbone, classes)
    if checkpoint is None or checkpoint.round_number < task.config.train.rounds:
        folder.reopen()
    with scene.stages("rounds"):
        head, rounds, counters = run_rounds(
            task, engine, start, scene.test, folder, checkpoint, is_cell=is_cell
        )
    if not counters["accepted"]:
        raise RunError(f"no round of {rounds} had enough valid updates: nothing to export")
    HEAD.write(folder.head, {"weight": head.weight, "bias": head.bias})
    with scene.stages("evaluation"):
        figures = ask_clients(task, head, engine.personal)
        if task.registry.simulated:
            write_clients(folder.clients, task, scene.dataset, figures)
    return Outcome(head, evaluate(head, scene.test), rounds, counters, figures)


def _close(scene: _Scene, outcome: Outcome, figures: Mapping[str, Any], *, is_cell: bool) -> None:
    """Write what the run has come to, and export the model.

    Raises:
        RunError: the model could not be exported; the head and all figures are kept.
    """
    folder, task, stages = scene.folder, scene.task, scene.stages

    def write(exported: ExportReport | None) -> None:
        seconds = stages.seconds | figures["seconds"]
        own = {} if is_cell else of_export(exported, folder.model)
        own |= {"seconds": seconds, "run": str(folder.path)}
        SUMMARY.write(folder.summary, {**figures, **own})

    write(None)  # whatever becomes of the model, what was trained has its figures
    if task.registry.simulated:
        put_away(folder.path, folder.run_id, keep=not is_cell)
    if is_cell:
        return
    task.registry.accounts.write(folder.devices)
    with stages("export"), _advised(folder):
        trained = trained_model(task.config, scene.backbone, outcome.head, scene.test)
        exported = export(trained, "model", folder.model)
    write(exported)


@contextmanager
def _advised(folder: RunFolder) -> Iterator[None]:
    """Say of an export that fails what is there, and which command writes something."""
    command = f"fedhead export {shlex.quote(str(folder.path))}"
    earlier = f" ({folder.model.name} there is of an earlier head)" if folder.model.exists() else ""
    safe = f"head and figures are safe{earlier}"
    try:
        yield
    except ExportError as exc:
        raise RunError(
            f"{folder.model}: {exc}; {safe}; this writes the head for devices that have the "
            f"backbone: {command} --target head"
        ) from exc
    except FedheadError as exc:
        raise RunError(f"{folder.model}: {exc}; {safe}; mend that, then {command}") from exc
    except OSError as exc:
        raise RunError(
            f"{exc.filename or folder.model}: {exc.strerror or exc}; {safe}; mend that, then "
            f"{command}"
        ) from exc
