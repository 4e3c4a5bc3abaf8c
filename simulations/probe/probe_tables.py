"""A probe for the terminal and for other programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from simulations.probe.measure import Probe
from simulations.probe.verdict import Verdict

__all__ = ["as_json", "tables"]


def tables(probe: Probe, verdict: Verdict) -> Iterator[RenderableType]:
    """Figures, learning curve, confusions and the answer."""
    yield _figures(probe)
    yield _curve(probe)
    if mistakes := probe.mistakes():
        table = Table("true class", "taken for", title="Commonest mistakes", title_justify="left")
        table.add_column("times", justify="right")
        table.add_column("of the class", justify="right")
        for true, predicted, count, share in mistakes:
            table.add_row(true, predicted, str(count), f"{share:.1%}")
        yield table
    yield Text(verdict.headline, style="bold")
    for sentence in (*verdict.reasons, verdict.advice):
        if sentence:
            yield Padding(sentence, (0, 0, 0, 2))


def _figures(probe: Probe) -> Table:
    low, high = probe.interval
    spec = probe.backbone.spec
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("data", f"{probe.source}, {probe.num_examples} images, {len(probe.classes)} classes"),
        ("backbone", f"{spec.arch}, int8 ({spec.engine}), {spec.input_size} px, {spec.weights}"),
        ("linear head, 5 folds", f"{probe.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"),
        ("the same on what it trained on", f"{probe.training_accuracy:.1%}"),
        ("nearest neighbours", f"{probe.neighbours:.1%}"),
        ("linear head on bare pixels", f"{probe.pixels:.1%}"),
        ("always the commonest class", f"{probe.commonest:.1%}"),
    ):
        table.add_row(name, value)
    return table


def _curve(probe: Probe) -> Table:
    table = Table(title="Accuracy over training images of each class", title_justify="left")
    table.add_column("training images", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("worst to best fold", justify="right")
    for point in probe.curve:
        spread = f"{point.low:.1%} to {point.high:.1%}"
        table.add_row(f"{point.examples:.0f}", f"{point.accuracy:.1%}", spread)
    return table


def as_json(probe: Probe, verdict: Verdict) -> dict[str, Any]:
    """All figures as plain values."""
    spec = probe.backbone.spec
    return {
        "source": probe.source,
        "arch": spec.arch,
        "weights": spec.weights,
        "engine": spec.engine,
        "input_size": spec.input_size,
        "fingerprint": probe.backbone.fingerprint,
        "examples": probe.num_examples,
        "classes": list(probe.classes),
        "accuracy": probe.accuracy,
        "accuracy_interval": list(probe.interval),
        "training_accuracy": probe.training_accuracy,
        "neighbours_accuracy": probe.neighbours,
        "pixels_accuracy": probe.pixels,
        "commonest_class": probe.commonest,
        "curve": [asdict(point) for point in probe.curve],
        "confusion": probe.confusion.tolist(),
        **asdict(verdict),
    }
