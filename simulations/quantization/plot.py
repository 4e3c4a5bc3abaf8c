"""The report as a plot: accuracy against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.backbone.architectures import architecture
from common.plots import INK, SERIES, new_figure, save_figure
from simulations.quantization.report import Report, Row

__all__ = ["draw"]

_MARKERS = {
    ("torchscript", ""): "o",
    ("torchscript", "qnnpack"): "s",
    ("torchscript", "x86"): "D",
    ("onnx", ""): "^",
    ("executorch", ""): "v",
}
# Of as many modes as there are.
_COLOURS = (*SERIES, "#56b4e9", INK)


def draw(report: Report, path: Path) -> None:
    """Write the plot; a backbone without pretrained weights shows the cosine instead.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(7 * len(report.weights), 5.5, purpose="drawing the quantize report")
    modes = list(dict.fromkeys(row.mode for row in report.rows))
    panels = figure.subplots(1, len(report.weights), squeeze=False)[0]
    for axes, arch in zip(panels, report.weights, strict=True):
        _panel(axes, [row for row in report.rows if row.arch == arch], modes)
        axes.set_title(f"{architecture(arch).title}, {report.input_size} px, {report.source}")
    _legend(panels[0], report.rows, modes)
    save_figure(figure, path)


def _panel(axes: Any, rows: Sequence[Row], modes: Sequence[str]) -> None:
    measured = rows[0].accuracy is not None
    for row in rows:
        if row.runtime == "lite":
            continue  # lies on its TorchScript file
        axes.scatter(
            row.file_bytes / 1e6,
            100 * row.accuracy if row.accuracy is not None else row.cosine,
            marker=_MARKERS[row.runtime, row.engine],
            color=_COLOURS[modes.index(row.mode) % len(_COLOURS)],
            s=50,
            alpha=0.8,
            linewidths=0,
        )
    axes.set_xlabel("file, MB")
    axes.set_ylabel("accuracy of ridge heads, %" if measured else "cosine to fp32 (random weights)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Any, rows: Sequence[Row], modes: Sequence[str]) -> None:
    """Colours are modes, shapes are runtimes."""
    from matplotlib.lines import Line2D

    def dot(label: str, **style: Any) -> Any:
        return Line2D([], [], linestyle="", label=label, **style)

    entries = [
        dot(mode, marker="o", color=_COLOURS[i % len(_COLOURS)]) for i, mode in enumerate(modes)
    ]
    kinds = dict.fromkeys((row.runtime, row.engine) for row in rows if row.runtime != "lite")
    entries += [
        dot(" ".join(filter(None, kind)), marker=_MARKERS[kind], color="0.4") for kind in kinds
    ]
    # Below the axes, where no mark can lie under it.
    axes.legend(
        handles=entries, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3,
        frameon=False,
    )  # fmt: skip
