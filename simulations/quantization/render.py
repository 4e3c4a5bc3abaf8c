"""The report as Markdown and as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from common.backbone.architectures import architecture
from common.tables import Fitted
from simulations.quantization.build import FP16, FP32, POST_TRAINING, QAT
from simulations.quantization.report import Report, Row

__all__ = ["as_json", "markdown", "notes", "tables"]

_HEADER = (
    "| mode | runtime | engine | MB | ms, 1 thread | ms, 2 threads | memory MB "
    "| cosine to fp32 | accuracy | to fp32, points |\n"
    "|---|---|---|--:|--:|--:|--:|--:|--:|--:|"
)
_SHORT = {"torchscript": "torch", "lite": "lite", "onnx": "ONNX", "executorch": "ExecuTorch"}
_QUARTER = 0.3  # of the size: what still counts as one
_PHONE_MACHINES = ("arm64", "aarch64")


def markdown(report: Report) -> str:
    """A table for each backbone, and what the figures say."""
    lines = ["# What makes a backbone small, and what it costs", ""]
    lines += [
        f"{report.examples} images of {report.source}, {report.input_size} px, "
        f"{report.machine}, torch {report.versions['torch']}. "
        "Files hold the backbone without its head; each ran in a fresh process with its runtime "
        "alone. Latency: median for one image. Memory: how far loading and one image raised "
        "the process's peak. Accuracy: ridge heads on the features, mean over five draws of "
        "five folds, the same for all; nothing was calibrated, pruned or distilled on these "
        "images.",
    ]
    for arch in report.weights:
        lines += [
            "",
            f"## {architecture(arch).title}",
            "",
            f"Weights: {report.weights[arch]}.",
            "",
            _HEADER,
        ]
        lines += [_line(row) for row in report.rows if row.arch == arch]
    lines += ["", "## What the figures say", ""]
    lines += [f"- {note}" for note in notes(report)]
    return "\n".join(lines) + "\n"


def tables(report: Report) -> Iterator[Fitted]:
    """The same for a terminal of 80 columns."""
    for arch in report.weights:
        table = Table(
            title=architecture(arch).title,
            title_justify="left",
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
        )
        table.add_column("mode", max_width=13)
        table.add_column("runtime")
        for name in ("MB", "ms", "2 thr.", "mem.", "cosine", "accuracy", "points"):
            table.add_column(name, justify="right", no_wrap=True)
        before, own = "", [row for row in report.rows if row.arch == arch]
        errors = [row.difference_error for row in own if row.difference_error is not None]
        if errors:
            table.caption_justify = "left"
            table.caption = (
                f"heads on {report.examples:,} images; points to fp32: "
                f"± {100 * max(errors):.2f} at most (standard error)"
            )
        for row in own:
            if before and row.mode != before:
                table.add_section()
            table.add_row(
                row.mode if row.mode != before else "",
                f"{_SHORT[row.runtime]} {row.engine}".strip(),
                f"{row.file_bytes / 1e6:.2f}",
                f"{row.latency_ms[1]:.1f}",
                f"{row.latency_ms[2]:.1f}",
                f"{row.memory_bytes / 1e6:.0f}",
                f"{row.cosine:.4f}",
                "-" if row.accuracy is None else f"{row.accuracy:.2%}",
                "-" if row.difference is None else f"{100 * row.difference:+.2f}",
            )
            before = row.mode
        yield Fitted(table, ("mem.", "2 thr.", "cosine", "points"))


def _line(row: Row) -> str:
    accuracy = "not measured" if row.accuracy is None else f"{row.accuracy:.2%}"
    difference = "-"
    if row.difference is not None and row.difference_error is not None and row.mode != FP32:
        difference = f"{100 * row.difference:+.2f} ± {100 * row.difference_error:.2f}"
    cells = (
        row.mode,
        row.runtime,
        row.engine or "-",
        f"{row.file_bytes / 1e6:.2f}",
        f"{row.latency_ms[1]:.1f}",
        f"{row.latency_ms[2]:.1f}",
        f"{row.memory_bytes / 1e6:.0f}",
        f"{row.cosine:.4f}",
        accuracy,
        difference,
    )
    return f"| {' | '.join(cells)} |"


def notes(report: Report) -> Iterator[str]:
    """Sentences that a reader would otherwise have to work out, each from the figures."""
    for arch in report.weights:
        own = {(row.mode, row.runtime, row.engine): row for row in report.rows if row.arch == arch}
        yield from _about(architecture(arch).title, own)
    *own_networks, resnet = report.dynamic
    whole = ", ".join(
        f"{architecture(sizes.name).title} from {_mb(sizes.before_bytes)} to "
        f"{_mb(sizes.after_bytes)}"
        for sizes in own_networks
    )
    yield "Dynamic quantization replaces Linear layers alone, and a backbone has none." + (
        f" With ImageNet's classifier it takes {whole}." if whole else ""
    )
    if resnet.after_bytes > _QUARTER * resnet.before_bytes:
        yield (
            "The article's table has dynamic quantization take a model from 44 to 11 MB. That does "
            f"not hold: ResNet18, which has that size, goes from {_mb(resnet.before_bytes)} to "
            f"{_mb(resnet.after_bytes)}. For a quarter the convolutions must be int8, too: "
            "post-training quantization (PTQ) or QAT."
        )
    if report.machine.lower() not in _PHONE_MACHINES:
        yield (
            "qnnpack is made for a phone's arm64, where it gives the same bits as here; its "
            f"latency on {report.machine} says nothing about a phone."
        )
    for arch, label in report.weights.items():
        if label == "random":
            yield (
                f"{architecture(arch).title}: accuracy is not measured, for its weights are "
                f"random. With the pretrained file: --weights {arch}=file:PATH."
            )
    for runtime in report.missing:
        yield f"{runtime} is left out: pip install 'fedhead[{runtime}]'"


def _about(name: str, rows: dict[tuple[str, str, str], Row]) -> Iterator[str]:
    fp32, half = rows[FP32, "torchscript", ""], rows[FP16, "torchscript", ""]
    slower = half.latency_ms[1] / fp32.latency_ms[1]
    shrunk = fp32.file_bytes / half.file_bytes
    if slower > 1:
        yield (
            f"{name} in fp16 is {shrunk:.1f} times smaller and {slower:.1f} times slower than in "
            "fp32: this processor computes no halves."
        )
    for row in rows.values():
        if row.runtime == "torchscript" and row.engine == "qnnpack" and row.mode != POST_TRAINING:
            yield _smaller(name, row, fp32)
    qat, plain = (rows.get((mode, "torchscript", "qnnpack")) for mode in (QAT, POST_TRAINING))
    if qat and plain and qat.cosine == plain.cosine:
        yield (
            f"{name} on qnnpack: training did not bring the quantized network closer to the float "
            "one, so QAT kept what it began with, the post-training one."
        )
    fastest = min(
        (row for row in rows.values() if "pruned" not in row.mode),
        key=lambda row: row.latency_ms[1],
    )
    engine = f" ({fastest.engine})" if fastest.engine else ""
    yield (
        f"Fastest here unpruned on one thread: {name}, {fastest.mode}, {fastest.runtime}{engine}, "
        f"{fastest.latency_ms[1]:.1f} ms against {fp32.latency_ms[1]:.1f} ms in fp32 TorchScript."
    )
    whole, onnx = (rows.get((mode, "onnx", "")) for mode in (FP32, POST_TRAINING))
    if whole and onnx and onnx.latency_ms[1] > whole.latency_ms[1]:
        yield f"On ONNX Runtime {name} is no faster in int8 than in fp32 here, only smaller."


def _smaller(name: str, row: Row, fp32: Row) -> str:
    shrunk = fp32.file_bytes / row.file_bytes
    sentence = f"{name}, {row.mode} on qnnpack, is {shrunk:.1f} times smaller than fp32"
    if row.difference is not None and row.difference_error is not None:
        sentence += (
            f", its heads {100 * row.difference:+.2f} points (± {100 * row.difference_error:.2f}, "
            "one standard error) from fp32's on the same folds"
        )
    return sentence + "."


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def as_json(report: Report) -> dict[str, Any]:
    """All figures as plain values, and the sentences."""
    return {**asdict(report), "notes": list(notes(report))}
