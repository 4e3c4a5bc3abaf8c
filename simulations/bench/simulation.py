"""``fedhead bench simulation``: one round of local training, here and in two other frameworks."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from common.errors import FedheadError, MissingExtraError
from common.files import cache_root
from common.machine import cores
from common.progress import track
from common.tables import Fitted
from simulations.bench.memory import PeakMemory
from simulations.bench.work import Result, Work, head_file, write_data

__all__ = ["Measurement", "bench_simulation", "show", "to_json"]

RUNNERS = ("fedhead", "flower", "pfl")
_NEEDS = {"flower": "ray", "pfl": "pfl"}
# Largest distance of heads that saw the same examples equally often but in other orders, and the
# difference in accuracy that goes with it. The test shows the distance of a head with less work.
_HEAD_TOLERANCE = 0.15
_ACCURACY_TOLERANCE = 0.01
_LARGEST_FOR_PEERS = 10_000


@dataclass(frozen=True)
class Measurement:
    """One runner at one size.

    Attributes:
        runner: "fedhead", "flower" or "pfl".
        clients: number of clients in each round.
        result: the result that it printed.
        peak_bytes: peak anonymous memory of all its processes together.
    """

    runner: str
    clients: int
    result: Result
    peak_bytes: int

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.result.round_seconds)

    @property
    def ms_per_client(self) -> float:
        return 1e3 * self.median_seconds / self.clients

    @property
    def floor_ratio(self) -> float | None:
        """A round's time over that of the two products that read every feature; None for peers."""
        if not self.result.floor_seconds:
            return None
        return self.median_seconds / statistics.median(self.result.floor_seconds)


def bench_simulation(
    sizes: Sequence[int], scaling: Sequence[int], *, rounds: int
) -> list[Measurement]:
    """Measure all runners at ``sizes``, and only ours at ``scaling``.

    Raises:
        MissingExtraError: a peer is not installed.
        FedheadError: a runner failed, or heads differ in accuracy.
    """
    for runner, package in _NEEDS.items():
        if sizes and importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "bench", f"the comparison with {runner}")
    if sizes and max(sizes) > _LARGEST_FOR_PEERS:
        raise FedheadError(
            f"{max(sizes)} clients would keep Flower busy for hours: at most "
            f"{_LARGEST_FOR_PEERS} in --sizes, more in --scaling"
        )
    wanted: dict[int, tuple[str, ...]] = dict.fromkeys(scaling, RUNNERS[:1])
    wanted |= dict.fromkeys(sizes, RUNNERS)
    measurements: list[Measurement] = []
    for size, runners in track(sorted(wanted.items()), "Benchmark", len(wanted)):
        cache_root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=cache_root()) as folder:
            description = write_data(Work(folder, size, rounds))
            done = [_run(runner, description, size) for runner in runners]
            _check(done, Path(folder))
            measurements += done
    return measurements


def _run(runner: str, description: Path, clients: int) -> Measurement:
    module = ["-m", f"simulations.bench.run_{runner}", str(description)]
    if runner == "pfl":  # one process for each core, as in pfl's documentation
        module = ["-m", "torch.distributed.run", "--nproc-per-node", str(cores()), *module]
    with (description.parent / f"{runner}.log").open("w+") as log:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, *module], stdout=log, stderr=subprocess.STDOUT, env=_environment()
        )
        with PeakMemory(process.pid) as memory:
            status = process.wait()
        log.seek(0)
        lines = log.read().splitlines()
    for line in reversed(lines):
        if line.startswith('{"round_seconds"'):
            fields = json.loads(line)
            for name in ("round_seconds", "floor_seconds"):
                fields[name] = tuple(fields[name])
            return Measurement(runner, clients, Result(**fields), memory.peak_bytes)
    reason = next((line for line in reversed(lines) if line.strip()), "no output")
    raise FedheadError(f"{runner} with {clients} clients failed (exit code {status}): {reason}")


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    search = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(search),
        "PYTHONWARNINGS": "ignore",
        "RAY_DEDUP_LOGS": "0",
    }


def _check(measurements: Sequence[Measurement], folder: Path) -> None:
    accuracies = {m.runner: m.result.accuracy for m in measurements}
    if max(accuracies.values()) - min(accuracies.values()) > _ACCURACY_TOLERANCE:
        raise FedheadError(f"the runners did not do the same work: accuracies {accuracies}")
    ours, *others = (np.load(head_file(folder, m.runner)) for m in measurements)
    for other, peer in zip(others, measurements[1:], strict=True):
        distance = float(np.linalg.norm(other - ours) / np.linalg.norm(ours))
        if distance > _HEAD_TOLERANCE:
            raise FedheadError(
                f"{peer.runner} did not do the same work: its head is {distance:.0%} away from ours"
            )


def _by_size(measurements: Sequence[Measurement], runner: str) -> dict[int, Measurement]:
    return {m.clients: m for m in measurements if m.runner == runner}


def to_json(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """The figures as one object: sizes are keys, times are medians."""
    ours = _by_size(measurements, "fedhead")

    def per_size(values: Mapping[int, Any]) -> dict[str, Any]:
        return {str(size): value for size, value in values.items()}

    def speedup(runner: str) -> dict[str, Any]:
        peers = _by_size(measurements, runner)
        return per_size({n: m.median_seconds / ours[n].median_seconds for n, m in peers.items()})

    def each(figure: Callable[[Measurement], Any]) -> dict[str, Any]:
        return {
            runner: per_size({n: figure(m) for n, m in _by_size(measurements, runner).items()})
            for runner in RUNNERS
        }

    sizes = sorted(ours)
    return {
        "ms_per_client": each(lambda m: m.ms_per_client),
        "round_seconds": each(lambda m: m.result.round_seconds),
        "accuracy": each(lambda m: m.result.accuracy),
        "peak_rss_bytes": each(lambda m: m.peak_bytes),
        "speedup_vs_flower": speedup("flower"),
        "speedup_vs_pfl": speedup("pfl"),
        "floor_ratio": per_size({n: ours[n].floor_ratio for n in sizes}),
        "gram_seconds": per_size({n: ours[n].result.gram_seconds for n in sizes}),
        "scaling": [
            {
                "clients": small,
                "to": large,
                "time_ratio": ours[large].median_seconds / ours[small].median_seconds,
            }
            for small, large in itertools.pairwise(sizes)
        ],
    }


def show(measurements: Sequence[Measurement]) -> None:
    """The figures as tables of at most 80 columns."""
    console = Console(markup=False)
    figures = to_json(measurements)
    table = Table(title="One round, median of the timed ones", title_justify="left")
    for name in ("clients", "runner", "round", "spread", "a client", "memory", "gain"):
        table.add_column(name, justify="left" if name == "runner" else "right")
    for m in measurements:
        low, high = min(m.result.round_seconds), max(m.result.round_seconds)
        speedups = figures.get(f"speedup_vs_{m.runner}", {})
        factor = speedups.get(str(m.clients))
        table.add_row(
            f"{m.clients:,}",
            m.runner,
            _seconds(m.median_seconds),
            _spread(low, high),
            f"{m.ms_per_client:.3f} ms",
            f"{m.peak_bytes / 1e9:.2f} GB",
            f"{factor:.0f}x" if factor else "",
        )
    console.print(Fitted(table, ("gain", "spread")))
    table = Table(title="fedhead against its floor, for more clients", title_justify="left")
    for name in ("clients", "round", "floor", "ratio", "Grams, once", "memory"):
        table.add_column(name, justify="right")
    for m in _by_size(measurements, "fedhead").values():
        table.add_row(
            f"{m.clients:,}",
            _seconds(m.median_seconds),
            _seconds(statistics.median(m.result.floor_seconds)),
            f"{m.floor_ratio:.2f}",
            _seconds(figures["gram_seconds"][str(m.clients)]),
            f"{m.peak_bytes / 1e9:.2f} GB",
        )
    console.print(Fitted(table, ("Grams, once",)))
    console.print(
        "Synthetic features. Floor: the two matrix products that read every feature, with "
        "their conversion from uint8. Memory: anonymous memory of all processes.",
        highlight=False,
    )


def _spread(low: float, high: float) -> str:
    if high < 1:
        return f"{low * 1e3:.0f}-{high * 1e3:.0f} ms"
    return f"{low:.1f}-{high:.1f} s"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"
