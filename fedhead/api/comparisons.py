"""Comparisons: strategies side by side, on the same data, clients and seeds.

``compare`` takes more than seven arguments: they are the options of ``fedhead compare``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.words import byte_text
from fedhead.api.bar import bar
from fedhead.api.experiments import (
    Experiment,
    Overrides,
    configuration,
    module_folders,
    plain,
    written,
)
from fedhead.api.frames import Table, table
from fedhead.api.runs import Run
from fedhead.api.session import mendable, session

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedhead.api.plots import Curve
    from simulations.report import Comparison as Loaded
    from simulations.report.comparison import Entry

__all__ = ["Comparison", "compare"]

_VALIDATION_FRACTION = 0.2  # of the training images, to sweep on: as of fedhead compare


@dataclass(frozen=True)
class Comparison:
    """Finished runs to compare, by their folders.

    Attributes:
        path: the comparison's folder, absolute.
        runs: each strategy with each seed in each partition, at the settings chosen for it.
        failed: what could not run, each with the reason.
        as_asked: whether tables keep the order of the runs; otherwise the best come first.
        swept: keys whose values were tried, always among the hyperparameters.
        left_out: strategies with codecs, projections or budgets that do not go together, with the
            reasons.
    """

    path: Path
    runs: tuple[Run, ...]
    failed: Mapping[str, str]
    as_asked: bool = False
    swept: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """The leaderboard; means over seeds.

        Strategies stand in the order in which they were asked for; of "all" the best comes first.

        A ``pandas.DataFrame`` where pandas is installed, else a list of dicts. The columns of
        leaderboard.csv, unrounded, and "near-best" and "training-seconds". A strategy's own metrics
        are columns "strategy/NAME", their last values. Where codecs or projections are compared,
        there are columns "codec", "projection", "uplink-bytes-per-update" and "on-pareto-front";
        where privacy budgets are, a column "epsilon".
        """
        from simulations.report import leaderboard, leaderboard_rows

        return table(leaderboard_rows(leaderboard(self._loaded())))

    @property
    def curves(self) -> Table:
        """Every round of every run in the long form, for a plot of one's own.

        The same as the comparison's curves.csv. Columns: run, setting, strategy, hyperparameters,
        partition, seed, round, and the round's metrics.
        """
        from simulations.report import curve_rows

        return table(curve_rows(self._loaded()))

    @property
    def report(self) -> Path:
        """The page that shows all of it, report.html."""
        return self.path / "report.html"

    def plot(self) -> Figure:
        """Accuracy by round: a plot for each setting, a curve for each strategy.

        The curve is the mean over seeds, the band reaches from the lowest to the highest.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from fedhead.api.plots import draw_curves

        return draw_curves(
            {
                setting.label: [_curve(entry) for entry in setting.entries]
                for setting in self._loaded().settings
            }
        )

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        left_out = f", {len(self.left_out)} left out" if self.left_out else ""
        return f"<fedhead.Comparison {self.path}: {len(self.runs)} runs{failed}{left_out}>"

    def _repr_html_(self) -> str:
        from fedhead.api.display import block, percent, rows_html
        from simulations.report import leaderboard

        several = len(self._loaded().settings) > 1
        rows = [
            {
                **({"setting": row.setting} if several else {}),
                "strategy": row.label,
                "settings": row.hyperparameters,
                "accuracy": percent(row.accuracy),
                "± over seeds": "-" if row.accuracy_sd is None else f"{100 * row.accuracy_sd:.1f}",
                "worst client": percent(row.worst_client),
                "uplink": byte_text(row.uplink_bytes),
            }
            for row in leaderboard(self._loaded())
        ]
        return block(
            f"fedhead comparison {self.path.name}",
            f"{len(self.runs)} runs in {self.path}",
            {f"failed: {name}": reason for name, reason in self.failed.items()},
            rows_html(rows),
        )

    def _loaded(self) -> Loaded:
        from simulations.report import load_runs

        paths = [run.path for run in self.runs]
        return load_runs(paths, as_asked=self.as_asked, swept=self.swept)


def _curve(entry: Entry) -> Curve:
    import numpy as np

    from fedhead.api.plots import Curve

    rounds = min(len(run.accuracy) for run in entry.runs)
    accuracy = np.stack([run.accuracy[:rounds] for run in entry.runs])
    band = (accuracy.min(0), accuracy.max(0)) if len(entry.runs) > 1 else ()
    return Curve(entry.label, range(1, rounds + 1), accuracy.mean(0), band)


def compare(
    experiment: Experiment = "mnist5k",
    overrides: Overrides | None = None,
    *,
    strategies: str | Sequence[str] = "all",
    partitions: str | Sequence[str] = (),
    codecs: str | Sequence[str] = (),
    projections: str | Sequence[str | int] = (),
    epsilons: str | Sequence[float] = (),
    seeds: Sequence[int] = (0, 1, 2),
    sweep: Mapping[str, Sequence[object]] | None = None,
    out: str | Path | None = None,
    jobs: int = 0,
    progress: bool = True,
) -> Comparison:
    """Compare strategies: the same data, clients and seeds, each at its best settings.

    Example::

        compared = fedhead.compare(
            "mnist5k",
            {"train.rounds": 20},
            strategies=["fedavg", "fedprox", "mine:signs"],
            partitions=["iid", "dirichlet:0.1"],
            sweep={"lr": [0.01, 0.05, 0.2], "fedprox.mu": [0.01, 0.1]},
        )
        compared.table

    What has finished is kept: the same call goes on after an interrupt, and one of more runs only
    what is new. Runs go to processes of their own, which do not run the caller's script.

    Args:
        experiment: what all runs have in common, as of :func:`fedhead.run`.
        overrides: likewise.
        strategies: names or "module:function", "+gram" or "+fed3r" behind them; "all": every one
            there is.
        partitions: such as "iid" and "dirichlet:0.1"; empty: the experiment's own.
        codecs: such as "none" and "drive", of what clients send; empty: the experiment's own. Each
            is compared with the strategies that tolerate it.
        projections: such as "off" and 255, of the features; empty: the experiment's own.
        epsilons: budgets of differential privacy, such as 1, 4 and ``math.inf``; empty: the
            experiment's own. With a finite one rounds, batches and projection are as privacy's rule
            has them, unless ``overrides`` set them.
        seeds: one run each.
        sweep: values to try on held-out training images, by what they are of: "lr", an argument of
            strategies, "STRATEGY.ARGUMENT", or any key.
        out: folder; None: runs/NAME.
        jobs: processes; 0: one for each core.
        progress: show a bar in a notebook or on a terminal.

    Raises:
        ConfigError: all problems at once.
        RunError: no run could be made, or another process compares there.
        MissingExtraError: jinja2 or plotly is not installed, which draw the report.
    """
    from common.machine import cores
    from simulations.compare.compare import run_comparison
    from simulations.compare.packing import meant_for_privacy
    from simulations.compare.parse import find_modules, parse_comparison
    from simulations.report import check_installed, load_runs, write_report

    check_installed()  # before the long work
    several = {
        "strategies": strategies, "partitions": partitions, "codecs": codecs,
        "projections": projections, "epsilons": epsilons, "seeds": seeds,
    }  # fmt: skip
    _check(several, sweep, jobs)
    with session(), bar(wanted=progress) as shown:
        without = {"privacy.epsilon": math.inf} if _words(epsilons) else {}
        base = configuration(experiment, {**plain(overrides or {}), **without})
        find_modules(_words(strategies), module_folders(experiment))
        with _as_arguments():
            wanted = parse_comparison(
                base,
                strategies=_words(strategies),
                partitions=_words(partitions),
                seeds=_words(seeds),
                sweeps=[f"{key}={_words(values)}" for key, values in (sweep or {}).items()],
                validation_fraction=_VALIDATION_FRACTION,
                codecs=_words(codecs),
                projections=_words(projections),
                epsilons=_words(epsilons),
                given=meant_for_privacy(written(experiment), plain(overrides or {})),
            )
        folder = Path(out).expanduser() if out is not None else Path("runs") / base.name
        shown.show("preparing", 0, 0)
        with mendable():
            chosen = run_comparison(wanted, folder.resolve(), jobs=jobs or cores())
        as_asked = _words(strategies) != "all"
        loaded = load_runs(list(chosen.runs), as_asked=as_asked, swept=wanted.swept)
        notes = (*loaded.notes, *wanted.notes, *chosen.notes)
        write_report(replace(loaded, notes=notes), folder.resolve())
        done = len(chosen.runs)
        shown.show(f"{done} runs compared", done, done)
    failed = {cell.key: problem for cell, problem in chosen.failed}
    runs = tuple(map(Run, chosen.runs))
    return Comparison(folder.resolve(), runs, failed, as_asked, wanted.swept, wanted.notes)


def _check(several: Mapping[str, object], sweep: object, jobs: object) -> None:
    """Refuse arguments that are of another kind, all at once."""
    problems = [
        f"{name}={value!r} must be a list"
        for name, value in several.items()
        if not isinstance(value, Sequence)
    ]
    if sweep is not None and not isinstance(sweep, Mapping):
        problems.append(f"sweep={sweep!r} must be a mapping of keys to lists of values")
    elif any(not isinstance(values, str | Sequence) for values in (sweep or {}).values()):
        problems.append(f"sweep={sweep!r} must have a list of values for each key")
    if type(jobs) is not int or jobs < 0:
        problems.append(f"jobs={jobs!r} must be a whole number, 0 for one on each core")
    if problems:
        raise ConfigError(problems)


def _words(values: str | Sequence[object]) -> str:
    return values if isinstance(values, str) else ",".join(map(str, values))


@contextmanager
def _as_arguments() -> Iterator[None]:
    """Name arguments in errors as a caller has them, not as options of the command line."""
    try:
        yield
    except ConfigError as exc:
        problems = [problem.removeprefix("--") for problem in exc.problems]
        raise ConfigError(problems, exc.where) from exc
