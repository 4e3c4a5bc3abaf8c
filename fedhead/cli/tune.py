"""The command that searches for settings: ``fedhead tune``.

Typer takes a command's options as its parameters, so they are more than seven.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedhead.cli.terminal import (
    ExperimentArgument,
    JsonFlag,
    SetOption,
    configured,
    near,
    print_all,
    print_error,
)

if TYPE_CHECKING:
    from simulations.tune import Tuned

__all__ = ["tune"]

SpaceOption = Annotated[
    Path | None,
    typer.Option(
        metavar="SPACE.toml",
        help="What to search; by default learning rate, local epochs, batch size, momentum and "
        "the strategy's own numbers.",
    ),
]
TrialsOption = Annotated[
    int, typer.Option(min=1, help="How many runs, those before an interruption included.")
]
ValidationOption = Annotated[
    float, typer.Option(min=0.01, max=0.9, help="Of the training images, to judge by.")
]
OutOption = Annotated[Path | None, typer.Option(help="Folder; by default runs/NAME-tune.")]


def tune(
    experiment: ExperimentArgument,
    space: SpaceOption = None,
    trials: TrialsOption = 30,
    validation_fraction: ValidationOption = 0.2,
    set_: SetOption = None,
    out: OutOption = None,
    json_: JsonFlag = False,
) -> None:
    """Search for the settings that do best on held-out training images.

    Runs that do worse than others end early. The same command goes on after an interruption; more
    trials make the search longer.
    """
    from simulations.tune import space_of
    from simulations.tune import tune as search

    elsewhere = {"out": "--out", "data.validation-fraction": "--validation-fraction"}
    base = configured(experiment, set_, elsewhere=elsewhere)
    searched = space_of(space, base)
    folder = (out or Path("runs") / f"{base.name}-tune").resolve()
    try:
        tuned = search(
            base, searched, folder, trials=trials, validation_fraction=validation_fraction
        )
    except KeyboardInterrupt:
        print_error("interrupted; the same command goes on")
        raise typer.Exit(130) from None
    if json_:
        print(json.dumps(_json(tuned)))
    else:
        _print(tuned)


def _json(tuned: Tuned) -> dict[str, object]:
    return {
        "best": {**tuned.best.row, "values": tuned.best.values},
        "own": {**tuned.own.row, "values": tuned.own.values},
        "trials": len(tuned.trials),
        "edges": dict(tuned.edges),
        "file": str(tuned.file),
    }


def _print(tuned: Tuned) -> None:
    """The first settings and the best, side by side, and how sure that is."""
    best, own = tuned.best, tuned.own
    table = Table(box=None)
    for heading in ("", "experiment", "best", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("trial", "0", str(best.number))
    figures = {
        "validation accuracy": "accuracy",
        "standard error": "standard_error",
        "validation loss": "loss",
    }
    for words, name in figures.items():
        first = "failed" if own.state == "failed" else f"{own.row[name]:.4f}"
        table.add_row(words, first, f"{best.row[name]:.4f}")
    for key in dict.fromkeys([*own.values, *best.values]):
        edge = "at its range's end" if key in tuned.edges else ""
        table.add_row(key, _shown(own.values.get(key)), _shown(best.values.get(key)), edge)
    states = [trial.state for trial in tuned.trials]
    lines = [
        f"{len(states)} trials: {states.count('finished')} finished, {states.count('pruned')} "
        f"ended early, {states.count('failed')} failed; judged on {best.examples} training images"
    ]
    if best.number == 0:
        lines.append("No trial did better than the experiment's own settings.")
    elif not tuned.is_sure:
        lines.append("The difference is within a standard error: it may be chance.")
    for key, end in tuned.edges.items():
        lines.append(f"{key}: the best value lies at the end {_shown(end)} of its range; widen it.")
    print_all([table, *lines, f"next: fedhead run {near(str(tuned.file))}"], highlight=False)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
