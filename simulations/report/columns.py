"""The leaderboard's columns: what a person reads and what it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.noise import COUNTED_CLIENTS, COUNTED_EXAMPLES, margin
from common.words import byte_text
from simulations.report.leaderboard import Row
from simulations.report.packing import SIZE_KEYS, compared_keys

__all__ = [
    "Column",
    "accuracy_text",
    "metric_names",
    "metric_text",
    "percent",
    "points",
    "rounds_text",
    "shown_columns",
]


def percent(value: float | None) -> str:
    """A share as a percentage, without the sign."""
    return "-" if value is None else f"{100 * value:.1f}"


def accuracy_text(row: Row) -> str:
    """In %: mean and standard deviation of several seeds, of one the chance of its examples."""
    spread = row.accuracy_sd
    if spread is None:
        spread = margin(row.accuracy, row.test_examples)
    return f"{percent(row.accuracy)} ± {percent(spread)}"


def _of_clients(value: float | None, row: Row) -> str:
    return percent(value) + ("*" if row.personal else "")


def rounds_text(row: Row) -> str:
    """Rounds to the target, or in how many seeds it was never reached."""
    if row.rounds_to_target is not None:
        return f"{row.rounds_to_target:.1f}".removesuffix(".0")
    missed, seeds = row.not_reached, len(row.seeds)
    return "never" if missed == seeds else f"never in {missed} of {seeds}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign.

    >>> points(0.0123), points(-0.0001)
    ('+1.2', '+0.0')
    """
    # Adding zero makes -0.0 a plain zero.
    return "-" if value is None else f"{round(100 * value, 1) + 0.0:+.1f}"


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard.

    Attributes:
        title: with its unit.
        text: what a person reads.
        value: what it is sorted by; None goes to the end.
        rising: whether small values are the good ones.
        help: what it means.
        short: title in the terminal; "" is not shown there.
        words: whether it is text, not numbers.
        packing: whether it is there only where codecs or projections are compared.
    """

    title: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | str | None]
    rising: bool
    help: str
    short: str = ""
    words: bool = False
    packing: bool = False


_SECONDS, _SETTINGS = "Training\u00a0s", "Settings"
_MEAN, _SEEDS = "Client mean", "Seeds"
_COLUMNS = (
    Column(
        "Strategy", lambda r: r.label, lambda r: r.label, True,
        "How the server aggregates; +gram: clients' gradients are preconditioned, "
        "+fed3r: starts from that head; behind a point, where they are compared, the codec of "
        "what clients send, the number of directions that features are projected to, and epsilon, "
        "the budget of differential privacy", words=True,
    ),
    Column(
        "Accuracy\u00a0%", accuracy_text, lambda r: r.accuracy, False,
        "On the server's test set after the last round: mean and standard deviation over seeds; "
        "of one seed, half of the 95 % interval that its test examples leave",
        "accuracy %",
    ),
    Column(
        "Backdoor\u00a0%", lambda r: percent(r.backdoor), lambda r: r.backdoor, True,
        "Share of the test images of other classes that are taken for the attackers' target once "
        "they carry the trigger, after the last round; mean over seeds", "backdoor",
    ),
    Column(
        "To centralized", lambda r: points(r.gap_centralized), lambda r: r.gap_centralized, False,
        "Points above (+) or below (-) the best linear head of all data in one place", "gap",
    ),
    Column(
        _MEAN, lambda r: _of_clients(r.mean_client, r), lambda r: r.mean_client, False,
        "Mean of the clients' accuracies, in %, each on its own test part however small, mean over "
        "seeds; * with personal heads",
    ),
    Column(
        "Client p10", lambda r: _of_clients(r.p10_client, r), lambda r: r.p10_client, False,
        "A tenth of the clients has at most this accuracy, in %, on its own test part, of the "
        f"clients with {COUNTED_EXAMPLES} test examples or more, where these are "
        f"{COUNTED_CLIENTS} or more; mean over seeds; * with personal heads", "p10",
    ),
    Column(
        "Client worst", lambda r: _of_clients(r.worst_client, r), lambda r: r.worst_client, False,
        "Lowest accuracy of a client, in %, on its own test part, of the same clients; mean "
        "over seeds; * with personal heads", "worst",
    ),
    Column(
        "Rounds to target", rounds_text, lambda r: r.rounds_to_target, True,
        "First round that reaches the target accuracy, mean over seeds", "rounds",
    ),
    Column(
        "Uplink to target", lambda r: byte_text(r.uplink_to_target),
        lambda r: r.uplink_to_target, True, "What all clients together have sent by then",
        "uplink",
    ),
    Column(
        "Uplink in all", lambda r: byte_text(r.uplink_bytes), lambda r: r.uplink_bytes, True,
        "What all clients together have sent in the whole run, mean over seeds",
    ),
    Column(
        "Uplink a client a\u00a0round", lambda r: byte_text(r.update_bytes),
        lambda r: r.update_bytes, True,
        "What one client sends in a round that it takes part in, mean over rounds and seeds",
        "a round", packing=True,
    ),
    Column(
        "On the front", lambda r: "yes" if r.on_front else "", lambda r: float(r.on_front), False,
        "No other row has more accuracy for fewer bytes: uplink in all, means over seeds",
        "front", packing=True,
    ),
    Column(
        "Rejected", lambda r: "-" if r.rejected is None else str(r.rejected),
        lambda r: r.rejected, True,
        "Updates that were not fit to count, all seeds together",
    ),
    Column(
        _SECONDS, lambda r: "-" if r.seconds is None else f"{r.seconds:.1f}",
        lambda r: r.seconds, True,
        "Seconds of training, all rounds, on the machine that ran it; mean over seeds", "s",
    ),
    Column(
        _SEEDS, lambda r: str(len(r.seeds)), lambda r: len(r.seeds), False, "Number of runs",
    ),
    Column(
        _SETTINGS, lambda r: r.hyperparameters, lambda r: r.hyperparameters, True,
        "Learning rate and what else was set for this strategy: after a sweep its best", words=True,
    ),
)  # fmt: skip


def metric_names(rows: Sequence[Row]) -> list[str]:
    """The strategies' own metrics that any of the rows has, in order."""
    return sorted({name for row in rows for name in row.metrics})


def metric_text(row: Row, name: str) -> str:
    """Mean and standard deviation of several seeds; "-" without it."""
    if name not in row.metrics:
        return "-"
    mean, deviation = row.metrics[name]
    return f"{mean:.4g}" + ("" if deviation is None else f" ± {deviation:.2g}")


def _metric(name: str) -> Column:
    """A strategy's own metric; nobody but its author knows which values are the good ones."""
    return Column(
        name, lambda row: metric_text(row, name),
        lambda row: row.metrics[name][0] if name in row.metrics else None, False,
        "The strategy's own, its last value: mean and standard deviation over seeds",
    )  # fmt: skip


def shown_columns(rows: Sequence[Row], *, timed: bool) -> list[Column]:
    """The columns that say something about these rows.

    Args:
        rows: of one table or of several that should look alike.
        timed: whether seconds are shown, which no two runs have in common.
    """
    hidden = {_SECONDS} if not timed else set()
    settings = [column for column in _COLUMNS if column.title == _SETTINGS]
    others = [column for column in _COLUMNS if column.title != _SETTINGS]
    columns = [*others, *map(_metric, metric_names(rows)), *settings]
    if not any(row.rejected for row in rows):
        hidden.add("Rejected")
    sized = bool({*compared_keys(row.packing for row in rows)} & {*SIZE_KEYS})
    if sized:
        hidden |= {_MEAN, _SEEDS}  # a screen has no room for them beside the bytes
    return [
        column
        for column in columns
        if (sized or not column.packing)
        and column.title not in hidden
        and any(column.text(row) not in ("", "-") for row in rows)
    ]
