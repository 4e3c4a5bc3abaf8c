"""The commands of runs: ``fedhead run | resume | export``.

Typer takes a command's options as its parameters, so they are more than seven.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from fedhead.cli.run_tables import closing_table, export_table
from fedhead.cli.terminal import ExperimentArgument, JsonFlag, SetOption, print_error
from simulations.engines.carrier import Carrier, Engine

__all__ = ["Target", "runs"]

runs = typer.Typer()


class Target(StrEnum):
    """The formats that a run can be exported to."""

    MODEL = "model"
    DEVICE = "device"
    LITE = "lite"
    ONNX = "onnx"
    EXECUTORCH = "executorch"
    DEVICE_PTE = "device-pte"
    HEAD = "head"


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
OutOption = Annotated[Path | None, typer.Option(help="Run folder; by default runs/NAME.")]
OverwriteFlag = Annotated[
    bool,
    typer.Option(help="Replace the run in that folder as soon as the new one has a round."),
]
InitFromOption = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="Start from this run's head, and keep its backbone."),
]
EngineOption = Annotated[
    Engine, typer.Option(help="Run in this process, or in Flower's simulation on Ray.")
]
DeploymentOption = Annotated[
    Path | None,
    typer.Option(help="Folder of fedhead deploy; train on its real devices instead of here."),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(help="Signing key, if the deployment's devices take signed backbones only."),
]
HealthOption = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", help="Answer gRPC health checks at this address meanwhile."),
]
ChangeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key: train.rounds for more rounds, data.source if the data moved.",
    ),
]
TargetOption = Annotated[
    list[Target] | None,
    typer.Option(help="Format to write; may be given several times. By default model."),
]
FileOption = Annotated[
    Path | None,
    typer.Option(help="File, or folder for several targets; by default the run folder."),
]
BytecodeOption = Annotated[
    int | None, typer.Option(help="Bytecode version of the lite file, for an older runtime.")
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Where the data is now: data.source, data.root."
    ),
]


@runs.command()
def run(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    out: OutOption = None,
    overwrite: OverwriteFlag = False,
    init_from: InitFromOption = None,
    engine: EngineOption = Engine.IN_PROCESS,
    deployment: DeploymentOption = None,
    key: KeyOption = None,
    health: HealthOption = "",
    json_: JsonFlag = False,
) -> None:
    """Run an experiment and export its model."""
    from common.config import changed, load_config
    from simulations.run import beginning

    config = load_config(experiment, {"out": str(out)} if out is not None else {}, set_ or [])
    if init_from is not None:
        config = changed(config, {"strategy": {"init-from": str(init_from)}})
    carrier = Carrier(engine, deployment, key, health)
    carrier.check_ready()
    with beginning(config, overwrite=overwrite) as path:
        _run(path, carrier, json_)


@runs.command()
def resume(
    run_folder: RunArgument,
    set_: ChangeOption = None,
    engine: EngineOption = Engine.IN_PROCESS,
    deployment: DeploymentOption = None,
    key: KeyOption = None,
    health: HealthOption = "",
    json_: JsonFlag = False,
) -> None:
    """Continue a run from its last finished round, even if its folder was moved."""
    from common.config import parse_overrides
    from simulations.resume import change_run, needs_data
    from simulations.run import open_run

    config = open_run(run_folder)
    carrier = Carrier(engine, deployment, key, health)
    carrier.check_suits(run_folder)
    carrier.check_ready()
    if set_:
        change_run(run_folder, config, parse_overrides(set_))
    with needs_data(run_folder, config, "resume"):
        _run(run_folder.resolve(), carrier, json_)


def _run(path: Path, carrier: Carrier, json_: bool) -> None:
    from server.record.replaced import replaced_of

    try:
        summary = carrier.run(path)
    except KeyboardInterrupt:
        if replaced_of(path).exists():  # the old run comes back, so there is nothing to resume
            print_error(f"interrupted before the first round of {path}")
        else:
            print_error(f"interrupted; continue with: {carrier.resume_command(path)}")
        raise typer.Exit(130) from None
    if json_:
        print(json.dumps(summary))
    else:
        closing_table(summary)


@runs.command()
def export(
    run_folder: RunArgument,
    target: TargetOption = None,
    out: FileOption = None,
    bytecode: BytecodeOption = None,
    set_: DataOption = None,
    json_: JsonFlag = False,
) -> None:
    """Export a run's model again; from its last checkpoint if the run is unfinished.

    Each file is run in a process of its own, and its answers are compared with
    those of the head.
    """
    from common.config import parse_overrides
    from simulations.resume import needs_data
    from simulations.run import export_run, open_run

    targets = list(dict.fromkeys(target or [Target.MODEL]))
    if bytecode is not None and Target.LITE not in targets:
        raise ConfigError(["--bytecode is for --target lite"])
    overrides, path = parse_overrides(set_ or []), run_folder.resolve()
    with needs_data(run_folder, open_run(path), "export"):
        reports = export_run(path, targets, out, bytecode=bytecode, overrides=overrides)
    if json_:
        print(json.dumps({"files": [report.as_json() for report in reports]}))
    else:
        export_table(reports)
