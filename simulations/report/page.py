"""The report as one HTML file that needs nothing else: no network, no server."""

from __future__ import annotations

import base64
import importlib.util
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import MissingExtraError
from simulations.report.budget_figure import budget_lines, budgets
from simulations.report.bytes_figure import kept, traffics
from simulations.report.columns import accuracy_text, percent, shown_columns
from simulations.report.comparison import Comparison, Entry, Setting
from simulations.report.confusion import class_lines, confusions, legend, matrix
from simulations.report.figures import (
    counted_clients,
    figure_data,
    line_styles,
    metric_names,
    yardsticks,
)
from simulations.report.headline import answers, figures_of_run
from simulations.report.labels import number_or_share, text
from simulations.report.leaderboard import Row, best_row, leaderboard, sampling_margin, standard
from simulations.report.leaderboard_tables import overview, rows_by_setting, standard_text
from simulations.report.packing import PACKING_KEYS
from simulations.report.participation import participations
from simulations.report.reproduce import (
    EXPERIMENT_FILE,
    command,
    common_values,
    differences,
    to_toml,
)

__all__ = ["check_installed", "page_html"]


def check_installed() -> None:
    """Find out before the long work starts whether a page can be written.

    Raises:
        MissingExtraError: names what is missing and how to install it.
    """
    for package in ("jinja2", "plotly"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "report", "the report page")


def page_html(comparison: Comparison, target: float | None) -> str:
    """The whole page; the same comparison gives the same text.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
    """
    check_installed()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    by_setting = rows_by_setting(comparison, target)
    common = common_values(comparison.runs)
    version_names = list(dict.fromkeys(n for run in comparison.runs for n in run.summary.versions))
    version_rows = Counter(tuple(run.summary.versions.items()) for run in comparison.runs)
    has_metrics = any(run.metrics for run in comparison.runs)
    has_clients = any(run.clients for run in comparison.runs)
    return environment.get_template("page.html.jinja").render(
        alone=comparison.alone,
        parts=_parts(comparison, metrics=has_metrics, clients=has_clients),
        title=_title(comparison),
        lede=_lede(comparison),
        facts=_facts(comparison, common),
        notes=comparison.notes,
        settings=[
            {
                **_setting(setting, rows, target, common),
                **_budgets(comparison, setting, rows),
                "participation": participations(setting),
                "number": number,
            }
            for number, (setting, rows) in enumerate(by_setting)
        ],
        columns=shown_columns(leaderboard(comparison, target), timed=True),
        as_asked=bool(comparison.asked),
        overview=overview(comparison, by_setting) if len(by_setting) > 1 else [],
        styles=line_styles(comparison),
        has_clients=has_clients,
        metrics=sorted({name for setting in comparison.settings for name in metric_names(setting)}),
        experiment_file=EXPERIMENT_FILE,
        devices=any(run.devices for run in comparison.runs),
        simulated=not all(run.devices for run in comparison.runs),
        common=to_toml(common),
        version_names=version_names or ["versions"],
        version_rows=[(dict(versions), count) for versions, count in version_rows.items()],
        figures=figure_data(comparison, target),
        percent=percent,
        accuracy_text=accuracy_text,
        infinity=math.inf,
        plotly=_plotly(),
    )


def _parts(comparison: Comparison, *, metrics: bool, clients: bool) -> list[tuple[str, str]]:
    """The page's parts in order: the name of each one's template, and its link's text.

    Of one strategy the curve, the matrix and the classes come first: there is nothing to compare.
    Who compares codecs, projections or privacy budgets asks first what accuracy costs.
    """
    alone = comparison.alone
    curve, mistakes = ("curves", "Curve" if alone else "Curves"), ("mistakes", "Mistakes")
    own = [("metrics", "Metrics")] if metrics else []
    fare = [("clients", "Clients")] if clients else []
    if any(run.participation for run in comparison.runs):
        fare.append(("participation", "Participation"))
    held = [("partition", "Partition")] if clients else []
    last = ("reproduce", "Reproduce")
    if alone:
        return [("result", "Result"), curve, mistakes, *own, *fare, *held, last]
    is_told = all(any(run.uplink is not None for run in s.runs) for s in comparison.settings)
    cost = [("privacy", "Privacy")] if comparison.budgeted else []
    cost += [("bytes", "Bytes")] if comparison.packed and is_told else []
    return [*cost, ("leaderboard", "Leaderboard"), curve, *own, *fare, mistakes, *held, last]


def _plotly() -> str:
    """plotly.js, packed: 2 MB instead of 5, which the browser unpacks itself."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(zlib.compress(get_plotlyjs().encode(), 9)).decode()


def _title(comparison: Comparison) -> str:
    sources = dict.fromkeys(text(run.values["data.source"]) for run in comparison.runs)
    labels = comparison.strategies
    what = labels[0] if len(labels) == 1 else f"{len(labels)} strategies"
    if comparison.axes:
        what = _compared(comparison)
    return f"{what} on {' and '.join(sources)}"


_AXES = ("codec", "projection", "privacy budget")


def _compared(comparison: Comparison) -> str:
    """How many strategies, codecs, projections and budgets; of one strategy the name."""
    entries = [entry for setting in comparison.settings for entry in setting.entries]
    strategies = {entry.strategy for entry in entries}
    counts = {
        name: len({labels[i] for labels in {entry.packing for entry in entries}})
        for i, (key, name) in enumerate(zip(PACKING_KEYS, _AXES, strict=True))
        if key in comparison.axes
    }
    what = min(strategies) if len(strategies) == 1 else f"{len(strategies)} strategies"
    axes = [f"{count} {name}s" for name, count in counts.items() if count > 1]
    return f"{what} with {' and '.join(axes)}"


def _lede(comparison: Comparison) -> str:
    settings, runs = comparison.settings, comparison.runs
    seeds = len({run.seed for run in runs})
    where = settings[0].label if len(settings) == 1 else f"{len(settings)} settings"
    if len(runs) == 1:
        return f"{where} · seed {runs[0].seed} · one run"
    return f"{where} · {seeds} seed{'s' * (seeds > 1)} · {len(runs)} runs"


_OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "varying": "varying optimizers"}


def _a_clients_round(of: Callable[[str], str]) -> str:
    epochs, loss = of("train.local-epochs"), of("train.loss")
    batches = f"batches of {of('train.batch-size')}".replace("batches of 0", "all in one batch")
    steps = f"{epochs} epoch{'' if epochs == '1' else 's'}, {batches}"
    losses = "varying losses" if loss == "varying" else loss
    return f"{steps}, {_OPTIMIZERS[of('train.optimizer')]}, {losses}"


def _facts(comparison: Comparison, common: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader asks first about the runs; what differs among them is said to vary."""

    def of(key: str) -> str:
        return text(common[key]) if key in common else "varying"

    tests = sorted({run.test_examples for run in comparison.runs})
    classes = sorted({len(setting.classes) for setting in comparison.settings})
    per_round = common.get("train.clients-per-round")
    a_round = "varying" if per_round is None else number_or_share(per_round)
    who = of("partition.num-clients")
    if any(run.devices for run in comparison.runs):
        who = "real devices" if all(run.devices for run in comparison.runs) else "varying"
    facts = [
        ("Data", f"{of('data.source')}, {_span(classes)} classes"),
        ("Tested on", f"{_span(tests)} images"),
        ("Clients", f"{who}, {'all' if a_round == '0' else a_round} a round"),
        ("Rounds", of("train.rounds")),
        ("A client's round", _a_clients_round(of)),
        ("Backbone", f"{of('backbone.arch')}, int8, {of('backbone.input-size')} px"),
    ]
    if (attack := common.get("attack.kind", "none")) != "none":
        share = common.get("attack.fraction")
        who = f"{percent(share)} % of the clients" if share else "varying shares of the clients"
        facts.append(("Attack", f"{attack} by {who}"))
    if any(math.isfinite(run.values["privacy.epsilon"]) for run in comparison.runs):
        facts.append(("Privacy", _privacy(common)))
    if noise := common.get("data.label-noise"):
        facts.append(("Label noise", f"{percent(noise)} % of the training labels"))
    return facts


def _privacy(common: Mapping[str, Any]) -> str:
    if "privacy.epsilon" not in common:
        return "varying budgets"
    budget = f"epsilon {text(common['privacy.epsilon'])}"
    if "privacy.mechanism" in common:
        budget += f", {common['privacy.mechanism']}"
    return budget


def _span(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _setting(
    setting: Setting, rows: Sequence[Row], target: float | None, common: Mapping[str, Any]
) -> dict[str, Any]:
    line = standard_text(setting, target)
    winner, against = setting.entries[0], standard(setting, target)
    alone = len(setting.entries) == 1
    return {
        "label": setting.label,
        "rows": rows,
        "best": best_row(rows),
        "cards": figures_of_run(winner, rows[0], against) if alone else answers(rows),
        "standard": line[0].upper() + line[1:],
        "margin": percent(sampling_margin(setting)),
        "test_examples": min(run.test_examples for run in setting.runs),
        "confusions": confusions(setting),
        "fullest": legend(matrix(setting)),
        "lines": class_lines(setting),
        "counted_clients": counted_clients(setting),
        "yardsticks": yardsticks(setting, target),
        "traffics": [(traffic, kept(setting, traffic)) for traffic in traffics(setting)],
        "recipes": [_recipe(entry, common) for entry in setting.entries],
    }


def _budgets(comparison: Comparison, setting: Setting, rows: Sequence[Row]) -> dict[str, Any]:
    """What a table of accuracies by budget is made of."""
    return {
        "by_label": {row.label: row for row in rows},
        "budgets": budgets(setting),
        "budget_lines": budget_lines(comparison, setting),
    }


def _recipe(entry: Entry, common: Mapping[str, Any]) -> dict[str, Any]:
    own = differences(entry.runs[0], common)
    return {
        "label": entry.label,
        "hyperparameters": entry.hyperparameters,
        "seeds": entry.seeds,
        "differences": to_toml({key: value for key, value in own.items() if key != "seed"}),
        "commands": [command(run, common) for run in entry.runs],
    }
