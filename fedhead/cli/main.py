"""The command line: ``fedhead run | resume | report | export | predict | info | ...``."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import textwrap
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError, FedheadError, MissingExtraError, RunError
from common.log import OneLine
from common.progress import stage
from fedhead.cli.cache import cache
from fedhead.cli.compare import comparisons
from fedhead.cli.delivery import delivery
from fedhead.cli.deploy import deployments
from fedhead.cli.fleet import fleet
from fedhead.cli.keys import keys
from fedhead.cli.measure import measures
from fedhead.cli.predict import predict
from fedhead.cli.publish import publish
from fedhead.cli.tables import closing_table, export_table, rows_table
from fedhead.cli.terminal import JsonFlag, print_error, read_overrides

__all__ = ["main"]

# Before flwr, ray or torch is imported anywhere.
for _name, _value in {
    # They would call home.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # gRPC's own lines about a handshake that failed; fedhead's error says it in one.
    "GRPC_VERBOSITY": "NONE",
    # Threads that spin while they wait make torch many times slower on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    os.environ.setdefault(_name, _value)

# They run until they are stopped; all others say at least every ten seconds what they do.
_ENDLESS = ("serve", "device", "delivery serve")

# The extra `server`, which `simulation` holds.
_NOT_ON_DEVICES = ("psutil", "tensorboardX", "torchvision")

cli = typer.Typer(
    name="fedhead",
    help="Federated learning of the head of a frozen int8 MobileNet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

bench = typer.Typer(no_args_is_help=True, help="Measure fedhead beside its rivals.")
cli.add_typer(bench, name="bench")
cli.add_typer(comparisons)
cli.add_typer(measures)
cli.add_typer(deployments)
cli.add_typer(delivery, name="delivery")
cli.add_typer(fleet, name="fleet")
cli.add_typer(keys, name="keys")


class Engine(StrEnum):
    """What carries messages between server and nodes."""

    IN_PROCESS = "in-process"
    FLOWER = "flower"


DeploymentOption = Annotated[
    Path | None,
    typer.Option(help="Folder of fedhead deploy: on its real devices, instead of an engine here."),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(help="Signing key, for a deployment whose devices take signed backbones only."),
]
HealthOption = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Answer gRPC health checks here meanwhile.")
]
EngineOption = Annotated[
    Engine, typer.Option(help="This process, or Flower's own simulation on Ray.")
]


@cli.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (TOML).")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; without it, runs/NAME.")] = None,
    overwrite: Annotated[
        bool,
        typer.Option(help="Replace the run in that folder, once the new one has a round."),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Start from this run's head, and keep its backbone."),
    ] = None,
    engine: EngineOption = Engine.IN_PROCESS,
    deployment: DeploymentOption = None,
    key: KeyOption = None,
    health: HealthOption = "",
    json_: JsonFlag = False,
) -> None:
    """Run an experiment and export its model."""
    from common.config import changed, load_config, parse_overrides
    from simulations.deploy.launch import check_served
    from simulations.engines.flower import check_ray
    from simulations.run import beginning

    if engine is Engine.FLOWER:
        check_ray()  # before there is a run folder

    overrides = parse_overrides(set_ or [])
    if out is not None:
        overrides["out"] = str(out)
    config = load_config(experiment, overrides)
    if init_from is not None:
        config = changed(config, {"strategy": {"init-from": str(init_from)}})
    if deployment is not None:
        check_served(deployment)  # likewise
    with beginning(config, overwrite=overwrite) as path:
        _run(path, engine, deployment, key, health, json_)


@cli.command()
def resume(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Go on with another value: train.rounds for longer, data.source where data moved.",
        ),
    ] = None,
    engine: EngineOption = Engine.IN_PROCESS,
    deployment: DeploymentOption = None,
    key: KeyOption = None,
    health: HealthOption = "",
    json_: JsonFlag = False,
) -> None:
    """Go on with a run from its last finished round, also where its folder was moved."""
    from common.config import parse_overrides
    from server.record.runfolder import read_run_json, resume_command
    from simulations.deploy.launch import check_served
    from simulations.going_on import change_run, needs_data
    from simulations.run import open_run

    config = open_run(run_folder)
    if deployment is not None:
        check_served(deployment)
    elif read_run_json(run_folder).get("simulated") is False:
        command = resume_command(run_folder)
        raise RunError(f"{run_folder} began with real devices: {command}")
    if set_:
        change_run(run_folder, config, parse_overrides(set_))
    with needs_data(run_folder, config, "resume"):
        _run(run_folder.resolve(), engine, deployment, key, health, json_)


def _run(
    path: Path,
    engine: Engine,
    deployment: Path | None,
    key: Path | None,
    health: str,
    json_: bool,
) -> None:
    from server.record.replaced import replaced_of
    from simulations.deploy.launch import run_deployed
    from simulations.deploy.processes import terminable
    from simulations.deploy.settings import is_address
    from simulations.engines.flower import run_flower
    from simulations.run import num_nodes, open_run, run_in_process

    if deployment is not None and engine is not Engine.IN_PROCESS:
        raise ConfigError([f"--deployment and --engine {engine} exclude each other"])
    if key is not None and deployment is None:
        raise ConfigError(["--key is for --deployment: nothing else asks for signatures"])
    if health and not is_address(health):
        raise ConfigError([f"--health {health!r} must be HOST:PORT, for example 127.0.0.1:9096"])
    try:
        with terminable():
            if deployment is not None:
                summary = run_deployed(path, deployment, health=health, key=key)
            elif engine is Engine.FLOWER:
                nodes = num_nodes(open_run(path))
                summary = run_flower(path, num_supernodes=nodes, health=health)
            else:
                summary = run_in_process(path, health=health)
    except KeyboardInterrupt:
        if replaced_of(path).exists():  # which comes back
            print_error(f"interrupted before the first round of {path}")
            raise typer.Exit(130) from None
        option = f" --engine {engine}" if engine is Engine.FLOWER else ""
        if deployment is not None:
            option = f" --deployment {shlex.quote(str(deployment))}"
        command = f"fedhead resume {shlex.quote(str(path))}{option}"
        print_error(f"interrupted; go on with: {command}")
        raise typer.Exit(130) from None
    if json_:
        print(json.dumps(summary))
    else:
        closing_table(summary)


class Target(StrEnum):
    """What a run can be exported as."""

    MODEL = "model"
    DEVICE = "device"
    LITE = "lite"
    ONNX = "onnx"
    EXECUTORCH = "executorch"
    HEAD = "head"


@cli.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    target: Annotated[
        list[Target] | None,
        typer.Option(help="What to write; may be given several times. Without it, model."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File, or folder for several targets; without it, the run folder."),
    ] = None,
    bytecode: Annotated[
        int | None, typer.Option(help="Bytecode version of the lite file, for older runtimes.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As of resume: data.source, data.root."),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Export a run's head again, an unfinished run's last checkpoint included.

    Each file first runs in a process of its own and is compared with the head.
    """
    from common.config import parse_overrides
    from simulations.going_on import needs_data
    from simulations.run import export_run, open_run

    targets = list(dict.fromkeys(target or [Target.MODEL]))
    if bytecode is not None and Target.LITE not in targets:
        raise ConfigError(["--bytecode is for --target lite"])
    overrides, run = parse_overrides(set_ or []), run_folder.resolve()
    with needs_data(run_folder, open_run(run), "export"):
        reports = export_run(run, targets, out, bytecode=bytecode, overrides=overrides)
    if json_:
        print(json.dumps({"files": [report.as_json() for report in reports]}))
    else:
        export_table(reports)


cli.command()(publish)
cli.command()(cache)


cli.command()(predict)


@cli.command()
def partition(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (TOML).")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Picture file.")] = Path("partition.png"),
) -> None:
    """Draw who holds what, without training anything."""
    from common.config import load_config
    from common.experiment import client_shares, experiment_dataset
    from common.partition import plot_partition
    from common.pictures import check_drawable
    from common.unheld import unheld

    check_drawable(out, purpose="drawing the partition")  # before data are read
    reads = ("data.*", "partition.*", "round.max-examples-per-client", "seed")
    config = load_config(experiment, read_overrides(set_, reads=reads))
    dataset, shares = experiment_dataset(config), client_shares(config)
    plot_partition([dataset.labels[share.train] for share in shares], dataset.classes, out)
    sizes = sorted(len(share.train) for share in shares)
    print(
        f"{len(shares)} clients, {sum(sizes)} training examples: "
        f"{sizes[0]} to {sizes[-1]} each, median {sizes[len(sizes) // 2]}"
    )
    for line in unheld(config):
        print(line)
    print(out)


@bench.command("simulation")
def bench_simulation(
    sizes: Annotated[
        str, typer.Option(help="Clients, beside Flower's simulation and pfl-research.")
    ] = "100,1000",
    scaling: Annotated[str, typer.Option(help="Clients, fedhead alone.")] = "1000,10000,100000",
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, after a warm-up.")] = 5,
    json_: JsonFlag = False,
) -> None:
    """Time a round of local training, here and in two other frameworks; some minutes.

    100,000 clients need 6.4 GB of disk in the cache folder while they last.
    """
    from simulations.bench.simulation import bench_simulation, show, to_json

    measurements = bench_simulation(_counts(sizes), _counts(scaling), rounds=rounds)
    if json_:
        print(json.dumps(to_json(measurements)))
    else:
        show(measurements)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        counts = [0]
    if any(count < 1 for count in counts):
        raise ConfigError([f"{text!r} must be numbers of clients, for example 100,1000"])
    return counts


@cli.command()
def config() -> None:
    """Every key of an experiment file: its default and what it means."""
    from common.config import describe_keys

    section = ""
    for key, default, meaning in describe_keys():
        head, _, name = key.rpartition(".")
        if head != section:
            section = head
            print(f"\n[{section}]")
        indent = " " * 4
        print(f"{name} = {default}")
        if meaning:
            print(textwrap.fill(meaning, 78, initial_indent=indent, subsequent_indent=indent))


@cli.command()
def strategies() -> None:
    """The strategies by name, with their arguments and papers."""
    from server.strategies import STRATEGIES, arguments

    for name, factory in STRATEGIES.items():
        own = arguments(name, factory)
        print(f"{name}({', '.join(f'{one.name}={one.default}' for one in own)})")
        text = " ".join((factory.__doc__ or "").split("\n\n")[0].split())
        paper = re.search(r"arXiv \d+\.\d+", factory.__doc__ or "")
        if paper and paper[0] not in text:
            text += f" {paper[0]}."
        print(textwrap.fill(text, 78, initial_indent="    ", subsequent_indent="    "))
        for one in own:
            print(f"    {one.name}: {one.allowed}")


@cli.command()
def info(json_: JsonFlag = False) -> None:
    """Versions, engines and caches."""
    from fedhead.info import collect

    figures = collect()
    if json_:
        print(json.dumps(figures))
    else:
        rows_table("fedhead", figures)


def _start_log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(message)s"))
    logger = logging.getLogger("fedhead")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    # Flower's strategies log each step; the round's own line says it.
    logging.getLogger("flwr").setLevel(logging.WARNING)


def _command() -> str:
    words = sys.argv[1:3] if sys.argv[1:2] == ["delivery"] else sys.argv[1:2]
    return " ".join(words)


def main() -> None:
    """Entry point: one clear line for what a user can mend, a traceback only for a bug."""
    _start_log()
    sys.path.append(str(Path.cwd()))  # where strategies of a user's own lie; after fedhead's rooms
    try:
        with nullcontext() if _command() in _ENDLESS else stage(f"fedhead {_command()}"):
            cli()
    except FedheadError as exc:
        print_error(str(exc))
        sys.exit(1)
    except ModuleNotFoundError as exc:
        if exc.name not in _NOT_ON_DEVICES:
            raise
        print_error(str(MissingExtraError(exc.name, "simulation", "this command")))
        sys.exit(1)
    except OSError as exc:
        print_error(f"{exc.filename or ''}: {exc.strerror or exc}".removeprefix(": "))
        sys.exit(1)
