"""What a notebook shows of a run and of a comparison: HTML of its own, in light and in dark.

Colours are the notebook's, by ``currentColor``; only the curve has one, which is seen on both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from common.noise import margin
from common.words import byte_text

__all__ = ["block", "curve_svg", "facts", "percent", "rows_html"]

_BLUE = "#3b8fd1"
_WIDTH, _HEIGHT = 320, 110
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 20  # room for labels, in pixels
_CELL = "padding: 2px 10px 2px 0; text-align: left; vertical-align: top"


def percent(value: float | None, examples: int | None = None) -> str:
    """An accuracy, with half of its 95 % interval where it is known on how many examples.

    >>> percent(0.9), percent(0.9, 1000), percent(None)
    ('90.0 %', '90.0 % ± 1.9', '-')
    """
    if value is None:
        return "-"
    text = f"{100 * value:.1f} %"
    return f"{text} ± {100 * margin(value, examples):.1f}" if examples else text


def facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """What matters of a finished run's summary, by name."""
    n, size = summary["test_examples"], summary.get("model_bytes")
    return {
        "accuracy": f"{percent(summary['accuracy'], n)} on {n:,} test images",
        "centralized": percent(summary["centralized_accuracy"]),
        "ridge": percent(summary["ridge_accuracy"]),
        **({"privacy": summary["privacy"]["sentence"]} if summary.get("privacy") else {}),
        "strategy": str(summary["strategy"]),
        "rounds": f"{summary['rounds']:,}",
        "clients": f"{summary['clients']:,}",
        "uplink": byte_text(summary["uplink_bytes"]),
        "model.pt": byte_text(size) if size else "not written",
    }


def rows_html(rows: Sequence[Mapping[str, object]]) -> str:
    """A table with a heading; all of it escaped."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    heading = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in names)
    lines = [
        "".join(f'<td style="{_CELL}">{escape(str(row.get(name, "")))}</td>' for name in names)
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        '<div style="overflow-x: auto"><table style="border-collapse: collapse">'
        f"<thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts_html(values: Mapping[str, str]) -> str:
    """Names and values, a line each; all of it escaped."""
    lines = "".join(
        f'<tr><th style="{_CELL}; font-weight: normal; opacity: 0.75">{escape(name)}</th>'
        f'<td style="{_CELL}; overflow-wrap: anywhere">{escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<table style="border-collapse: collapse">{lines}</table>'


def block(title: str, note: str, values: Mapping[str, str], *parts: str) -> str:
    """A title, a line below it, facts, and further HTML beside them."""
    beside = "".join(
        f"<div>{part}</div>" for part in (values and facts_html(values), *parts) if part
    )
    return (
        '<div style="font-family: sans-serif; font-size: 13px; line-height: 1.4">'
        f'<div style="font-weight: 600">{escape(title)}</div>'
        f'<div style="opacity: 0.75; overflow-wrap: anywhere">{escape(note)}</div>'
        '<div style="display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: flex-start; '
        f'margin-top: 6px">{beside}</div></div>'
    )


def curve_svg(accuracy: Sequence[float], what: str) -> str:
    """Accuracy by round as a small drawing; empty without a round.

    Args:
        accuracy: after each round, in [0, 1].
        what: its name, for who does not see it.
    """
    if not accuracy:
        return ""
    low, high = min(accuracy), max(accuracy)
    span, last = (high - low) or 1.0, max(1, len(accuracy) - 1)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    points = [
        (_LEFT + wide * i / last, _TOP + tall * (1 - (value - low) / span))
        for i, value in enumerate(accuracy)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    base = _HEIGHT - _BOTTOM
    lowest = f"{100 * low:.0f} %" if high > low else ""
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'style="max-width: 100%; height: auto" aria-label="{escape(what)}">'
        f'<path d="M{_LEFT} {_TOP}V{base}H{_WIDTH - _RIGHT}" fill="none" stroke="currentColor" '
        'stroke-opacity="0.35"/>'
        f'<polyline points="{path}" fill="none" stroke="{_BLUE}" stroke-width="2"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_BLUE}"/>'
        '<g font-size="11" font-family="sans-serif" fill="currentColor" text-anchor="end">'
        f'<text x="{_LEFT - 5}" y="{_TOP + 6}">{100 * high:.0f} %</text>'
        f'<text x="{_LEFT - 5}" y="{base}">{lowest}</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}">round {len(accuracy)}</text></g></svg>'
    )
