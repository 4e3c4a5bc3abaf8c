"""The ServerApp: one run from its configuration to the exported model."""

from __future__ import annotations

import logging
import shlex
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
from common.experiment import (
    experiment_dataset,
    experiment_features,
    run_config,
)
from common.log import start_log
from common.privacy.words import NOT_PRIVATE
from common.progress import stage
from common.types import Affine
from server.baselines import baselines
from server.export.exporters import export
from server.export.run_model import backbone_of_run, drop_backbone, keep_backbone, trained_model
from server.export.runtime_cards import ExportReport
from server.record.checkpoint import Checkpoint, load_latest
from server.record.client_memory import bring_back, put_away
from server.record.events import event_log
from server.record.lease import follow
from server.record.progress import OnRound, Progress
from server.record.runfolder import (
    HEAD,
    SUMMARY,
    RunFolder,
    free_folder,
    intact_rounds,
    read_run_json,
)
from server.record.stages import Stages
from server.record.trackers import check_trackers, tracked
from server.round.algorithm import Run
from server.round.backbone_offer import offer
from server.round.build import check_strategy, make_algorithm
from server.round.calibration import calibrated
from server.round.client_figures import ask_clients, write_clients
from server.round.first_head import first_head, former_head
from server.round.join import check_listed, join, make_registry
from server.round.judge import Judge
from server.round.learning_rate import with_learning_rate
from server.round.loop import run_rounds
from server.round.private_terms import guarded
from server.round.roster import Roster
from server.round.stock import is_stock
from server.round.unreadable import survive_unreadable_replies
from server.summary import Outcome, of_export, summarize

logger = logging.getLogger("fedhead")

app = ServerApp()

_UNPROTECTED = "not private: single images may show in updates and model; see docs/privacy.md"


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
        with watched(address) as progress:
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
def watched(health: str, on_round: OnRound = lambda _: None) -> Iterator[Progress]:
    """What a run tells how it stands.

    Args:
        health: HOST:PORT where health checks are answered meanwhile; empty for none.
        on_round: is told of each round.
    """
    if not health:
        yield Progress(on_round=on_round)
        return
    from server.record.health import health_service

    with health_service(health, on_round) as progress:
        logger.info("answering health checks on %s", health)
        yield progress


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is there before the first round."""

    folder: RunFolder
    stages: Stages
    dataset: Dataset
    backbone: FrozenBackbone
    affine: Affine
    judge: Judge
    run: Run


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
            trackers, no log, no checkpoints; one that was cut off begins again.
        progress: is told how the run stands.
        roster: the devices of the deployment that it runs on; None: it runs on none.
        backbones: folder of signed ones, for devices that take no others.

    Raises:
        FedheadError: as one clear line; finished rounds stay in the run folder.
    """
    check_strategy(config)
    if not is_cell:
        check_trackers(config.tracking)
    progress = progress or Progress()
    folder = RunFolder(free_folder(config), config)
    log = nullcontext() if is_cell else event_log(folder.events)
    with folder.at_work(), log, stage(folder.path.name):
        checkpoint = _checkpoint(folder, config)
        if former := former_head(config, folder.path):
            former.keep(folder.path)
        bring_back(folder.path, folder.run_id)
        scene = _set_up(grid, config, folder, progress, roster, backbones, resumes=bool(checkpoint))
        if is_cell:
            drop_backbone(folder.path)  # hundreds have the same
        else:
            keep_backbone(scene.backbone, folder.path)
        with scene.stages("baselines"):
            without = baselines(scene.run, scene.dataset.num_classes, scene.judge.test)
        with nullcontext() if is_cell else tracked(folder, scene.run.config, checkpoint, progress):
            outcome = _train(scene, checkpoint, is_cell=is_cell)
            figures = summarize(scene.run, scene.backbone, outcome, scene.dataset.classes) | without
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
    stages = Stages()
    with stages("data"):
        dataset = experiment_dataset(config)
    with stages("backbone"):
        backbone = backbone_of_run(folder.path, config, dataset)
    folder.bind(backbone.fingerprint, dataset.classes, dataset.content_key)
    offered = offer(backbone, config.name, backbones)
    with stages("features"):
        features = experiment_features(config, backbone)
        judge = Judge.of(config, features)
    with stages("clients", "waiting for clients"):
        devices = read_run_json(folder.path).get("simulated") is False
        check_listed(config, roster, resumes=resumes)
        registry = make_registry(grid, config, folder.run_id, dataset, offered, progress, roster)
        join(registry, config, dataset, devices=devices, resumes=resumes)
    folder.bind_clients(simulated=registry.simulated)
    config = with_learning_rate(config, folder, features)
    config, guard = guarded(config, folder, features, registry)
    run = Run(config, folder.run_id, backbone.fingerprint, grid, registry, guard)
    return _Scene(folder, stages, dataset, backbone, features.affine, judge, run)


def _train(scene: _Scene, checkpoint: Checkpoint | None, *, is_cell: bool) -> Outcome:
    """All rounds, and what the clients make of the last head."""
    run, backbone, folder = scene.run, scene.backbone, scene.folder
    algorithm = make_algorithm(run, scene.affine, backbone.spec.zero_points)
    classes = scene.dataset.classes
    start = checkpoint.head if checkpoint else first_head(folder.path, backbone, classes)
    if checkpoint is None or checkpoint.round_number < run.config.train.rounds:
        folder.reopen()
    with scene.stages("rounds"):
        head, rounds, counters = run_rounds(
            run, algorithm, start, scene.judge, folder, checkpoint, is_cell=is_cell
        )
    if not counters["accepted"]:
        raise RunError(f"no round of {rounds} gave a new head: nothing to export, the log says why")
    HEAD.write(folder.head, {"weight": head.weight, "bias": head.bias})
    with scene.stages("evaluation"):
        leverage = counters.get("ridge-leverage", 0.0)
        figures = ask_clients(run, head, algorithm.personal, scene.affine, leverage)
        calibration = calibrated(run, figures, counters, head, scene.judge.test)
        if run.registry.simulated and figures.asked:
            write_clients(folder.clients, run, scene.dataset, figures)
    return Outcome(head, scene.judge.evaluate(head), rounds, counters, figures, calibration)


def _close(scene: _Scene, outcome: Outcome, figures: Mapping[str, Any], *, is_cell: bool) -> None:
    """Write what the run has come to, and export the model.

    Raises:
        RunError: the model could not be exported; the head and all figures are kept.
    """
    folder, run, stages = scene.folder, scene.run, scene.stages

    def write(exported: ExportReport | None) -> None:
        own = {} if is_cell else of_export(exported, folder.model)
        own |= {"seconds": stages.seconds | figures["seconds"], "run": str(folder.path)}
        SUMMARY.write(folder.summary, {**figures, **own})

    write(None)  # whatever becomes of the model, what was trained has its figures
    if run.registry.simulated:
        put_away(folder.path, folder.run_id, keep=not is_cell)
    if is_cell:
        return
    run.registry.accounts.write(folder.devices)
    with stages("export"), _advised(folder):
        parts = run.config, scene.backbone, outcome.head, scene.judge.test, outcome.calibration
        told = figures["privacy"]["sentence"] if figures["privacy"] else NOT_PRIVATE
        exported = export(trained_model(*parts, told), "model", folder.model)
    write(exported)
    if not (run.registry.simulated or run.config.privacy.active):
        logger.info("%s", _UNPROTECTED)


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
