"""Plots of results, drawn without a screen. Needs matplotlib, which an extra installs."""

from __future__ import annotations

import errno
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import MissingExtraError
from common.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from common.types import FloatArray, IntArray

__all__ = [
    "BLUE",
    "INK",
    "SERIES",
    "blues",
    "check_drawable",
    "draw_counts",
    "new_figure",
    "save_figure",
]

# The report page's, so that a reader meets one set of colours.
BLUE, INK = "#0072b2", "#1b2126"
# --series in simulations/report/page.css.
SERIES = (BLUE, "#d55e00", "#008f6b", "#a8518f", "#b07d00", "#68737d")
_FEW, _MANY = "#e1eef7", "#5ba4d0"
_NAMES = 60
"""Labels that an axis has room for."""
_CELLS = 48
"""Rows and columns of a matrix whose cells have room for a number."""


def check_drawable(path: Path, *, purpose: str) -> None:
    """Find out before the long work whether its plot can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed; says what for.
        OSError: the path is a folder's.
    """
    try:
        import_module("matplotlib")
    except ImportError as exc:
        raise MissingExtraError("matplotlib", "simulation", purpose) from exc
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected the file of a plot", str(path))


def new_figure(width: float, height: float, *, purpose: str) -> Figure:
    """An empty figure of this size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed; says what for.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingExtraError("matplotlib", "simulation", purpose) from exc
    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    return figure


def blues() -> Colormap:
    """From few to many; what is masked stays white, and ink is readable on all of it."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("blues", [_FEW, _MANY])
    return shades.with_extremes(bad="white")


def draw_counts(
    axes: Axes, counts: IntArray, values: FloatArray, rows: Sequence[str], **style: Any
) -> AxesImage:
    """Draw a matrix of counts as blue cells with their numbers; white means none.

    Args:
        axes: to draw on.
        counts: int64 (m, n), printed where the cells have room for them.
        values: (m, n), what a cell is shaded by.
        rows: the m names beside the rows; of many only every second or third is written.
        style: more arguments of ``imshow``, such as ``norm``.
    """
    import numpy as np

    shown = np.ma.masked_where(counts == 0, values)
    image = axes.imshow(shown, cmap=blues(), interpolation="none", aspect="auto", **style)
    step = -(-len(rows) // _NAMES)
    axes.set_yticks(np.arange(0, len(rows), step), list(rows)[::step], fontsize=8)
    if counts.shape[1] <= _CELLS and counts.shape[0] <= _CELLS:
        size = 7 if max(counts.shape) <= _CELLS // 2 else 5
        for i, j in np.argwhere(counts):
            axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=size, color=INK)
    axes.text(
        1, 1.01, "white: none", transform=axes.transAxes, ha="right", va="bottom", fontsize=8,
        color="0.4",
    )  # fmt: skip
    return image


def save_figure(figure: Figure, path: Path) -> None:
    """Write it as PNG or, by the path's suffix, as SVG or PDF, whole or not at all."""
    kind = path.suffix.lower().removeprefix(".")
    kind = kind if kind in ("svg", "pdf") else "png"
    write_atomic(path, lambda temporary: figure.savefig(temporary, format=kind))
