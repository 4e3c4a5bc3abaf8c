"""Measures what privacy adds to a round of 1,000 clients: docs/benchmarks.md has the table.

A script: ``python -m simulations.bench.privacy``. Rounds with and without privacy take turns, and
train alike. 64 and 255 features are those of projected backbones, 672 those of the default without
a projection, 1,280 those of MobileNetV2's last layer.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence

import numpy as np
import torch

from client.cohort.cohort import Cohort, warm_up
from common.files import cache_root
from common.types import FeatureSet
from simulations.bench.codecs import Measured, in_turns, table
from simulations.bench.run_fedhead import make_algorithm
from simulations.bench.work import Data, Work, write_data

__all__ = ["main", "measured"]

_EPSILON = 4.0
# Private clients take one step on all their examples. The longer they train, the less it matters
# what becomes of their updates.
_TRAINING = {"One step on all examples": (1, 0), "Five passes in batches of 10": (5, 10)}


def measured(work: Work) -> list[Measured]:
    """Rounds without and with privacy, in turns.

    Args:
        work: the work, whose data are there.
    """
    data = Data(work)
    features = FeatureSet(data.q, data.labels, data.affine, "0" * 64)
    runs = {}
    for name, epsilon in (("none", math.inf), (f"epsilon {_EPSILON:g}", _EPSILON)):
        cohort = Cohort(features, data.rows)  # each with Gram matrices of its own
        cohort.prepare(np.arange(work.clients))
        runs[name] = make_algorithm(work, cohort, data.affine, epsilon=epsilon)
    return in_turns(work, data, runs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table for each kind of training."""
    parser = argparse.ArgumentParser(prog="python -m simulations.bench.privacy")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--examples", type=int, default=50, help="of each client")
    parser.add_argument("--features", default="64,255,672,1280")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # for the main thread; the cohort has its own threads
    warm_up(private=True)
    cache_root().mkdir(parents=True, exist_ok=True)
    for words, (epochs, batch_size) in _TRAINING.items():
        rows: list[Measured] = []
        for d in map(int, given.features.split(",")):
            with tempfile.TemporaryDirectory(prefix="bench-", dir=cache_root()) as folder:
                work = Work(
                    folder, given.clients, given.rounds, given.examples, features=d, lr=1 / d,
                    local_epochs=epochs, batch_size=batch_size,
                )  # fmt: skip
                write_data(work)
                rows += measured(work)
        print(f"{words}\n\n{table(rows, 'privacy')}\n")


if __name__ == "__main__":
    main()
