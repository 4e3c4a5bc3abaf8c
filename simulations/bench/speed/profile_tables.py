"""A profile for the terminal and for other programs."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from common.tables import Fitted
from simulations.bench.speed.layers import time_by_kind
from simulations.bench.speed.profile import Profile

__all__ = ["as_json", "tables"]

_SLOWEST = 12
_ARM = ("arm64", "aarch64")


def tables(profile: Profile) -> Iterator[RenderableType]:
    """Time by kind and by layer, speed, memory."""
    card, total = profile.card, sum(layer.milliseconds for layer in profile.layers)
    yield (
        f"{profile.model.name}: {card.arch}, {card.input_size} px, "
        f"quantized engine {profile.engine}, {platform.machine()}"
    )
    kinds = _table(f"One image on one thread: {total:.2f} ms", "kind")
    for name in ("layers", "ms", "share"):
        kinds.add_column(name, justify="right")
    for kind, (count, milliseconds, share) in time_by_kind(profile.layers).items():
        kinds.add_row(kind, str(count), f"{milliseconds:.2f}", f"{share:.1%}")
    yield kinds
    yield Fitted(_slowest(profile), ("input", "what"))
    yield _speed(profile)
    measured = profile.measured
    yield (
        f"loading {1000 * measured.load_seconds:.0f} ms; memory beyond the runtime: "
        f"{measured.memory_bytes / 1e6:.0f} MB for one image, "
        f"{measured.peak_memory_bytes / 1e6:.0f} MB at the peak"
    )
    if profile.engine == "qnnpack" and platform.machine().lower() not in _ARM:
        yield "qnnpack is made for a phone's arm64: its speed here says nothing about a phone."


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    return table


def _slowest(profile: Profile) -> Table:
    table = _table(f"The {_SLOWEST} slowest of {len(profile.layers)} layers", "layer")
    table.add_column("what")
    table.add_column("input")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    order = sorted(profile.layers, key=lambda layer: -layer.milliseconds)
    for layer in order[:_SLOWEST]:
        shape = "x".join(map(str, layer.shape[1:]))
        name = layer.name or "(the model itself)"
        milliseconds = f"{layer.milliseconds:.2f}"
        table.add_row(name, layer.kind, shape, milliseconds, f"{layer.share:.1%}")
    return table


def _speed(profile: Profile) -> Table:
    timings = profile.measured.timings
    batches = sorted({timing.batch for timing in timings})
    table = _table("Images per second by images a call", "threads")
    for batch in batches:
        table.add_column(str(batch), justify="right")
    for threads in sorted({timing.threads for timing in timings}):
        row = [timing for timing in timings if timing.threads == threads]
        by_batch = {timing.batch: timing.images_per_second for timing in row}
        table.add_row(str(threads), *(f"{by_batch[batch]:.0f}" for batch in batches))
    return table


def as_json(profile: Profile) -> dict[str, Any]:
    """All figures as plain values."""
    measured = profile.measured
    return {
        "model": str(profile.model.resolve()),
        "arch": profile.card.arch,
        "input_size": profile.card.input_size,
        "engine": profile.engine,
        "machine": platform.machine(),
        "layers": [{**asdict(layer), "kind": layer.kind} for layer in profile.layers],
        "speed": [
            {**asdict(timing), "images_per_second": timing.images_per_second}
            for timing in measured.timings
        ],
        "load_seconds": measured.load_seconds,
        "memory_bytes": measured.memory_bytes,
        "peak_memory_bytes": measured.peak_memory_bytes,
        "trace": str(profile.trace.resolve()),
    }
