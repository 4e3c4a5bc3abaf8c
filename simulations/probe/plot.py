"""A probe as a plot: the learning curve, and which classes are taken for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.plots import BLUE, INK, SERIES, draw_counts, new_figure, save_figure
from simulations.probe.measure import Probe

__all__ = ["draw"]

_MOST_NAMES = 60
# What the head is measured against.
_PIXELS, _NEIGHBOURS = SERIES[1:3]


def draw(probe: Probe, target: float, path: Path) -> None:
    """Write the plot.

    Args:
        probe: the figures.
        target: accuracy that is needed, drawn as a line.
        path: of the file; see ``common.plots``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    height = float(np.clip(0.19 * len(probe.classes) + 1.4, 5.2, 9))
    figure = new_figure(13, height, purpose="drawing a probe")
    curve, matrix = figure.subplots(1, 2, width_ratios=[1, 1.25])
    _draw_curve(curve, probe, target)
    image = _draw_confusion(matrix, probe)
    figure.colorbar(image, ax=matrix, label="share of the true class", pad=0.09)
    spec = probe.backbone.spec
    figure.suptitle(f"{probe.source}: {spec.arch}, int8, {spec.input_size} px, head alone")
    save_figure(figure, path)


def _draw_curve(axes: Any, probe: Probe, target: float) -> None:
    examples = [point.examples for point in probe.curve]
    axes.fill_between(
        examples,
        [point.low for point in probe.curve],
        [point.high for point in probe.curve],
        color=BLUE,
        alpha=0.2,
        linewidth=0,
        label="worst and best fold",
    )
    axes.plot(examples, [p.accuracy for p in probe.curve], "o-", color=BLUE, label="head")
    for name, value, colour, dash in (
        ("needed", target, INK, "--"),
        ("nearest neighbours", probe.neighbours, _NEIGHBOURS, "-."),
        ("head on bare pixels", probe.pixels, _PIXELS, ":"),
        ("commonest class", probe.commonest, "0.5", ":"),
    ):
        label = f"{name} {value:.1%}"
        axes.axhline(value, color=colour, linestyle=dash, linewidth=1, label=label)
    axes.set_xscale("log")
    axes.set_xticks(examples, [f"{value:.0f}" for value in examples], minor=False)
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("training images of each class")
    axes.set_ylabel("accuracy on other images")
    axes.spines[["top", "right"]].set_visible(False)
    # Below the axes, where no curve can lie under it.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8, frameon=False)


def _draw_confusion(axes: Any, probe: Probe) -> Any:
    totals = probe.confusion.sum(axis=1)
    shares = probe.confusion / np.maximum(totals, 1)[:, None]
    # Square root: one image in fifty shows.
    image = draw_counts(axes, probe.confusion, shares, probe.classes, norm=_square_root())
    step = -(-len(probe.classes) // _MOST_NAMES)
    ticks, names = np.arange(0, len(probe.classes), step), list(probe.classes)[::step]
    axes.set_xticks(ticks, names, fontsize=8, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    # An axis of its own, for the totals of the rows.
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(ticks, [f"{total:,}" for total in totals[::step]], fontsize=8)
    beside.set_ylabel("images", fontsize=8)
    beside.tick_params(length=0)
    return image


def _square_root() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)
