"""The command line: ``fedhead run | resume | report | export | predict | info | ...``."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.errors import ConfigError, FedheadError
from simulations.cli_delivery import delivery, publish
from simulations.cli_deploy import deployments
from simulations.cli_measure import measures
from simulations.terminal import JsonFlag, near

if TYPE_CHECKING:
    from server.export import ExportReport

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

cli = typer.Typer(
    name="fedhead",
    help="Federated learning of the head of a frozen int8 MobileNet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

bench = typer.Typer(no_args_is_help=True, help="Measure fedhead beside its rivals.")
cli.add_typer(bench, name="bench")
cli.add_typer(measures)
cli.add_typer(deployments)
cli.add_typer(delivery, name="delivery")

TargetOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Accuracy to count rounds and bytes to; without it, 2 points below the centralized "
        "head.",
    ),
]


class Engine(StrEnum):
    """What carries messages between server and nodes."""

    IN_PROCESS = "in-process"
    FLOWER = "flower"


DeploymentOption = Annotated[
    Path | None,
    typer.Option(help="Folder of fedhead deploy: on its real devices, instead of an engine here."),
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
    overwrite: Annotated[bool, typer.Option(help="Replace an existing run folder.")] = False,
    engine: EngineOption = Engine.IN_PROCESS,
    deployment: DeploymentOption = None,
    json_: JsonFlag = False,
) -> None:
    """Run an experiment and export its model."""
    from common.config import load_config, parse_overrides
    from simulations.flower import check_ray
    from simulations.run import new_run

    if engine is Engine.FLOWER:
        check_ray()  # before there is a run folder

    overrides = parse_overrides(set_ or [])
    if out is not None:
        overrides["out"] = str(out)
    config = load_config(experiment, overrides)
    path = new_run(config, overwrite=overwrite)
    try:
        _run(path, engine, deployment, json_)
    except FedheadError:
        # A run that never began, for its data or partition, leaves nothing in the way.
        if not (path / "metrics.jsonl").exists() and not (path / "flower.log").exists():
            shutil.rmtree(path, ignore_errors=True)
        raise


@cli.command()
def resume(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    engine: EngineOption = Engine.IN_PROCESS,
    deployment: DeploymentOption = None,
    json_: JsonFlag = False,
) -> None:
    """Go on with a run from its last finished round."""
    from simulations.run import open_run

    open_run(run_folder)
    _run(run_folder.resolve(), engine, deployment, json_)


def _run(path: Path, engine: Engine, deployment: Path | None, json_: bool) -> None:
    from simulations.deploy.launch import run_deployed
    from simulations.flower import run_flower
    from simulations.run import num_nodes, open_run, run_in_process

    try:
        if deployment is not None:
            summary = run_deployed(path, deployment)
        elif engine is Engine.FLOWER:
            summary = run_flower(path, num_supernodes=num_nodes(open_run(path)))
        else:
            summary = run_in_process(path)
    except KeyboardInterrupt:
        option = f" --engine {engine}" if engine is Engine.FLOWER else ""
        option = f" --deployment {deployment}" if deployment is not None else option
        _error(f"interrupted; go on with: fedhead resume {path}{option}")
        raise typer.Exit(130) from None
    if json_:
        print(json.dumps(summary))
    else:
        _closing_table(summary)


class Target(StrEnum):
    """What a run can be exported as."""

    MODEL = "model"
    DEVICE = "device"
    LITE = "lite"
    ONNX = "onnx"
    EXECUTORCH = "executorch"
    HEAD = "head"


@cli.command()
def compare(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (TOML) that all runs vary.")],
    strategies: Annotated[
        str,
        typer.Option(
            help="Names or module:function, +gram or +fed3r behind them; all: every one there is."
        ),
    ] = "all",
    partitions: Annotated[
        str,
        typer.Option(help="iid,dirichlet:0.1,pathological:2; without it, the experiment's."),
    ] = "",
    seeds: Annotated[str, typer.Option(help="One run each.")] = "0,1,2",
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2,...",
            help="Try settings on held-out training images: lr, an argument of strategies, "
            "STRATEGY.ARGUMENT, or any key.",
        ),
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Of the training images, to sweep on.")
    ] = 0.2,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    target: TargetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder; without it, runs/NAME.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
    json_: JsonFlag = False,
) -> None:
    """Compare strategies: the same data, clients and seeds, each at its best settings.

    What has finished is kept: the same command goes on after an interruption, and a longer one
    runs only what is new.
    """
    from common.config import load_config, parse_overrides
    from common.machine import cores
    from simulations.compare.compare import run_grid
    from simulations.compare.parse import parse_grid
    from simulations.report import check_installed

    check_installed()  # before the long work
    base = load_config(experiment, parse_overrides(set_ or []))
    grid = parse_grid(
        base,
        strategies=strategies,
        partitions=partitions,
        seeds=seeds,
        sweeps=sweep or [],
        validation_fraction=validation_fraction,
    )
    folder = (out or Path("runs") / base.name).resolve()
    try:
        chosen = run_grid(grid, folder, jobs=jobs or cores())
    except KeyboardInterrupt:
        _error("interrupted; the same command goes on")
        raise typer.Exit(130) from None
    _report(list(chosen.runs), folder, target, json_)
    if chosen.failed:
        _error(f"{len(chosen.failed)} runs failed, the first: {chosen.failed[0][1]}")
        raise typer.Exit(1)


@cli.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")
    ],
    target: TargetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; without it, RUN, or ./report for several.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Compare finished runs: a table here, one page, CSV and Markdown in a folder."""
    _report(runs, out or (runs[0] if len(runs) == 1 else Path("report")), target, json_)


def _report(runs: list[Path], folder: Path, target: float | None, json_: bool) -> None:
    from simulations.report import leaderboard, load_runs, terminal_table, write_report

    comparison = load_runs(runs)
    files = write_report(comparison, folder, target=target)
    if json_:
        rows = [asdict(row) for row in leaderboard(comparison, target)]
        print(json.dumps({"report": str(files.page.resolve()), "leaderboard": rows}))
    else:
        Console().print(terminal_table(comparison, target))
        print(near(str(files.page.resolve())))


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
    json_: JsonFlag = False,
) -> None:
    """Export a run's head again, an unfinished run's last checkpoint included.

    Each file first runs in a process of its own and is compared with the head.
    """
    from simulations.run import export_run

    targets = list(dict.fromkeys(target or [Target.MODEL]))
    if bytecode is not None and Target.LITE not in targets:
        raise ConfigError(["--bytecode is for --target lite"])
    reports = export_run(run_folder.resolve(), targets, out, bytecode=bytecode)
    if json_:
        files = [{**asdict(report), "path": str(report.path)} for report in reports]
        print(json.dumps({"files": files}))
    else:
        _export_table(reports)


cli.command()(publish)


@cli.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model.pt that fedhead exported.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    json_: JsonFlag = False,
) -> None:
    """Print class and probability of each image."""
    from simulations.predict import predict as predict_images

    predictions = predict_images(model, images)
    if json_:
        rows = [
            {"image": str(p.path), "class": p.class_name, "probability": p.probability}
            for p in predictions
        ]
        print(json.dumps(rows))
        return
    for p in predictions:
        print(f"{p.path}  {p.class_name}  {p.probability:.3f}")


@cli.command()
def partition(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (TOML).")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Picture file.")] = Path("partition.png"),
) -> None:
    """Draw who holds what, without training anything."""
    from common.config import load_config, parse_overrides
    from common.experiment import client_shares, experiment_dataset
    from common.partition import plot_partition

    config = load_config(experiment, parse_overrides(set_ or []))
    dataset, shares = experiment_dataset(config), client_shares(config)
    plot_partition([dataset.labels[share.train] for share in shares], dataset.classes, out)
    sizes = sorted(len(share.train) for share in shares)
    print(
        f"{len(shares)} clients, {sum(sizes)} training examples: "
        f"{sizes[0]} to {sizes[-1]} each, median {sizes[len(sizes) // 2]}"
    )
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
        args = ", ".join(f"{key}={value}" for key, value in arguments(factory).items())
        print(f"{name}({args})")
        text = " ".join((factory.__doc__ or "").split("\n\n")[0].split())
        paper = re.search(r"arXiv \d+\.\d+", factory.__doc__ or "")
        if paper and paper[0] not in text:
            text += f" {paper[0]}."
        print(textwrap.fill(text, 78, initial_indent="    ", subsequent_indent="    "))


@cli.command()
def info(json_: JsonFlag = False) -> None:
    """Versions, engines and caches."""
    from simulations.info import collect

    figures = collect()
    if json_:
        print(json.dumps(figures))
    else:
        _rows("fedhead", figures)


def _rows(title: str, values: Mapping[str, Any]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in values.items():
        table.add_row(key.replace("_", " "), _text(value))
    Console().print(table)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "-" if value is None else str(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _spread(s: Mapping[str, Any], name: str) -> str:
    return " / ".join(_percent(s[f"{name}_{part}"]) for part in ("mean", "p10", "min"))


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.2f} MB"


def _export_table(reports: Sequence[ExportReport]) -> None:
    """Sizes and parity of exported files, on real test images."""
    table = Table(title=near(str(reports[0].path.parent)), title_justify="left")
    for name in ("file", "MB", "accuracy", "same\nclass", "logits\noff", "features"):
        table.add_column(name, justify="left" if name in ("file", "features") else "right")
    # Of random weights an accuracy says nothing; how far files differ does.
    is_random = reports[0].weights == "random"
    for r in reports:
        off = r.max_logit_difference
        table.add_row(
            r.path.name,
            f"{r.model_bytes / 1e6:.2f}",
            "-" if is_random else _percent(r.accuracy),
            _percent(r.argmax_agreement),
            "-" if off is None else f"{off:.2g}",
            "bit-equal" if r.features_equal else "-",
        )
    Console().print(table)
    for count in dict.fromkeys(r.images for r in reports if r.images is not None):
        names = ", ".join(r.path.name for r in reports if r.images == count)
        print(f"on {count:,} test images: {names}")
    if is_random:
        print("accuracy: not measured, the backbone's weights are random")
        return
    bound = [r for r in reports if r.default_engine is not None]
    for r in bound:
        accuracy = _percent(r.default_engine_accuracy)
        print(f"{r.path.name}: {accuracy} with torch's default engine here, {r.default_engine}")
    if bound:
        print('set torch.backends.quantized.engine = "qnnpack" before loading')


def _closing_table(s: Mapping[str, Any]) -> None:
    saved = s["full_model_uplink_bytes"] / max(1, s["uplink_bytes"])
    hidden = ("rounds_total", "training")
    rounds = f"{s['rounds']}"
    if lost := s["rounds"] - s["accepted_rounds"]:
        rounds += f" ({lost} lost: too few valid updates)"
    seconds = {key: f"{value:.1f}" for key, value in s["seconds"].items() if key not in hidden}
    seconds["rounds"] += f" (training {s['seconds']['training']:.1f})"
    personal = {}
    if s["personal_accuracy_mean"] is not None:
        personal["the same with personal heads"] = _spread(s, "personal_accuracy")
    rows = {
        f"accuracy, {s['strategy'].rpartition(':')[2]}": _percent(s["accuracy"]),
        "accuracy, centralized SGD": _percent(s["centralized_accuracy"]),
        "accuracy, ridge": _percent(s["ridge_accuracy"]),
        "accuracy of model.pt": _percent(s["model_accuracy"]),
        "clients' own: mean / p10 / worst": _spread(s, "client_accuracy"),
        **personal,
        "rounds": rounds,
        "clients": str(s["clients"]),
        "updates valid / refused / failed": (
            f"{s['valid_updates']} / {s['rejected_updates']} / {s['failed_updates']}"
        ),
        "uplink": f"{_megabytes(s['uplink_bytes'])} (whole model: "
        f"{_megabytes(s['full_model_uplink_bytes'])}, {saved:.0f}x)",
        "downlink": _megabytes(s["downlink_bytes"]),
        "seconds": ", ".join(f"{key} {value}" for key, value in seconds.items()),
        "model.pt": _megabytes(s["model_bytes"]),
        "run folder": near(s["run"]),
    }
    if s["malicious_clients"]:
        rows["malicious clients"] = f"{s['malicious_clients']} ({s['attack']})"
    if s["simulated_seconds"]:
        rows["on phones (simulated)"] = (
            f"{s['simulated_seconds']:,.1f} s, {s['dropped_updates']} never answered, "
            f"{s['late_updates']} too late"
        )
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, value)
    Console().print(table)


def _error(message: str) -> None:
    print(f"fedhead: {message}", file=sys.stderr)


def _start_log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("fedhead")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    # Flower's strategies log each step; the round's own line says it.
    logging.getLogger("flwr").setLevel(logging.WARNING)


def main() -> None:
    """Entry point: one clear line for what a user can mend, a traceback only for a bug."""
    _start_log()
    sys.path.append(str(Path.cwd()))  # where strategies of a user's own lie; after fedhead's rooms
    try:
        cli()
    except FedheadError as exc:
        _error(str(exc))
        sys.exit(1)
    except OSError as exc:
        _error(f"{exc.filename or ''}: {exc.strerror or exc}".removeprefix(": "))
        sys.exit(1)
