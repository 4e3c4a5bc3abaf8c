"""A simulated fleet's figures for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from common.tables import Fitted

__all__ = ["show"]


def show(figures: Mapping[str, Any]) -> None:
    """Print them."""
    console = Console(markup=False)
    table = Table(title="A fleet on one machine", title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("figures", overflow="fold")
    for what, text in _lines(figures):
        table.add_row(what, text)
    console.print(table, highlight=False)
    if len(figures["zones"]) > 1:
        console.print(Fitted(_zones(figures), ("check-ins",)), highlight=False)


def _lines(f: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "phones", f"{f['phones']:,}, of which {f['clients']:,} were known to the run"
    rounds = f"{f['rounds']}, of which {f['accepted_rounds']} gave a new head"
    yield "rounds", f"{rounds}; {f['round_seconds']:.1f} s each"
    yield "accuracy", f"{f['accuracy']:.2%}"
    yield "updates", f"{f['valid_updates']:,} counted; verdicts: {_counts(f['verdicts'])}"
    yield "faults", _counts(f["faults"]) or "none"
    yield "failed calls", _counts(f["failed_calls"]) or "none"
    check_ins = f["check_ins"]
    yield (
        "check-ins",
        (
            f"{f['calls']['CheckIn']:,}; {check_ins['per_second']:.0f} a second, in the busiest "
            f"{check_ins['max_over_mean']:.2f} times as many; variance / mean "
            f"{check_ins['variance_over_mean']:.2f}"
        ),
    )
    yield "open at once", f"at most {f['most_open_check_ins']:,} check-ins"
    yield "uploads", f"at most {f['most_uploads_per_second']:,} in a second"
    yield "bytes", f"{f['megabytes']:.0f} MB, {f['megabytes_per_second']:.2f} MB/s"
    yield "a submission", _times(f["submit_seconds"])
    for phase, (half, most) in f["phases"].items():
        yield phase, f"p50 {_seconds(half)}, p90 {_seconds(most)}"
    memory, files = f["resident_megabytes"], f["descriptors"]
    yield (
        "service's memory",
        (
            f"{memory['first']:.0f} MB idle, {memory['peak']:.0f} MB at most, "
            f"{memory['last']:.0f} MB "
            f"at the end ({memory['growth_per_minute']:+.1f} MB a minute)"
        ),
    )
    yield (
        "its open files",
        (f"{files['first']:.0f} idle, {files['peak']:.0f} at most, {files['last']:.0f} at the end"),
    )
    yield "its processor", f"{f['service_cpu']:.0%} of a core"


def _zones(f: Mapping[str, Any]) -> Table:
    table = Table(title="While they are there, in a minute", title_justify="left")
    for name in ("phones", "awake", "haste", "tasks", "check-ins", "tasks a phone", "calls"):
        table.add_column(name, justify="right")
    for zone in f["zones"]:
        table.add_row(
            f"{zone['phones']:,}",
            f"{zone['awake']:.0%}",
            f"{zone['haste']:g}",
            f"{zone['tasks']:,}",
            f"{zone['check_ins']:,}",
            f"{zone['tasks_per_minute']:.3f}",
            f"{zone['check_ins_per_minute']:.2f}",
        )
    return table


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def _times(three: list[float]) -> str:
    return ", ".join(f"p{p} {_seconds(v)}" for p, v in zip((50, 90, 99), three, strict=True))


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"
