"""The commands that compare runs: ``fedhead compare`` and ``fedhead report``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.errors import ConfigError
from fedhead.cli.terminal import JsonFlag, configured, near, print_error

__all__ = ["comparisons"]

comparisons = typer.Typer()

TargetOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Accuracy to count rounds and bytes to; without it, 2 points below the centralized "
        "head.",
    ),
]


@comparisons.command()
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
        typer.Option(help="For example iid,dirichlet:0.1; without it, the experiment's."),
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
    from common.machine import cores
    from simulations.compare.compare import run_grid
    from simulations.compare.parse import parse_grid
    from simulations.deploy.processes import alone
    from simulations.report import check_installed

    check_installed()  # before the long work
    elsewhere = {"out": "--out", "strategy.name": "--strategies"}
    elsewhere |= {"data.validation-fraction": "--validation-fraction"} if sweep else {}
    elsewhere |= {"partition.scheme": "--partitions"} if partitions else {}
    base = configured(experiment, set_, elsewhere=elsewhere)
    grid = parse_grid(
        base,
        strategies=strategies,
        partitions=partitions,
        seeds=seeds,
        sweeps=sweep or [],
        validation_fraction=validation_fraction,
    )
    given = any(item.strip().startswith("strategy.args.") for item in set_ or [])
    if given and base.strategy.name not in {spec.name for spec in grid.strategies}:
        raise ConfigError(
            [f"--set strategy.args.* is for {base.strategy.name}; --sweep STRATEGY.ARGUMENT=... "
             "sets an argument of another"]
        )  # fmt: skip
    folder = (out or Path("runs") / base.name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Cells that were cut off begin again: another process's must not look like them.
        with alone(folder, "fedhead compare"):
            chosen = run_grid(grid, folder, jobs=jobs or cores())
    except KeyboardInterrupt:
        print_error("interrupted; the same command goes on")
        raise typer.Exit(130) from None
    _report(list(chosen.runs), folder, target, json_)
    if chosen.failed:
        print_error(f"{len(chosen.failed)} runs failed, the first: {chosen.failed[0][1]}")
        raise typer.Exit(1)


@comparisons.command()
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
        Console(markup=False).print(terminal_table(comparison, target))
        print(near(str(files.page.resolve())))
