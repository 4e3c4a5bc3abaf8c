"""One experiment's run: begun, opened, run in this process, and exported again."""

from __future__ import annotations

import logging
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import Config
from common.errors import ExportError, FedheadError, RunError
from common.experiment import (
    client_shares,
    experiment_dataset,
    held_out_positions,
    run_config,
)
from common.files import is_empty
from server.record.progress import OnRound
from server.record.replaced import in_place_of, recover
from server.record.runfolder import SUMMARY, RunFolder, free_folder, read_config, resume_command
from simulations.resume import allowed, anchored

if TYPE_CHECKING:
    from server.export.exporters import ExportReport
    from server.export.trained import TrainedModel

__all__ = [
    "beginning",
    "export_run",
    "new_run",
    "num_nodes",
    "open_run",
    "read_summary",
    "run_cell",
    "run_in_process",
    "run_values",
    "trained_run",
]


logger = logging.getLogger("fedhead")


@contextmanager
def beginning(config: Config, *, overwrite: bool) -> Iterator[Path]:
    """A new run's folder, for the time in which it runs.

    Of a run that fails before it has begun nothing stays, and where it was to replace another,
    that one is back.

    Args:
        config: of the run.
        overwrite: replace the run that ``out``, or runs/NAME, holds.

    Raises:
        RunError: the folder holds something that must not be overwritten.
    """
    from server.record.trackers import check_trackers
    from server.round.build import check_strategy

    check_strategy(config)  # a wrong key moves nothing
    check_trackers(config.tracking)
    path = free_folder(config, numbered=not overwrite)
    replaces = overwrite and not is_empty(path)
    if replaces:
        _tell_spent(path)
    with in_place_of(path) if replaces else nullcontext():
        new_run(config.model_copy(update={"out": str(path)}))
        try:
            yield path
        except FedheadError:
            if not (path / "metrics.jsonl").exists() and not (path / "flower.log").exists():
                shutil.rmtree(path, ignore_errors=True)
            raise


def _tell_spent(path: Path) -> None:
    """Warn that the ledger of a run goes with it, and what it had spent does not."""
    from common.privacy.words import figure
    from server.record.privacy import read_privacy

    with suppress(FedheadError):  # what cannot be read can be replaced all the same
        found = read_privacy(path)
        if found and found[0].spent and not found[0].simulated:
            logger.warning(
                "%s has spent epsilon %s: what leaves the new run on the same clients adds to it",
                path, figure(found[0].spent),
            )  # fmt: skip


def new_run(config: Config) -> Path:
    """Make the run folder and write the configuration into it.

    Raises:
        RunError: the folder that ``out`` names holds something.
    """
    # They import torch, which a wrong key need not wait for.
    from server.record.trackers import check_trackers
    from server.round.build import check_strategy
    from server.round.first_head import former_head

    check_strategy(config)
    check_trackers(config.tracking)
    path = free_folder(config)
    if not is_empty(path):
        raise RunError(
            f"{path} is not empty: fedhead resume {shlex.quote(str(path))}, or fedhead run ... "
            "--overwrite"
        )
    config = anchored(config)
    former = former_head(config, path)
    RunFolder(path, config)
    if former:
        former.keep(path)
    return path


def open_run(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of an existing run, wherever its folder lies by now.

    Args:
        path: its folder.
        overrides: keys with other values, of those that may change.

    Raises:
        RunError: there is no run, or a key that may not change.
        DamagedError: its configuration was changed since it began.
    """
    recover(path.resolve())
    file = path / "config.toml"
    if not file.exists():
        raise RunError(f"{path} holds no run (config.toml is missing)")
    config = read_config(path).model_copy(update={"out": str(path.resolve())})
    return allowed(config, overrides, path) if overrides else config


def read_summary(path: Path) -> dict[str, Any]:
    """The closing figures of a finished run.

    Raises:
        RunError: the run has not finished.
        DamagedError: the file has changed since.
    """
    file = path / "summary.json"
    if not file.exists():
        raise RunError(f"{path} has not finished: {resume_command(path)}")
    return SUMMARY.read(file)


def num_nodes(config: Config) -> int:
    """Virtual nodes of a simulation; a stock strategy takes a node for a client."""
    shares = client_shares(config)  # a partition that cannot be made is noticed here, and
    config.train.participants(len(shares))  # clients that are not in it
    from server.round.stock import is_stock

    return len(shares) if is_stock(config.strategy.name) else config.simulation.nodes


def run_in_process(
    path: Path, *, health: str = "", on_round: OnRound = lambda _: None
) -> dict[str, Any]:
    """Run, or go on with, the experiment whose configuration lies in a run folder.

    Args:
        path: the run folder.
        health: HOST:PORT where health checks are answered meanwhile; empty for none.
        on_round: is told of each round.

    Returns:
        The run's closing figures.
    """
    from client.app import app as client_app
    from server.app import run_experiment, watched
    from simulations.engines.in_process import InProcessGrid
    from simulations.report.curves import write_curves

    values = run_values(path)
    config = run_config(values)
    grid = InProcessGrid(client_app, num_nodes(config), values)
    with watched(health, on_round) as progress:
        run_experiment(grid, config, progress=progress)
    write_curves(path)
    return read_summary(path)


def run_cell(path: Path, toml: str, *, on_round: OnRound = lambda _: None) -> None:
    """Run a cell of a comparison from the beginning: the same figures, without a model.

    Args:
        path: its run folder, which does not exist yet.
        toml: its configuration.
        on_round: is told of each round.
    """
    from client.app import app as client_app
    from server.app import run_experiment, watched
    from server.round.build import check_strategy
    from simulations.engines.in_process import InProcessGrid

    config = Config.model_validate({**tomllib.loads(toml), "out": str(path)})
    check_strategy(config)
    RunFolder(path, config)
    values = run_values(path)
    grid = InProcessGrid(client_app, num_nodes(config), values)
    with watched("", on_round) as progress:
        run_experiment(grid, run_config(values), is_cell=True, progress=progress)


def run_values(path: Path) -> dict[str, str]:
    """Flower's run config for the experiment in a run folder."""
    return {"experiment": str(path / "config.toml"), "overrides": ""}


def export_run(
    path: Path,
    targets: Sequence[str],
    out: Path | None,
    *,
    bytecode: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[ExportReport]:
    """Export a run's head again: the final one, or the last checkpoint's of an unfinished run.

    Args:
        path: run folder.
        targets: keys of ``server.export.exporters.FILES``.
        out: file of a single target, folder of several; None for the run folder.
        bytecode: version of the lite file's bytecode.
        overrides: where the run's data lie now, see ``open_run``.

    Raises:
        RunError: some files could not be written; names them and the others.
    """
    from server.export.exporters import FILES, check_installed, export

    for target in targets:
        check_installed(target)
    files = {target: (out or path) / FILES[target] for target in targets}
    if out is not None and len(files) == 1 and not out.is_dir():
        files = dict.fromkeys(targets, out)
    trained = trained_run(path, overrides)
    reports, problems = [], []
    for target, file in files.items():
        try:
            reports.append(export(trained, target, file, bytecode=bytecode))
        except (ExportError, OSError) as exc:
            problems.append(f"{file}: {getattr(exc, 'strerror', None) or exc}")
    if problems:
        written = ", ".join(str(report.path) for report in reports) or "nothing"
        raise RunError(f"{'; '.join(problems)}; written: {written}")
    return reports


def trained_run(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainedModel:
    """A run's last head with its backbone and test images.

    Raises:
        RunError: there is no run, no finished round, or its data are not what they were.
    """
    from common.experiment import experiment_features
    from server.export.run_model import backbone_of_run, trained_model
    from server.record.privacy import privacy_sentence
    from server.round.calibration import kept_calibration
    from server.round.first_head import last_head

    config, head = open_run(path, overrides), last_head(path)
    dataset = experiment_dataset(config)
    backbone = backbone_of_run(path, config, dataset)
    RunFolder(path, open_run(path)).bind(backbone.fingerprint, dataset.classes, dataset.content_key)
    test = experiment_features(config, backbone).select(held_out_positions(config))
    calibration, privacy = kept_calibration(path, head), privacy_sentence(path)
    return trained_model(config, backbone, head, test, calibration, privacy)
