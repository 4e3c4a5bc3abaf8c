"""A deployment's phones as tables and lines of at most 80 columns, and as JSON.

Of many phones it shows a summary and those that gave the fewest results of what they were asked
for. Rounds are told as Bonawitz et al., "Towards federated learning at scale: system design" (2019,
arXiv 1902.01046) tell them: participation, drop-outs by reason, and the time of each phase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from common.tables import Fitted
from common.words import one_line
from simulations.deploy.phones_view import DROPOUTS, PhoneRow, PhonesView, RoundRow

__all__ = ["phones_json", "phones_lines", "phones_table", "rounds_table"]

_MOST_ROWS = 20  # phones in a table
_MOST_ROUNDS = 8
_LONGEST_PROBLEM = 60


def shown(view: PhonesView) -> Sequence[PhoneRow]:
    """All phones; of many those that lost the most tasks, or say that they have a problem."""
    if len(view.rows) <= _MOST_ROWS:
        return view.rows
    worst = [row for row in view.rows if row.lost or row.problem]
    return sorted(worst, key=lambda row: (-row.lost, not row.problem, row.name))[:_MOST_ROWS]


def phones_table(view: PhonesView) -> Fitted | None:
    """A line for each phone that is shown; None if there is none."""
    if not (rows := shown(view)):
        return None
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("phone", overflow="fold", min_width=6)
    for title in ("state", "seen"):
        table.add_column(title, no_wrap=True)
    for title in ("tasks", "accepted", *DROPOUTS):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        counts = [str(row.dropouts.get(why, 0)) for why in DROPOUTS]
        table.add_row(
            row.name, row.state, _seen(row.seen), str(row.tasks), str(row.accepted), *counts
        )
    return Fitted(table, ("silent", "refused", "failed", "seen"))


def rounds_table(view: PhonesView) -> Fitted | None:
    """A line for each of the last rounds; None if there was none."""
    if not view.rounds:
        return None
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run", overflow="fold", min_width=6)
    for title in ("round", "asked", "accepted", *DROPOUTS):
        table.add_column(title, justify="right", no_wrap=True)
    for row in view.rounds[-_MOST_ROUNDS:]:
        counts = [f"{row.dropouts.get(why, 0):,}" for why in DROPOUTS]
        number = "evaluation" if row.kind == "evaluate" else str(row.number)
        table.add_row(row.name, number, f"{row.asked:,}", f"{row.accepted:,}", *counts)
    return Fitted(table, ("silent", "refused", "failed"))


def phones_lines(view: PhonesView) -> Iterator[str]:
    """How many phones there are, what they say, and how long the phases of a round took."""
    states = Counter(row.state for row in view.rows)
    counts = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
    yield f"phones: {len(view.rows):,} ({counts}), {view.lately:,} checked in lately"
    if not view.served:
        yield "no gateway runs here, so phones take part in no round: fedhead gateway DEPLOYMENT"
    if view.window:
        yield f"a phone comes again within {view.window[0]:.0f} to {view.window[1]:.0f} s"
    if len(view.rows) > _MOST_ROWS:
        yield f"shown are the {len(shown(view))} that lost the most tasks or have a problem"
    problems = Counter(row.problem.partition(":")[0] for row in view.rows if row.problem)
    for problem, count in problems.most_common(5):
        yield f"{count:,} say: {one_line(problem)[:_LONGEST_PROBLEM]}"
    if needed := sum(row.asked - row.spare for row in view.rounds):
        taken = sum(row.accepted for row in view.rounds)
        yield f"of {needed:,} tasks in {len(view.rounds)} rounds {taken / needed:.1%} were accepted"
    if spare := sum(row.spare for row in view.rounds):
        yield f"{spare:,} more were asked in reserve, and not waited for"
    for row in reversed(view.rounds):
        if row.seconds:
            yield from _phases(row)
            break


def _phases(row: RoundRow) -> Iterator[str]:
    yield f"seconds in round {row.number} of {row.name}, median and 90th percentile:"
    yield "  " + ", ".join(
        f"{phase} {p50:.3g} {p90:.3g}" for phase, (p50, p90) in row.seconds.items()
    )


def phones_json(view: PhonesView) -> dict[str, Any]:
    """All that is known of the phones."""
    rows = [
        {**asdict(row), "seen": row.seen.isoformat(timespec="seconds") if row.seen else None}
        for row in view.rows
    ]
    return {
        "phones": rows,
        "served": view.served,
        "checked-in-lately": view.lately,
        "window": view.window,
        "counters": dict(view.counters),
        "rounds": [asdict(row) for row in view.rounds],
    }


def _seen(moment: datetime | None) -> str:
    if moment is None:
        return "never"
    local, now = moment.astimezone(), datetime.now(UTC).astimezone()
    return f"{local:%H:%M}" if local.date() == now.date() else f"{local:%d %b}"
