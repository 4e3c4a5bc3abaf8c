"""Measures what a head reaches with nothing set, beside the best of a sweep: docs/heads.md's table.

A script: ``python -m simulations.bench.heads --sources mnist5k,clipart --seeds 0,1,2``. A run whose
summary is in the folder is not made again. The best of a sweep is chosen by the test images
themselves, which flatters it, so the comparison is hard on what nothing is set for.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import Config, load_config, parse_overrides
from common.config.loading import changed
from simulations.run import read_summary, run_cell

__all__ = ["Choice", "choices", "main", "measured", "table"]

_EXPERIMENTS = Path(__file__).parent.parent / "experiments"
_LAMBDAS = (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_ALL = "gap", "compact"


@dataclass(frozen=True)
class Choice:
    """A row of the table.

    Attributes:
        label: names it.
        figure: the key of summary.json that the row shows.
        settings: what is set in each of its runs; the best mean over seeds counts.
    """

    label: str
    figure: str
    settings: tuple[tuple[str, ...], ...]


def choices(features: Sequence[str] = _ALL) -> list[Choice]:
    """All rows, for each kind of features.

    >>> [row.label for row in choices(["gap"])][:2]
    ['fed3r, gap', 'fed3r, gap, best lambda']
    """
    return [row for kind in features for row in _rows(kind)]


def _rows(kind: str) -> Iterator[Choice]:
    backbone = f"backbone.features={kind}"
    once = (backbone, "train.rounds=1", "train.clients-per-round=0")
    closed = (*once, "strategy.name=fed3r")
    rates = tuple((backbone, "strategy.name=fedavg", f"train.lr={lr:g}") for lr in _RATES)
    lambdas = tuple((*closed, f"strategy.args.lam={lam:g}") for lam in _LAMBDAS)
    averaged = ((backbone, "strategy.name=fedavg"),)
    personal = ((*once, "strategy.name=ditto"),)
    yield Choice(f"fed3r, {kind}", "accuracy", (closed,))
    yield Choice(f"fed3r, {kind}, best lambda", "accuracy", lambdas)
    yield Choice(f"fed3r, {kind}, ECE", "ece", (closed,))
    yield Choice(f"fedavg, {kind}", "accuracy", averaged)
    yield Choice(f"fedavg, {kind}, best rate", "accuracy", rates)
    yield Choice(f"fedavg, {kind}, ECE", "ece", averaged)
    yield Choice(f"ditto, {kind}, clients' mean", "personal_accuracy_mean", personal)
    yield Choice(f"ditto, {kind}, its global head", "client_accuracy_mean", personal)
    yield Choice(f"ditto, {kind}, local only", "local_accuracy_mean", personal)


def measured(
    row: Choice, source: str, seeds: Sequence[int], folder: Path, extra: Sequence[str] = ()
) -> float | None:
    """The row's figure for one source: the mean over seeds of its best setting.

    Args:
        row: what to run.
        source: an experiment of this name that fedhead ships, or else mnist5k's on this data set.
        seeds: one run each.
        folder: holds the runs.
        extra: further settings of all runs.

    Returns:
        None: a run's summary does not have the figure.
    """
    means = []
    for settings in row.settings:
        runs = [_summary(source, [*settings, *extra], seed, folder) for seed in seeds]
        values = [run.get(row.figure) for run in runs]
        if not all(isinstance(value, int | float) for value in values):
            return None
        means.append(sum(float(str(value)) for value in values) / len(values))
    return max(means)


def _summary(source: str, settings: Sequence[str], seed: int, folder: Path) -> Mapping[str, object]:
    name = "_".join(item.partition(".")[2].replace("=", "-") for item in settings)
    path = folder / f"{source.replace(':', '-').replace('/', '-')}_{name}_seed-{seed}"
    if not (path / "summary.json").exists():
        if path.exists():
            raise SystemExit(f"{path} is a run that was cut off: remove it")
        config = changed(_base(source), parse_overrides([*settings, f"seed={seed}"]))
        run_cell(path, config.to_toml())
    return read_summary(path)


def _base(source: str) -> Config:
    file = _EXPERIMENTS / f"{source}.toml"
    if file.exists():
        return load_config(file)
    return load_config(_EXPERIMENTS / "mnist5k.toml", parse_overrides([f"data.source={source}"]))


def table(figures: Mapping[str, Sequence[float | None]], sources: Sequence[str]) -> str:
    """Markdown: a line for each row, a column for each source, in per cent.

    >>> print(table({"fed3r": [0.951, None]}, ["mnist5k", "elpv"]))
    | % | mnist5k | elpv |
    |---|---|---|
    | fed3r | 95.1 | - |
    """
    lines = [f"| % | {' | '.join(sources)} |", f"|---|{'---|' * len(sources)}"]
    for label, values in figures.items():
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all rows and print the table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.heads")
    parser.add_argument("--sources", default="mnist5k,digits,clipart,elpv")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--features", default=",".join(_ALL))
    parser.add_argument("--rows", default="", help="only rows whose label begins so")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, for all runs")
    parser.add_argument("--out", type=Path, default=Path("runs/heads"))
    given = parser.parse_args(arguments)
    sources, seeds = given.sources.split(","), [int(seed) for seed in given.seeds.split(",")]
    rows = [row for row in choices(given.features.split(",")) if row.label.startswith(given.rows)]
    figures = {
        row.label: [measured(row, source, seeds, given.out, given.set) for source in sources]
        for row in rows
    }
    print(table(figures, sources))


if __name__ == "__main__":
    main()
