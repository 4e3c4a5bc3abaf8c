"""The report as one HTML file that needs nothing else: no network, no server."""

from __future__ import annotations

import base64
import importlib.util
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import MissingExtraError
from common.noise import COUNTED_EXAMPLES
from simulations.report.columns import (
    accuracy_text,
    byte_text,
    percent,
    points,
    rounds_text,
    shown_columns,
)
from simulations.report.comparison import Comparison, Entry, Setting
from simulations.report.figures import (
    confusions,
    counted_clients,
    figure_data,
    line_styles,
    metric_names,
    yardsticks,
)
from simulations.report.labels import number_or_share, text
from simulations.report.leaderboard import Row, leaderboard, sampling_margin
from simulations.report.leaderboard_tables import overview, rows_by_setting, standard_text
from simulations.report.reproduce import (
    EXPERIMENT_FILE,
    command,
    common_values,
    differences,
    to_toml,
)

__all__ = ["check_installed", "page_html"]


@dataclass(frozen=True)
class _Card:
    question: str
    strategy: str
    figure: str
    remark: str


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
    return environment.get_template("page.html.jinja").render(
        title=_title(comparison),
        lede=_lede(comparison),
        facts=_facts(comparison, common),
        notes=comparison.notes,
        settings=[_setting(setting, rows, target, common) for setting, rows in by_setting],
        columns=shown_columns(leaderboard(comparison, target), timed=True),
        overview=overview(comparison, by_setting) if len(by_setting) > 1 else [],
        styles=line_styles(comparison),
        has_clients=any(run.clients for run in comparison.runs),
        metrics=sorted({name for setting in comparison.settings for name in metric_names(setting)}),
        experiment_file=EXPERIMENT_FILE,
        common=to_toml(common),
        version_names=version_names or ["versions"],
        version_rows=[(dict(versions), count) for versions, count in version_rows.items()],
        figures=figure_data(comparison, target),
        percent=percent,
        accuracy_text=accuracy_text,
        plotly=_plotly(),
    )


def _plotly() -> str:
    """plotly.js, packed: 2 MB instead of 5, which the browser unpacks itself."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(zlib.compress(get_plotlyjs().encode(), 9)).decode()


def _title(comparison: Comparison) -> str:
    sources = dict.fromkeys(text(run.values["data.source"]) for run in comparison.runs)
    labels = comparison.strategies
    what = labels[0] if len(labels) == 1 else f"{len(labels)} strategies"
    return f"{what} on {' and '.join(sources)}"


def _lede(comparison: Comparison) -> str:
    settings, runs = comparison.settings, comparison.runs
    seeds = len({run.seed for run in runs})
    where = settings[0].label if len(settings) == 1 else f"{len(settings)} settings"
    return f"{where} · {seeds} seed{'s' * (seeds > 1)} · {len(runs)} run{'s' * (len(runs) > 1)}"


def _facts(comparison: Comparison, common: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader asks first about the runs; what differs among them is said to vary."""

    def of(key: str) -> str:
        return text(common[key]) if key in common else "varying"

    tests = sorted({run.test_examples for run in comparison.runs})
    classes = sorted({len(setting.classes) for setting in comparison.settings})
    per_round, epochs = common.get("train.clients-per-round"), of("train.local-epochs")
    a_round = "varying" if per_round is None else number_or_share(per_round)
    facts = [
        ("Data", f"{of('data.source')}, {_span(classes)} classes"),
        ("Tested on", f"{_span(tests)} examples"),
        (
            "Clients",
            f"{of('partition.num-clients')}, {'all' if a_round == '0' else a_round} a round",
        ),
        ("Rounds", of("train.rounds")),
        (
            "A client's round",
            f"{epochs} epoch{'' if epochs == '1' else 's'}, batches of {of('train.batch-size')}",
        ),
        ("Backbone", f"{of('backbone.arch')}, int8, {of('backbone.input-size')} px"),
    ]
    if (attack := common.get("attack.kind", "none")) != "none":
        share = common.get("attack.fraction")
        who = f"{percent(share)} % of the clients" if share else "varying shares of the clients"
        facts.append(("Attack", f"{attack} by {who}"))
    if noise := common.get("data.label-noise"):
        facts.append(("Label noise", f"{percent(noise)} % of the training labels"))
    return facts


def _span(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _setting(
    setting: Setting, rows: Sequence[Row], target: float | None, common: Mapping[str, Any]
) -> dict[str, Any]:
    line = standard_text(setting, target)
    return {
        "label": setting.label,
        "rows": rows,
        "cards": _cards(rows),
        "standard": line[0].upper() + line[1:],
        "margin": percent(sampling_margin(setting)),
        "test_examples": min(run.test_examples for run in setting.runs),
        "confusions": confusions(setting),
        "counted_clients": counted_clients(setting),
        "yardsticks": yardsticks(setting, target),
        "recipes": [_recipe(entry, common) for entry in setting.entries],
    }


def _cards(rows: Sequence[Row]) -> list[_Card]:
    """The questions that come first, each with the strategy that answers it best."""
    cards = [_accuracy_card(rows), _uplink_card(rows)]
    known = [(row.p10_client, row) for row in rows if row.p10_client is not None]
    if known:
        share, row = max(known, key=lambda pair: pair[0])
        who = f"clients with {COUNTED_EXAMPLES} test images or more"
        remark = f"a tenth of the {who} has at most this accuracy"
        personal = ", with personal heads" if row.personal else ""
        figure = f"{percent(share)} %"
        cards.append(_Card("The weakest clients", row.strategy, figure, remark + personal))
    return cards


def _accuracy_card(rows: Sequence[Row]) -> _Card:
    best = rows[0]
    near = sum(row.near_best for row in rows) - 1
    remarks = []
    if best.gap_centralized is not None:
        remarks.append(f"{points(best.gap_centralized)} points to the centralized head")
    if len(rows) > 1:
        remarks.append(f"{f'{near} more' if near else 'nobody else'} within chance of it")
    figure = f"{accuracy_text(best)} %"
    return _Card("Accuracy", best.strategy, figure, "; ".join(remarks))


def _uplink_card(rows: Sequence[Row]) -> _Card:
    reached = [(row.uplink_to_target, row) for row in rows if row.uplink_to_target is not None]
    question, target = "Uplink to the target", f"target {percent(rows[0].target)} %"
    if not reached:
        return _Card(question, "no strategy", "never", target)
    uplink, row = min(reached, key=lambda pair: pair[0])
    rounds = rounds_text(row)
    remark = f"{target}, after {rounds} round{'' if rounds == '1' else 's'}"
    if len(rows) > 1:
        remark += f"; {len(reached)} of {len(rows)} get there"
    return _Card(question, row.strategy, byte_text(uplink), remark)


def _recipe(entry: Entry, common: Mapping[str, Any]) -> dict[str, Any]:
    own = differences(entry.runs[0], common)
    return {
        "label": entry.label,
        "hyperparameters": entry.hyperparameters,
        "seeds": entry.seeds,
        "differences": to_toml({key: value for key, value in own.items() if key != "seed"}),
        "commands": [command(run, common) for run in entry.runs],
    }
