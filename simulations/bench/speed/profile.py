"""Measures an exported model on this machine: time per layer, speed and memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from common.backbone.frozen import probe_images
from common.files import write_atomic
from common.machine import cores
from common.progress import stage
from server.export.card import Card, read_card
from simulations.bench.speed.layers import Layer, layers
from simulations.bench.speed.measure import Job, Measured, run_file, run_script

__all__ = ["Profile", "profile_model"]

_BATCHES = (1, 2, 4, 8, 16)
_CALLS = 15
_WARM_UP = 3


@dataclass(frozen=True, eq=False)
class Profile:
    """A model's measurements.

    Attributes:
        model: the file.
        card: the file's card.
        engine: quantized engine that ran it.
        layers: layers in the order of computation, for one image on one thread.
        measured: speed for numbers of threads and batch sizes, and memory.
        trace: file for chrome://tracing or ui.perfetto.dev.
    """

    model: Path
    card: Card
    engine: str
    layers: tuple[Layer, ...]
    measured: Measured
    trace: Path


def profile_model(model: Path, *, engine: str, trace: Path) -> Profile:
    """Measure a ``model.pt``; each measurement in a process of its own.

    Args:
        model: exported by fedhead.
        engine: quantized engine; "": the card's engine, which computes the phone's bits.
        trace: file to write the profiler's trace to.

    Raises:
        ExportError: the file is damaged, is not an export of fedhead, or does not run.
    """
    card = read_card(model)
    engine = engine or card.engine
    images = probe_images(card.input_size)  # time and memory do not depend on the pixels
    with tempfile.TemporaryDirectory(prefix="fedhead-profile-") as name:
        pixels, recorded = Path(name) / "images", Path(name) / "trace.json"
        images.tofile(pixels)
        job = {
            "file": str(model),
            "engine": engine,
            "threads": 1,
            "images": {"path": str(pixels), "shape": images.shape},
            "warm_up": _WARM_UP,
            "calls": _CALLS,
            "trace": str(recorded),
        }
        with stage("tracing layers"):
            kernels = run_script("run_trace.py", job)["kernels"]
        found = layers(recorded, _CALLS, kernels)
        write_atomic(trace, recorded.read_bytes())
    threads = tuple(sorted({1, 2, cores()}))
    with stage("measuring speed and memory"):
        measured = run_file(Job(model, "torchscript", engine, threads, _BATCHES), images)
    return Profile(model, card, engine, tuple(found), measured, trace)
