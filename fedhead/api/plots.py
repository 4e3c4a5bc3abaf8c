"""Curves of runs as matplotlib draws them; a notebook shows them without being told how."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from common.plots import SERIES, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "draw_curves"]

# Where the colours run out, they come again with the next of these.
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Curve:
    """Accuracy by round.

    Attributes:
        label: whose it is.
        rounds: where it is known.
        accuracy: there, in [0, 1].
        band: lowest and highest around it; empty: it has none.
    """

    label: str
    rounds: Sequence[int]
    accuracy: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | tuple[()] = ()


def draw_curves(
    panels: Mapping[str, Sequence[Curve]], lines: Mapping[str, float] | None = None
) -> Figure:
    """One plot of curves for each panel, side by side.

    Args:
        panels: curves by the panel's title.
        lines: accuracies by name, drawn across each panel.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(max(6.4, 4.8 * len(panels)), 3.9, purpose="drawing a plot")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False, sharey=True)[0]
    axes[0].set_ylabel("accuracy on the server's test set")
    for one, (title, curves) in zip(axes, panels.items(), strict=False):
        _draw(one, title, curves, lines or {})
    return _shown(figure)


def _draw(axes: Axes, title: str, curves: Sequence[Curve], lines: Mapping[str, float]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    styles = cycle([(dash, colour) for dash in _DASHES for colour in SERIES])
    for curve, (dash, colour) in zip(curves, styles, strict=False):
        marker = "o" if len(curve.rounds) < 2 else None
        axes.plot(
            curve.rounds, curve.accuracy, label=curve.label,
            color=colour, linestyle=dash, marker=marker,
        )  # fmt: skip
        if curve.band:
            axes.fill_between(curve.rounds, *curve.band, color=colour, alpha=0.15, linewidth=0)
    for (name, value), dash in zip(lines.items(), cycle(_DASHES[1:]), strict=False):
        label = f"{name} {value:.1%}"
        axes.axhline(value, color=SERIES[-1], linestyle=dash, linewidth=1, label=label)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.has_data():
        axes.legend(frameon=False, fontsize="small")


def _shown(figure: Figure) -> Figure:
    """The same figure, which a notebook shows as an image.

    matplotlib teaches notebooks to do so when its pyplot is imported, which changes much else.
    """

    def image() -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()

    vars(figure)["_repr_png_"] = image
    return figure
