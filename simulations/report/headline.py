"""What the page says first: the answers of a comparison, or the figures of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.noise import COUNTED_EXAMPLES
from common.privacy.words import figure
from common.words import byte_text
from simulations.report.columns import accuracy_text, percent, points, rounds_text
from simulations.report.comparison import Entry
from simulations.report.leaderboard import Row, Standard, best_row

__all__ = ["Card", "answers", "figures_of_run"]

_AS_IT_IS = (None, "", "none", "off")


@dataclass(frozen=True)
class Card:
    """A figure with the question that it answers.

    Attributes:
        answer: the strategy that it is of; "" where there is only one.
    """

    question: str
    answer: str
    figure: str
    remark: str


def answers(rows: Sequence[Row]) -> list[Card]:
    """The questions that come first, each with the strategy that answers it best."""
    cards = [_accuracy(rows)]
    if any(row.uplink_bytes is not None for row in rows):
        cards.append(_uplink(rows))
    known = [(row.p10_client, row) for row in rows if row.p10_client is not None]
    if known:
        share, row = max(known, key=lambda pair: pair[0])
        who = f"clients with {COUNTED_EXAMPLES} test images or more"
        remark = f"a tenth of the {who} has at most this accuracy"
        personal = ", with personal heads" if row.personal else ""
        figure = f"{percent(share)} %"
        cards.append(Card("The weakest clients", row.label, figure, remark + personal))
    return cards


def _accuracy(rows: Sequence[Row]) -> Card:
    best = best_row(rows)
    near = sum(row.near_best for row in rows) - 1
    remarks = []
    if best.gap_centralized is not None:
        remarks.append(f"{points(best.gap_centralized)} points to the centralized head")
    remarks.append(f"{f'{near} more' if near else 'nobody else'} within chance of it")
    return Card("Accuracy", best.label, f"{accuracy_text(best)} %", "; ".join(remarks))


def _uplink(rows: Sequence[Row]) -> Card:
    reached = [(row.uplink_to_target, row) for row in rows if row.uplink_to_target is not None]
    question, target = "Uplink to the target", f"target {percent(rows[0].target)} %"
    if not reached:
        return Card(question, "no strategy", "never", target)
    uplink, row = min(reached, key=lambda pair: pair[0])
    rounds = rounds_text(row)
    remark = f"{target}, after {rounds} round{'' if rounds == '1' else 's'}"
    remark += f"; {len(reached)} of {len(rows)} get there"
    return Card(question, row.label, byte_text(uplink), remark)


def figures_of_run(entry: Entry, row: Row, against: Standard) -> list[Card]:
    """The figures of one strategy in one setting, means over its seeds."""
    tests = f"of {row.test_examples:,} test images"
    spread = (
        f"{tests}; ± is what chance alone may do to it, in 95 of 100 cases"
        if row.accuracy_sd is None
        else f"{tests}; ± is the standard deviation over {len(row.seeds)} seeds"
    )
    cards = [Card("Accuracy", "", f"{accuracy_text(row)} %", spread)]
    balanced = "mean of the classes' accuracies: each class counts alike, however rare"
    cards.append(Card("Balanced accuracy", "", f"{percent(row.balanced)} %", balanced))
    if against.centralized is not None:
        remark = f"the best linear head of all data in one place; {_gap(row)}"
        if against.ridge is not None and against.logistic is not None:
            remark += (
                f". Of ridge regression ({percent(against.ridge)} %) and logistic "
                f"regression ({percent(against.logistic)} %) it is the one that did better on "
                "held-out training images"
            )
        cards.append(Card("Centralized head", "", f"{percent(against.centralized)} %", remark))
    return [
        *cards,
        *_privacy(entry),
        *_alone(entry, row),
        *_learning_rate(entry),
        _traffic(entry, row),
        *_model(entry),
        *_probabilities(entry),
    ]


def _privacy(entry: Entry) -> list[Card]:
    """What the run guarantees its clients; of several seeds, each has its own ledger."""
    found = [run.summary.privacy for run in entry.runs]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return []
    most = max(known, key=lambda one: one.spent)
    budget = f"epsilon {figure(most.spent)} of {figure(most.epsilon)}"
    several = " Each seed is a run of its own, and spends a budget of its own."
    remark = most.sentence + (several if len(known) > 1 else "")
    return [Card("Privacy", "", budget, remark)]


def _alone(entry: Entry, row: Row) -> list[Card]:
    """What the clients would have without each other."""
    found = [
        (s.local_accuracy_mean, s.clients_better_alone, s.client_tests.clients)
        for s in (run.summary for run in entry.runs)
        if s.local_accuracy_mean is not None
        and s.clients_better_alone is not None
        and s.client_tests is not None
    ]
    if len(found) < len(entry.runs):
        return []
    share, better, clients = np.mean(found, axis=0).tolist()
    heads = "personal heads" if row.personal else "the federated head"
    remark = f"mean of the clients, each with a head of its own images; {heads}: "
    remark += (
        f"{percent(row.mean_client)} %. {_number(better)} of {_number(clients)} "
        f"client{'s' * (clients != 1)} better off alone"
    )
    if len(found) > 1:
        remark += f", mean of {len(found)} seeds"
    return [Card("Each client alone", "", f"{percent(share)} %", remark)]


def _learning_rate(entry: Entry) -> list[Card]:
    """The rate that the clients began with; each seed has chosen its own."""
    rates = [run.summary.lr for run in entry.runs]
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates):
        return []
    words = dict.fromkeys(f"{rate:g}" for rate in (min(known), max(known)))
    remark = "of the clients' steps, as the experiment says"
    if entry.runs[0].values["train.lr"] == "auto":
        remark = "of the clients' steps, chosen from the server's calibration images (auto)"
    return [Card("Learning rate", "", " to ".join(words), remark)]


def _number(mean: float) -> str:
    return f"{mean:,.1f}".removesuffix(".0")


def _gap(row: Row) -> str:
    gap = row.gap_centralized or 0.0
    if not round(gap, 3):
        return "this run has the same"
    return f"this run is {points(abs(gap))[1:]} points {'above' if gap > 0 else 'below'} it"


def _traffic(entry: Entry, row: Row) -> Card:
    if row.uplink_bytes is None:
        return Card("Uplink", "", "-", "the run is private: nobody may know how many clients sent")
    rounds = max(len(run.accuracy) for run in entry.runs)
    remark = f"sent by all clients in {rounds:,} round{'s' * (rounds > 1)}"
    down = [run.summary.downlink_bytes for run in entry.runs]
    if None not in down:
        remark += f"; they received {byte_text(float(np.mean([n or 0 for n in down])))}"
    whole = [run.summary.full_model_uplink_bytes for run in entry.runs]
    if None not in whole and row.uplink_bytes:
        mean = float(np.mean([n or 0 for n in whole]))
        times = mean / row.uplink_bytes
        remark += f". Whole models would be {byte_text(mean)}, {times:,.0f} times as much"
    values = entry.runs[0].values
    keys = ("codec.up", "codec.down", "backbone.projection")
    small = [f"{key}: {values[key]}" for key in keys if values.get(key) not in _AS_IT_IS]
    if small:
        remark += f". Made smaller by {', '.join(small)}"
    return Card("Uplink", "", byte_text(row.uplink_bytes), remark)


def _probabilities(entry: Entry) -> list[Card]:
    """How far the exported model's probabilities are from the truth."""
    summary = entry.runs[0].summary
    if len(entry.runs) > 1 or summary.model_bytes is None:
        return []
    if summary.ece is None or summary.ece_before is None or summary.temperature is None:
        return []
    remark = (
        "by which the model's probabilities miss the share that is right, on average; "
        f"{points(summary.ece_before)[1:]} points without the temperature {summary.temperature:.3g}"
    )
    return [Card("Calibration error", "", f"{points(summary.ece)[1:]} points", remark)]


def _model(entry: Entry) -> list[Card]:
    """The exported model of a run; of several runs none is the one."""
    summary = entry.runs[0].summary
    if len(entry.runs) > 1 or summary.model_bytes is None:
        return []
    remark = "model.pt: int8 backbone and head in one file"
    if summary.model_accuracy is not None and summary.model_test_examples is not None:
        remark += (
            f"; {percent(summary.model_accuracy)} % on {summary.model_test_examples:,} test images"
        )
    return [Card("Model", "", byte_text(summary.model_bytes), remark)]
