"""Measures size, speed, memory and accuracy of every file, one after the other."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.backbone.architectures import architecture
from common.backbone.frozen import UInt8Array
from common.backbone.int8 import Normalization
from common.config import Config
from common.errors import ExportError
from common.experiment import calibration_positions, experiment_dataset
from common.machine import cores, versions
from common.progress import track
from common.types import FloatArray, IntArray
from server.export.other_runtime import OTHER_RUNTIMES, is_installed
from simulations.bench.speed import Job, Measured, run_file
from simulations.compare.pool import process_pool
from simulations.probe.crossval import sample
from simulations.quantization.build import FP32, Candidate, Task, build
from simulations.quantization.claims import DynamicSizes, dynamic_sizes
from simulations.quantization.weights import at_hand
from simulations.quantization.yardstick import Accuracy, Yardstick

__all__ = ["Report", "Row", "quantize_report"]

_THREADS = (1, 2)
_WITHOUT_ACCURACY = 512  # images; enough for a cosine
_SAME = 64  # images on which the lite interpreter must give TorchScript's features
_SECONDS = 0.5


@dataclass(frozen=True)
class Row:
    """One file of the table.

    Attributes:
        arch: the backbone's architecture.
        mode: the way in which it was made small.
        runtime: the runtime that ran it.
        engine: torch's quantized engine; "" for other runtimes.
        file_bytes: the file's size.
        latency_ms: median for one image, by number of threads.
        memory_bytes: growth of a fresh process's peak memory by loading the file and running it on
            one image.
        cosine: mean cosine of an image's features to the float ones.
        accuracy: of ridge heads on its features, see ``Yardstick``; None: not measured.
        difference: difference of the accuracy to fp32's.
        difference_error: standard error of that difference.
    """

    arch: str
    mode: str
    runtime: str
    engine: str
    file_bytes: int
    latency_ms: Mapping[int, float]
    memory_bytes: int
    cosine: float
    accuracy: float | None
    difference: float | None
    difference_error: float | None


@dataclass(frozen=True)
class Report:
    """All measurements.

    Attributes:
        source: the data set's source.
        examples: number of images that heads were tested on.
        input_size: in pixels.
        machine: processor architecture.
        versions: versions of Python and packages.
        weights: label of each backbone's weights.
        missing: runtimes that are not installed.
        rows: in the order of the modes.
        dynamic: sizes of torchvision's whole classifiers before and after dynamic quantization.
    """

    source: str
    examples: int
    input_size: int
    machine: str
    versions: Mapping[str, str]
    weights: Mapping[str, str]
    missing: tuple[str, ...]
    rows: tuple[Row, ...]
    dynamic: tuple[DynamicSizes, ...]


def quantize_report(config: Config, weights: Mapping[str, str], *, examples: int) -> Report:
    """Build and measure all files; this takes minutes.

    Files are built, and features computed, in several processes at once. Speed and memory are
    measured for one file after the other.

    Args:
        config: an experiment's configuration; only [data], backbone.input-size, mean, std and the
            seed are used.
        weights: weights of each backbone; "": pretrained ones if they are at hand.
        examples: largest number of images to test heads on. Networks are not calibrated, pruned or
            distilled on these.

    Raises:
        BackboneError: the weights cannot be used.
        ExportError: a file does not run, or the lite interpreter differs from TorchScript.
    """
    dataset = experiment_dataset(config)
    size, seed = config.backbone.input_size, config.data_seed
    found = {arch: at_hand(arch, given) for arch, given in weights.items()}
    quantized_on = calibration_positions(config)
    others = np.setdiff1d(np.arange(len(dataset)), quantized_on)
    positions = others[sample(dataset.labels[others], examples, seed)]
    images, labels = dataset.images(positions, size), dataset.labels[positions]
    calibration = dataset.images(quantized_on, size)
    with tempfile.TemporaryDirectory(prefix="fedhead-quantize-") as name:
        tasks = [
            Task(
                arch,
                found[arch].name,
                size,
                Normalization(*config.backbone.normalization(arch)),
                seed,
                Path(name),
            )
            for arch in weights
        ]
        candidates = _build(tasks, calibration)
        measured = {arch: found[arch].pretrained for arch in weights}
        features = _features(candidates, images, measured)
        speeds = [
            run_file(_job(candidate, _THREADS), images[:1])
            for candidate in track(candidates, "Speed and memory", len(candidates))
        ]
        rows = _rows(candidates, features, speeds, labels, measured, seed)
    classifiers = [arch for arch in weights if architecture(arch).enum]
    return Report(
        source=config.data.source,
        examples=len(positions),
        input_size=size,
        machine=platform.machine(),
        versions=versions(("fedhead", "torch", "torchvision", "onnxruntime", "executorch")),
        weights={arch: found[arch].label for arch in weights},
        missing=tuple(name for name in OTHER_RUNTIMES if not is_installed(name)),
        rows=tuple(rows),
        dynamic=tuple(dynamic_sizes((*classifiers, "resnet18"))),
    )


def _build(tasks: Sequence[Task], calibration: UInt8Array) -> list[Candidate]:
    with process_pool(min(cores(), len(tasks))) as pool:
        running = [pool.submit(build, task, calibration) for task in tasks]
        return [
            candidate
            for future in track(running, "Building", len(running))
            for candidate in future.result()
        ]


def _features(
    candidates: Sequence[Candidate], images: UInt8Array, measured: Mapping[str, bool]
) -> list[FloatArray]:
    """Each file's features; the lite interpreter's are only checked to be TorchScript's."""

    def compute(candidate: Candidate) -> FloatArray:
        count = len(images) if measured[candidate.arch] else min(len(images), _WITHOUT_ACCURACY)
        count = min(count, _SAME) if candidate.runtime == "lite" else count
        found = run_file(_job(candidate, ()), images[:count], features=True).features
        return _in_feature_space(candidate, found)

    with ThreadPoolExecutor(cores()) as pool:
        running = pool.map(compute, candidates)
        result = list(track(running, "Features", len(candidates)))
    for i, candidate in enumerate(candidates):
        if candidate.runtime == "lite":  # it comes after its TorchScript file
            _check_same(candidate, result[i], result[i - 1])
            result[i] = result[i - 1]
    return result


def _in_feature_space(candidate: Candidate, found: FloatArray | None) -> FloatArray:
    if found is None or not np.isfinite(found).all():
        raise ExportError(f"{candidate.file.name} gives features that are not finite")
    return found if candidate.affine is None else candidate.affine(found.astype(np.uint8))


def _check_same(candidate: Candidate, lite: FloatArray, script: FloatArray) -> None:
    off = float(np.abs(lite - script[: len(lite)]).max())
    # Int8 features must agree bit for bit, float features up to their type's precision.
    allowed = 0.0 if candidate.affine is not None else 0.01 * float(np.abs(script).max())
    if off > allowed:
        raise ExportError(
            f"{candidate.file.name}: features are off by {off:.3g} from TorchScript's"
        )


def _job(candidate: Candidate, threads: tuple[int, ...]) -> Job:
    return Job(
        candidate.file, candidate.runtime, candidate.engine, threads=threads, seconds=_SECONDS
    )


def _rows(
    candidates: Sequence[Candidate],
    features: Sequence[FloatArray],
    speeds: Sequence[Measured],
    labels: IntArray,
    measured: Mapping[str, bool],
    seed: int,
) -> list[Row]:
    """Compare each file with its backbone's fp32 TorchScript, which comes first."""
    rows: list[Row] = []
    found: Accuracy | None = None
    for candidate, x, speed in zip(candidates, features, speeds, strict=True):
        known = measured[candidate.arch]
        if candidate.mode == FP32 and candidate.runtime == "torchscript":
            yardstick = Yardstick(x, labels if known else None, seed)
        if candidate.runtime != "lite":  # its features are those of the file before
            found = yardstick.accuracy(x)
        rows.append(
            Row(
                arch=candidate.arch,
                mode=candidate.mode,
                runtime=candidate.runtime,
                engine=candidate.engine,
                file_bytes=candidate.file.stat().st_size,
                latency_ms={t.threads: 1000 * t.seconds for t in speed.timings},
                memory_bytes=speed.memory_bytes,
                cosine=yardstick.cosine(x),
                accuracy=found.accuracy if found else None,
                difference=found.difference if found else None,
                difference_error=found.difference_error if found else None,
            )
        )
    return rows
