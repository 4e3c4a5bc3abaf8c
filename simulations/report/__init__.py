"""Finished run folders as tables and one self-contained page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.files import write_atomic
from simulations.report.comparison import Comparison, load_runs
from simulations.report.curves import CurveRow, curve_rows, curves_csv, write_curves
from simulations.report.leaderboard import Row, leaderboard
from simulations.report.leaderboard_csv import (
    leaderboard_csv,
    leaderboard_rows,
    timing_csv,
)
from simulations.report.leaderboard_tables import leaderboard_markdown, terminal_table
from simulations.report.page import check_installed, page_html

__all__ = [
    "Comparison",
    "CurveRow",
    "ReportFiles",
    "Row",
    "check_installed",
    "curve_rows",
    "leaderboard",
    "leaderboard_rows",
    "load_runs",
    "terminal_table",
    "write_curves",
    "write_report",
]


@dataclass(frozen=True)
class ReportFiles:
    """Where a report lies."""

    page: Path
    csv: Path
    markdown: Path
    timing: Path
    curves: Path


def write_report(
    comparison: Comparison, folder: Path, *, target: float | None = None
) -> ReportFiles:
    """Write report.html, leaderboard.csv and .md, timing.csv and curves.csv into a folder.

    Args:
        comparison: from :func:`load_runs`.
        folder: made when missing; files of these names are replaced, each whole or not at all.
        target: accuracy in (0, 1] whose rounds and bytes are counted; None: see
            :func:`leaderboard`.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed; nothing is written.
    """
    files = ReportFiles(
        folder / "report.html",
        folder / "leaderboard.csv",
        folder / "leaderboard.md",
        folder / "timing.csv",
        folder / "curves.csv",
    )
    for path, content in (
        (files.page, page_html(comparison, target)),
        (files.csv, leaderboard_csv(leaderboard(comparison, target))),
        (files.markdown, leaderboard_markdown(comparison, target)),
        (files.timing, timing_csv(comparison)),
        (files.curves, curves_csv(comparison)),
    ):
        write_atomic(path, content.encode())
    return files
