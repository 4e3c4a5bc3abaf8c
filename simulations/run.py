"""One experiment in this process, or through Flower's own engine; resume and export again."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import Config
from common.errors import DamagedError, RunError
from common.experiment import (
    client_shares,
    experiment_dataset,
    held_out_positions,
    run_config,
)
from common.files import is_empty
from common.types import Head
from server.checkpoint import load_latest
from server.runfolder import (
    HEAD,
    SUMMARY,
    RunFolder,
    free_folder,
    read_config,
    resume_command,
)

if TYPE_CHECKING:
    from server.export import ExportReport
    from server.trained import TrainedModel

__all__ = [
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


def new_run(config: Config, *, overwrite: bool) -> Path:
    """Make the run folder and write the configuration into it.

    Raises:
        RunError: the folder that ``out`` names holds something and must not be overwritten.
    """
    from server.build import check_strategy  # imports torch, which a wrong key need not wait for

    check_strategy(config)  # before anything is removed
    path = free_folder(config)
    if not is_empty(path):
        if not overwrite:
            raise RunError(
                f"{path} is not empty: fedhead resume {path}, or fedhead run ... --overwrite"
            )
        if not (path / "run.json").exists():
            raise RunError(f"{path} is not empty and holds no run: not overwritten")
        shutil.rmtree(path)
    RunFolder(path, config)
    return path


def open_run(path: Path) -> Config:
    """The configuration of an existing run.

    Raises:
        RunError: there is no run.
        DamagedError: its configuration was changed since it began.
    """
    file = path / "config.toml"
    if not file.exists():
        raise RunError(f"{path} holds no run (config.toml is missing)")
    config = read_config(path)
    if Path(config.out).resolve() != path.resolve():
        raise RunError(f"{path} was moved here from {config.out}: change out in its config.toml")
    return config


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
    shares = client_shares(config)  # a partition that cannot be made is noticed here
    from server.stock import is_stock

    return len(shares) if is_stock(config.strategy.name) else config.simulation.nodes


def run_in_process(path: Path, *, health: str = "") -> dict[str, Any]:
    """Run, or go on with, the experiment whose configuration lies in a run folder.

    Args:
        path: the run folder.
        health: HOST:PORT where health checks are answered meanwhile; empty for none.

    Returns:
        The run's closing figures.
    """
    from flwr.app import Context, RecordDict

    from client.app import app as client_app
    from server.app import app as server_app
    from simulations.grid import InProcessGrid

    values = {**run_values(path), "health": health}
    grid = InProcessGrid(client_app, num_nodes(run_config(values)), values)
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(values)
    )
    server_app(grid, context)
    return read_summary(path)


def run_cell(path: Path, toml: str) -> None:
    """Run a cell of a comparison from the beginning: the same figures, without a model.

    Args:
        path: its run folder, which does not exist yet.
        toml: its configuration.
    """
    from client.app import app as client_app
    from server.app import run_experiment
    from server.build import check_strategy
    from simulations.grid import InProcessGrid

    config = Config.model_validate({**tomllib.loads(toml), "out": str(path)})
    check_strategy(config)
    RunFolder(path, config)
    values = run_values(path)
    grid = InProcessGrid(client_app, num_nodes(config), values)
    run_experiment(grid, run_config(values), is_cell=True)


def run_values(path: Path) -> dict[str, str]:
    """Flower's run config for the experiment in a run folder."""
    return {"experiment": str(path / "config.toml"), "overrides": ""}


def export_run(
    path: Path, targets: Sequence[str], out: Path | None, *, bytecode: int | None = None
) -> list[ExportReport]:
    """Export a run's head again: the final one, or the last checkpoint's of an unfinished run.

    Args:
        path: run folder.
        targets: keys of ``server.export.FILES``.
        out: file of a single target, folder of several; None for the run folder.
        bytecode: version of the lite file's bytecode.
    """
    from server.export import FILES, check_installed, export

    for target in targets:
        check_installed(target)
    trained = trained_run(path)
    files = {target: (out or path) / FILES[target] for target in targets}
    if out is not None and len(files) == 1:
        files = dict.fromkeys(targets, out)
    return [export(trained, target, file, bytecode=bytecode) for target, file in files.items()]


def trained_run(path: Path) -> TrainedModel:
    """A run's last head with its backbone and test images.

    Raises:
        RunError: there is no run, no finished round, or its data are not what they were.
    """
    from common.experiment import experiment_features
    from server.model import prepare, trained_model

    config = open_run(path)
    head = _last_head(path)
    dataset = experiment_dataset(config)
    backbone = prepare(config, dataset)
    test = experiment_features(config, backbone).select(held_out_positions(config))
    RunFolder(path, config).bind(backbone.fingerprint, dataset.classes)
    return trained_model(config, backbone, head, test)


def _last_head(path: Path) -> Head:
    file = path / "head.safetensors"
    if file.exists():
        try:
            arrays = HEAD.read(file)
        except DamagedError as exc:
            raise RunError(f"{exc}: {resume_command(path)} writes it again") from exc
        return Head(arrays["weight"], arrays["bias"])
    checkpoint = load_latest(path / "checkpoint")
    if checkpoint is None:
        raise RunError(f"{path} has no finished round yet")
    return checkpoint.head
