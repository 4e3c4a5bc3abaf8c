"""Measures what codecs add to a round of 1,000 clients: docs/benchmarks.md has the table.

A script: ``python -m simulations.bench.codecs``. The codecs take turns round by round, so that what
else the machine does slows them alike. 255 features are those of a projected backbone, 672
those of the default, 1,280 those of MobileNetV2's last layer.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from client.cohort.cohort import Cohort, warm_up
from common.files import cache_root
from common.types import FeatureSet, Head
from server.round.own import OwnAlgorithm
from simulations.bench.run_fedhead import make_algorithm
from simulations.bench.work import Data, Work, write_data

__all__ = ["Measured", "in_turns", "main", "measured", "table"]


@dataclass(frozen=True)
class Measured:
    """One kind of rounds with one number of features.

    Attributes:
        features: d.
        kind: the codec's name, or what else sets these rounds apart.
        seconds: of each timed round.
        payload_bytes: what a client sends in a round.
        accuracy: the last head's.
    """

    features: int
    kind: str
    seconds: tuple[float, ...]
    payload_bytes: float
    accuracy: float

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)


def measured(work: Work, codecs: Sequence[str]) -> list[Measured]:
    """Rounds with each codec, in turns; the first round of each is not timed.

    Args:
        work: the work, whose data are there.
        codecs: their names.
    """
    data = Data(work)
    features = FeatureSet(data.q, data.labels, data.affine, "0" * 64)
    cohort = Cohort(features, data.rows)
    cohort.prepare(np.arange(work.clients))
    runs = {name: make_algorithm(work, cohort, data.affine, name) for name in codecs}
    return in_turns(work, data, runs)


def in_turns(work: Work, data: Data, runs: Mapping[str, OwnAlgorithm]) -> list[Measured]:
    """A round of each run, then the next of each; the first ones are not timed.

    Args:
        work: the work.
        data: its data.
        runs: by what sets them apart.
    """
    start = Head.zeros(work.classes, work.features)
    heads = dict.fromkeys(runs, start)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    sent = dict.fromkeys(runs, 0)
    for algorithm in runs.values():
        algorithm.start(start, None)
    for number in range(1, work.rounds + 2):
        for name, algorithm in runs.items():
            began = time.perf_counter()
            step = algorithm.step(number, heads[name], lambda _: "")
            seconds[name].append(time.perf_counter() - began)
            if step is None or step[1].valid != work.clients:
                raise SystemExit(f"{name}, round {number}: not every update is valid")
            heads[name], sent[name] = step[0], sent[name] + step[1].uplink_bytes
    return [
        Measured(
            work.features,
            name,
            tuple(seconds[name][1:]),
            sent[name] / work.clients / (work.rounds + 1),
            data.score(name.partition(":")[0], heads[name].weight, heads[name].bias),
        )
        for name in runs
    ]


def table(rows: Sequence[Measured], kind: str = "codec") -> str:
    """Markdown; a ratio is to the same features' first row.

    >>> rows = [Measured(255, "none", (0.2, 0.1), 10240.0, 0.9)]
    >>> print(table([*rows, Measured(255, "drive", (0.3,), 360.0, 0.9)]))
    | features | codec | a round | ratio | bytes a client | accuracy |
    |---|---|---|---|---|---|
    | 255 | none | 150 ms | 1.00 | 10,240 | 0.900 |
    | 255 | drive | 300 ms | 2.00 | 360 | 0.900 |
    """
    heading = f"| features | {kind} | a round | ratio | bytes a client | accuracy |"
    lines = [heading, "|" + "---|" * 6]
    first: dict[int, Measured] = {}
    for row in rows:
        ratio = row.median_seconds / first.setdefault(row.features, row).median_seconds
        lines.append(
            f"| {row.features:,} | {row.kind} | {1e3 * row.median_seconds:.0f} ms | {ratio:.2f} "
            f"| {row.payload_bytes:,.0f} | {row.accuracy:.3f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.codecs")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--features", default="255,672,1280")
    parser.add_argument("--codecs", default="none,drive,eden,int8,int8-shared")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # for the main thread; the cohort has its own threads
    warm_up()
    rows: list[Measured] = []
    for d in map(int, given.features.split(",")):
        cache_root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=cache_root()) as folder:
            work = Work(folder, given.clients, given.rounds, features=d)
            write_data(work)
            rows += measured(work, given.codecs.split(","))
    print(table(rows))


if __name__ == "__main__":
    main()
