"""The commands that compare runs: ``fedhead compare`` and ``fedhead report``.

Typer takes a command's options as its parameters, so they are more than seven.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from common.errors import ConfigError
from fedhead.api.experiments import experiment_file
from fedhead.cli.terminal import JsonFlag, SetOption, configured, near, print_error

if TYPE_CHECKING:
    from simulations.compare.cells import ComparisonSpec
    from simulations.report import Comparison

__all__ = ["SOME_FAILED", "comparisons"]

SOME_FAILED = 3
"""Exit code of a comparison that some runs are missing from; all others are in its report."""

comparisons = typer.Typer()

BaseArgument = Annotated[
    Path,
    typer.Argument(
        help="Experiment file (TOML) that all runs vary, or the name of a shipped one.",
        callback=experiment_file,
    ),
]
StrategiesOption = Annotated[
    str,
    typer.Option(
        help="Names or module:function, with +gram or +fed3r behind them; all: every strategy."
    ),
]
PartitionsOption = Annotated[
    str, typer.Option(help="For example iid,dirichlet:0.1; by default the experiment's.")
]
CodecsOption = Annotated[
    str,
    typer.Option(
        help="Of what clients send, for example none,drive; by default the experiment's. Each "
        "strategy is compared with those that it tolerates."
    ),
]
ProjectionsOption = Annotated[
    str,
    typer.Option(
        help="Directions that features are projected to, for example off,auto,255; by default "
        "the experiment's."
    ),
]
EpsilonsOption = Annotated[
    str,
    typer.Option(
        help="Budgets of differential privacy, for example 1,4,inf; by default the experiment's. "
        "With a number rounds, batches and projection are as privacy's rule has them, unless "
        "--set says otherwise; inf: the experiment as it is, without privacy."
    ),
]
SeedsOption = Annotated[str, typer.Option(help="Seeds; one run for each.")]
SweepOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=V1,V2,...",
        help="Try settings on held-out training images: lr, an argument of strategies, "
        "STRATEGY.ARGUMENT, or any key.",
    ),
]
ValidationOption = Annotated[
    float, typer.Option(min=0.01, max=0.9, help="Share of the training images to sweep on.")
]
TargetOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Accuracy to count rounds and bytes to; by default 2 points below the centralized "
        "head.",
    ),
]
OutOption = Annotated[Path | None, typer.Option(help="Folder; by default runs/NAME.")]
JobsOption = Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")]


@comparisons.command()
def compare(
    experiment: BaseArgument,
    strategies: StrategiesOption = "all",
    partitions: PartitionsOption = "",
    codecs: CodecsOption = "",
    projections: ProjectionsOption = "",
    epsilons: EpsilonsOption = "",
    seeds: SeedsOption = "0,1,2",
    sweep: SweepOption = None,
    validation_fraction: ValidationOption = 0.2,
    set_: SetOption = None,
    target: TargetOption = None,
    out: OutOption = None,
    jobs: JobsOption = 0,
    json_: JsonFlag = False,
) -> None:
    """Compare strategies: the same data, clients and seeds, each at its best settings.

    With --codecs or --projections the page begins with accuracy against bytes, with --epsilons
    with accuracy against privacy.
    Tables list partitions and strategies as they are asked for; of all strategies, the best first.
    What has finished is kept: the same command goes on after an interruption, and a longer one
    runs only what is new.
    """
    from common.config import parse_overrides
    from common.toml_model import read_toml
    from simulations.compare.packing import meant_for_privacy
    from simulations.compare.parse import find_modules, parse_comparison
    from simulations.report import check_installed

    check_installed()  # before the long work
    elsewhere = {"out": "--out", "strategy.name": "--strategies"}
    elsewhere |= {"data.validation-fraction": "--validation-fraction"} if sweep else {}
    elsewhere |= {"partition.scheme": "--partitions"} if partitions else {}
    elsewhere |= {"codec.up": "--codecs"} if codecs else {}
    elsewhere |= {"backbone.projection": "--projections"} if projections else {}
    elsewhere |= {"privacy.epsilon": "--epsilons"} if epsilons else {}
    without = {"privacy": {"epsilon": math.inf}} if epsilons else {}
    base = configured(experiment, set_, without, elsewhere=elsewhere)
    find_modules(strategies, [experiment.parent, Path.cwd()])
    comparison = parse_comparison(
        base,
        strategies=strategies,
        partitions=partitions,
        seeds=seeds,
        sweeps=sweep or [],
        validation_fraction=validation_fraction,
        codecs=codecs,
        projections=projections,
        epsilons=epsilons,
        given=meant_for_privacy(read_toml(experiment), parse_overrides(set_ or [])),
    )
    _check_arguments(set_ or [], comparison)
    folder, as_asked = (out or Path("runs") / base.name).resolve(), strategies != "all"
    _compare(comparison, folder, jobs, target, json_, as_asked=as_asked)


def _check_arguments(items: Sequence[str], comparison: ComparisonSpec) -> None:
    """Refuse arguments of the experiment's strategy where that is not compared."""
    given = any(item.strip().startswith("strategy.args.") for item in items)
    own = comparison.base.strategy.name
    if given and own not in {spec.name for spec in comparison.strategies}:
        raise ConfigError(
            [f"--set strategy.args.* is for {own}; --sweep STRATEGY.ARGUMENT=... "
             "sets an argument of another"]
        )  # fmt: skip


def _compare(
    comparison: ComparisonSpec,
    folder: Path,
    jobs: int,
    target: float | None,
    json_: bool,
    *,
    as_asked: bool,
) -> None:
    from common.machine import cores
    from simulations.compare.compare import run_comparison
    from simulations.report import load_runs

    try:
        chosen = run_comparison(comparison, folder, jobs=jobs or cores())
    except KeyboardInterrupt:
        print_error("interrupted; the same command goes on")
        raise typer.Exit(130) from None
    loaded = load_runs(list(chosen.runs), as_asked=as_asked, swept=comparison.swept)
    notes = (*loaded.notes, *comparison.notes, *chosen.notes)
    _report(replace(loaded, notes=notes), folder, target, json_)
    if chosen.failed:
        for note in chosen.notes:
            print_error(note)
        raise typer.Exit(SOME_FAILED)


@comparisons.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")
    ],
    target: TargetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; by default RUN, or ./report for several.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Compare finished runs: a table here, one page, CSV and Markdown in a folder.

    Every round of every run is a row of curves.csv.
    """
    from simulations.report import load_runs

    folder = out or (runs[0] if len(runs) == 1 else Path("report"))
    _report(load_runs(runs), folder, target, json_)


def _report(comparison: Comparison, folder: Path, target: float | None, json_: bool) -> None:
    from simulations.report import leaderboard, terminal_table, write_report

    files = write_report(comparison, folder, target=target)
    if json_:
        rows = [asdict(row) for row in leaderboard(comparison, target)]
        print(json.dumps({"report": str(files.page.resolve()), "leaderboard": rows}))
    else:
        Console(markup=False).print(terminal_table(comparison, target))
        print(near(str(files.page.resolve())))
