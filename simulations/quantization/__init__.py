"""Compares ways to make a backbone small, on each runtime."""

from __future__ import annotations

import json
from pathlib import Path

from common.files import write_atomic
from simulations.quantization.plot import draw
from simulations.quantization.render import as_json, markdown, notes, tables
from simulations.quantization.report import Report, Row, quantize_report

__all__ = ["Report", "Row", "as_json", "notes", "quantize_report", "tables", "write_report"]


def write_report(report: Report, folder: Path) -> Path:
    """Write quantize.md, quantize.json and quantize.png into a folder; returns the first.

    Raises:
        MissingExtraError: matplotlib is not installed; the other two files are written.
    """
    page = folder / "quantize.md"
    write_atomic(page, markdown(report).encode())
    write_atomic(folder / "quantize.json", json.dumps(as_json(report), indent=2).encode())
    draw(report, folder / "quantize.png")
    return page
