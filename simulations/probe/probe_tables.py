"""A probe for the terminal and for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from simulations.probe.measure import Probe
from simulations.probe.options import Option, named, recommended, toml_lines
from simulations.probe.tuned import Tuned
from simulations.probe.verdict import Verdict

__all__ = ["as_json", "fine_tuning", "tables"]


def tables(
    probe: Probe, verdict: Verdict, options: Sequence[Option], tuned: Tuned | None, command: str
) -> Iterator[RenderableType]:
    """Figures, learning curve, confusions, the answer, fine-tuning and options if there are any.

    Args:
        probe: the figures.
        verdict: the answer.
        options: choices of [backbone].
        tuned: what fine-tuning gives; None: it was not tried.
        command: makes a fine-tuned backbone.
    """
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
    if options:
        yield from _comparison(options, probe)
    if tuned:
        yield from fine_tuning(tuned, command)


def fine_tuning(tuned: Tuned, command: str) -> Iterator[RenderableType]:
    """The frozen and the fine-tuned backbone, and how to make the latter."""
    settings = tuned.settings
    what = f"{settings.arch}, {settings.input_size} px, {named(settings.features)}"
    table = Table(title=f"Fine-tuning {what}", title_justify="left")
    table.add_column("int8 backbone")
    table.add_column(f"{len(tuned.tuned):,} test images", justify="right")
    table.add_row("frozen as pretrained", f"{tuned.frozen.mean():.1%}")
    trained = f"{tuned.epochs} epochs of {tuned.num_train:,} images"
    table.add_row(f"fine-tuned, {trained}", f"{tuned.tuned.mean():.1%}")
    yield table
    yield Text(f"Fine-tuning gains {tuned.gain}. With public images, never with clients' own:")
    yield Padding(Text(command), (0, 0, 0, 2))


def _comparison(options: Sequence[Option], probe: Probe) -> Iterator[RenderableType]:
    """The options with their cost, what more pixels gain, and the lines to run the best."""
    archs = dict.fromkeys(option.settings.arch for option in options)
    title = f"Choices of {', '.join(archs)}, on {len(options[0].right):,} images"
    table = Table(title=title, title_justify="left")
    table.add_column("choice", overflow="fold")
    for name in ("accuracy", "ms", "MB", "once, MB", "a round, kB"):
        table.add_column(name, justify="right")
    for option in options:
        low, high = option.interval
        settings = option.settings
        arch = f"{settings.arch} " if len(archs) > 1 else ""
        table.add_row(
            f"{arch}{settings.input_size} px {option.features}",
            f"{option.accuracy:.1%} ±{50 * (high - low):.1f}",
            f"{option.latency_ms:.0f}",
            f"{option.model_bytes / 1e6:.1f}",
            f"{option.statistics_bytes / 1e6:.2f}",
            f"{option.update_bytes / 1e3:.0f}",
        )
    yield table
    yield Text("ms: one image on one core here. Sent: by fed3r once, by FedAvg each round.")
    first = options[0]
    for option in options[1:]:
        a, b = option.settings, first.settings
        if (a.arch, option.features) == (b.arch, first.features):
            line = f"{a.input_size} px instead of {b.input_size}: {option.gain_over(first)}."
            yield Padding(line, (0, 0, 0, 2))
    yield Text("The cheapest that is not clearly worse, as lines of an experiment:", style="bold")
    yield Text(_recommended(options, probe))


def _figures(probe: Probe) -> Table:
    low, high = probe.interval
    spec = probe.backbone.spec
    tested = "linear head, its test part" if probe.has_own_test else "linear head, 5 folds"
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("data", f"{probe.source}, {probe.num_examples} images, {len(probe.classes)} classes"),
        ("backbone", f"{spec.arch}, int8 ({spec.engine}), {spec.input_size} px, {spec.weights}"),
        (tested, f"{probe.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"),
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


def as_json(
    probe: Probe, verdict: Verdict, options: Sequence[Option], tuned: Tuned | None, command: str
) -> dict[str, Any]:
    """All figures as plain values; the arguments are those of ``tables``."""
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
        "has_own_test": probe.has_own_test,
        "penalty": probe.penalty,
        "doubling": asdict(probe.doubling),
        "fine_tuning": _tuned(tuned, command) if tuned else None,
        "options": [_option(option) for option in options],
        "recommended": _recommended(options, probe) if options else "",
        "curve": [asdict(point) for point in probe.curve],
        "confusion": probe.confusion.tolist(),
        **asdict(verdict),
    }


def _recommended(options: Sequence[Option], probe: Probe) -> str:
    return toml_lines(recommended(options), probe.source, probe.num_examples)


def _tuned(tuned: Tuned, command: str) -> dict[str, Any]:
    return {
        "arch": tuned.settings.arch,
        "input_size": tuned.settings.input_size,
        "features": named(tuned.settings.features),
        "examples": len(tuned.tuned),
        "training_examples": tuned.num_train,
        "epochs": tuned.epochs,
        "frozen_accuracy": float(tuned.frozen.mean()),
        "accuracy": float(tuned.tuned.mean()),
        "gain": asdict(tuned.gain),
        "command": command,
    }


def _option(option: Option) -> dict[str, Any]:
    settings = option.settings
    return {
        "arch": settings.arch,
        "input_size": settings.input_size,
        "features": option.features,
        "accuracy": option.accuracy,
        "accuracy_interval": list(option.interval),
        "multiplications": option.multiplications,
        "latency_ms": option.latency_ms,
        "model_bytes": option.model_bytes,
        "statistics_bytes": option.statistics_bytes,
        "update_bytes": option.update_bytes,
    }
