"""Runs a comparison: a sweep for each strategy's best settings, then the cells."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.errors import RunError
from common.files import write_atomic
from common.keys import flat
from common.progress import track
from server.record.runfolder import SUMMARY
from simulations.compare.cells import Cell, ComparisonSpec
from simulations.compare.packing import Packing
from simulations.compare.pool import run_cells
from simulations.deploy.processes import alone
from simulations.report.labels import (
    hyperparameters,
    is_setting,
    partition_label,
    strategy_label,
)
from simulations.report.leaderboard_csv import csv_text
from simulations.report.packing import compared_keys, packing_columns, packing_labels

__all__ = ["Chosen", "run_comparison"]

logger = logging.getLogger("fedhead")

Best = Mapping[tuple[str, str, Packing], tuple[str, ...]]  # by strategy and partition


@dataclass(frozen=True)
class Chosen:
    """A finished comparison.

    Attributes:
        runs: run folders of its cells, each at the settings that were chosen for it.
        failed: cells that could not run, each with the reason.
    """

    runs: tuple[Path, ...]
    failed: tuple[tuple[Cell, str], ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each reason: which cells have no figures because of it."""
        cells: dict[str, list[str]] = {}
        for cell, reason in self.failed:
            strategy = " · ".join((cell.strategy, *cell.packing.words))
            name = ", ".join(filter(None, (strategy, cell.partition, f"seed {cell.seed}")))
            cells.setdefault(reason, []).append(name)
        return tuple(f"Could not run: {'; '.join(n)}: {reason}" for reason, n in cells.items())


def run_comparison(comparison: ComparisonSpec, folder: Path, *, jobs: int) -> Chosen:
    """Run all that is missing; a comparison that was cut off goes on.

    Args:
        comparison: what to run.
        folder: gets sweep/ and cells/, with a run folder for each cell, and sweep.csv.
        jobs: processes.

    Raises:
        RunError: no cell could run, a process died, or another process compares there.
        FedheadError: the data or the backbone cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Cells that were cut off begin again: another process's must not look like them.
    with alone(folder, "fedhead compare"):
        return _run_all(comparison, folder, jobs)


def _run_all(comparison: ComparisonSpec, folder: Path, jobs: int) -> Chosen:
    for note in comparison.notes:
        logger.info(note)
    _warm(comparison)
    best = _sweep(comparison, folder, jobs)
    cells = [
        comparison.cell(spec, partition, seed, best[spec.text, partition[0], packing], packing)
        for partition in comparison.partitions
        for seed in comparison.seeds
        for spec, packing in comparison.pairs
    ]
    failed = _run(cells, folder / "cells", jobs, "comparing")
    broken = {cell.key for cell, _ in failed}
    runs = [folder / "cells" / cell.key for cell in cells if cell.key not in broken]
    if not runs:
        raise RunError(f"none of {len(cells)} runs could be made: {failed[0][1]}")
    return Chosen(tuple(runs), tuple(failed))


def _warm(comparison: ComparisonSpec) -> None:
    """Make backbones and their features once, before several processes ask for them."""
    from common.experiment import experiment_dataset, experiment_features
    from server.export.run_model import prepare

    for packing in dict.fromkeys(replace(packing, codec="") for packing in comparison.packings):
        base = comparison.prepared(packing)
        experiment_features(base, prepare(base, experiment_dataset(base)))


def _run(cells: Sequence[Cell], folder: Path, jobs: int, what: str) -> list[tuple[Cell, str]]:
    """Run cells; those that failed, in the cells' order."""
    logger.info("%s: %d runs in %s", what, len(cells), folder)
    # A process keeps one backbone: cells that share it run one after the other.
    places = {key: i for i, key in enumerate(dict.fromkeys(map(_features_of, cells)))}
    neighbours = sorted(cells, key=lambda cell: places[_features_of(cell)])
    done = track(run_cells(neighbours, folder, jobs), what, len(cells))
    failed = {cell.key: problem for cell, problem in done if problem}
    for problem, count in Counter(failed.values()).items():
        logger.warning("%s: %d of %d runs failed: %s", what, count, len(cells), problem)
    return [(cell, failed[cell.key]) for cell in cells if cell.key in failed]


def _features_of(cell: Cell) -> tuple[str, str]:
    """What decides a cell's features: a projection, or a budget by whose rule there is one."""
    return cell.packing.projection, cell.packing.epsilon


def _sweep(comparison: ComparisonSpec, folder: Path, jobs: int) -> Best:
    """For each strategy, packing and partition, the settings that do best on held-out images."""
    swept = {
        (spec.text, partition[0], packing): [
            comparison.sweep_cell(spec, partition, settings, packing)
            for settings in comparison.sweeps[spec.text]
        ]
        for partition in comparison.partitions
        for spec, packing in comparison.pairs
    }
    best = {key: cells[0].settings for key, cells in swept.items()}
    several = {key: cells for key, cells in swept.items() if len(cells) > 1}
    if not several:
        return best
    cells = [cell for group in several.values() for cell in group]
    _run(cells, folder / "sweep", jobs, "sweeping")
    rows = []
    specs = {spec.text: spec for spec in comparison.strategies}
    for key, group in several.items():
        scores = [_score(folder / "sweep" / cell.key) for cell in group]
        chosen = max(range(len(group)), key=lambda i: scores[i])
        best[key] = group[chosen].settings
        name = ", ".join(filter(None, (" · ".join((key[0], *key[2].words)), key[1])))
        tried = [cell.settings for cell in group]
        for edge in at_an_edge(best[key], tried, specs[key[0]].bounds):
            logger.info("%s: best value lies at the sweep's edge: %s", name, edge)
        rows += [
            _labels(cell, comparison) | _figures(score) | {"best": str(i == chosen).lower()}
            for i, (cell, score) in enumerate(zip(group, scores, strict=True))
        ]
    write_atomic(folder / "sweep.csv", csv_text(rows).encode())
    return best


def _labels(cell: Cell, comparison: ComparisonSpec) -> dict[str, str]:
    """What names a row, as in curves.csv."""
    values = flat(cell.config.model_dump(by_alias=True))
    swept = comparison.swept
    own = {key: value for key, value in values.items() if key in swept or not is_setting(key)}
    asked = [(one.codec, one.projection, one.epsilon) for one in comparison.packings]
    return {
        "strategy": strategy_label(values),
        **packing_columns(packing_labels(values), compared_keys(asked)),
        "partition": partition_label(values),
        "hyperparameters": hyperparameters(own, swept=swept),
    }


def at_an_edge(
    best: Sequence[str],
    tried: Iterable[Sequence[str]],
    bounds: Callable[[str], Collection[float]],
) -> list[str]:
    """Numbers among the best settings beyond which nothing was tried, with what was.

    Of two values each is an edge, and beyond a key's own bound nothing can be tried: both go
    without saying.

    Args:
        best: the settings that were chosen, "key=value" each.
        tried: all that were tried.
        bounds: the smallest and largest values that a key can have.

    >>> tried = [["mu=0"], ["mu=0.1"], ["mu=1"]]
    >>> at_an_edge(["mu=1"], tried, lambda key: {0.0}), at_an_edge(["mu=0"], tried, lambda key: {0})
    (['mu=1 (tried 0 to 1)'], [])
    """
    edges = []
    for setting, column in zip(best, zip(*tried, strict=True), strict=True):
        key, _, value = setting.partition("=")
        with suppress(ValueError):  # what is no number has no edge
            values = sorted({float(other.partition("=")[2]) for other in column})
            is_edge = len(values) > 2 and float(value) in (values[0], values[-1])
            if is_edge and float(value) not in bounds(key):
                name = key.removeprefix("train.").removeprefix("strategy.args.")
                edges.append(f"{name}={value} (tried {values[0]:g} to {values[-1]:g})")
    return edges


def _score(path: Path) -> tuple[float, float]:
    """Accuracy, then minus loss, of a finished sweep's run; the worst for one that failed."""
    try:
        summary = SUMMARY.read(path / "summary.json")
    except OSError:
        return (-1.0, -np.inf)
    return summary["accuracy"], -summary["loss"]


def _figures(score: tuple[float, float]) -> dict[str, str]:
    failed = score[0] < 0
    return {
        "validation-accuracy": "failed" if failed else f"{score[0]:.4f}",
        "validation-loss": "" if failed else f"{-score[1]:.4f}",
    }
