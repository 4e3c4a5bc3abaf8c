"""Plots of results, drawn without a screen. Needs matplotlib, which an extra installs."""

from __future__ import annotations

import errno
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import MissingExtraError
from common.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_drawable", "new_figure", "save_figure"]


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


def save_figure(figure: Figure, path: Path) -> None:
    """Write it as PNG or, by the path's suffix, as SVG or PDF, whole or not at all."""
    kind = path.suffix.lower().removeprefix(".")
    kind = kind if kind in ("svg", "pdf") else "png"
    write_atomic(path, lambda temporary: figure.savefig(temporary, format=kind))
