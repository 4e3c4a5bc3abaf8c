"""The work of every runner of the simulation benchmark, and its data."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.types import Affine, FloatArray, IntArray, LocalTraining

__all__ = ["Data", "Result", "Work", "head_file", "read_work", "write_data"]

_NOISE = 128  # width of the uint8 noise; class means are up to _OFFSET apart
_OFFSET = 12
_TEST_EXAMPLES = 2000
_ROWS = 100_000  # rows that are written at a time


@dataclass(frozen=True)
class Work:
    """N clients, all of them in every round.

    Attributes:
        folder: the data's folder.
        clients: N.
        rounds: number of timed rounds; one more before them is the warm-up.
        examples: number of examples of each client.
        features: d.
        classes: K.
        lr: learning rate.
        local_epochs: passes over a client's examples in a round.
        batch_size: examples per step.
        seed: seed of data and batch orders.
    """

    folder: str
    clients: int
    rounds: int
    examples: int = 50
    features: int = 1280
    classes: int = 10
    lr: float = 0.01
    local_epochs: int = 5
    batch_size: int = 10
    seed: int = 0

    @property
    def training(self) -> LocalTraining:
        return LocalTraining(self.lr, self.local_epochs, self.batch_size)


@dataclass(frozen=True)
class Result:
    """A runner's result, which it prints as its last line.

    Attributes:
        round_seconds: times of the timed rounds.
        accuracy: the last head's accuracy on the test part, in [0, 1].
        gram_seconds: time for all Gram matrices with conversion from uint8; only our runner.
        floor_seconds: time of the two products that read every feature, with conversion; only our
            runner.
    """

    round_seconds: tuple[float, ...]
    accuracy: float
    gram_seconds: float = 0.0
    floor_seconds: tuple[float, ...] = ()

    def print(self) -> None:
        print(json.dumps(dataclasses.asdict(self)), flush=True)


class Data:
    """The files of ``write_data``, memory-mapped; examples are in the order of clients."""

    def __init__(self, work: Work) -> None:
        folder = Path(work.folder)
        self.q: npt.NDArray[np.uint8] = np.load(folder / "q.npy", mmap_mode="r")
        self.labels: IntArray = np.load(folder / "labels.npy")
        self._test_q: npt.NDArray[np.uint8] = np.load(folder / "test_q.npy")
        self._test_labels: IntArray = np.load(folder / "test_labels.npy")
        d = work.features
        center, gain = (_NOISE + _OFFSET) / 2, 12**0.5 / _NOISE
        self.affine = Affine(np.full(d, gain, np.float32), np.full(d, center, np.float32))
        self._work = work

    def client(self, number: int) -> tuple[FloatArray, IntArray]:
        """A client's features for training, float32 (n, d), and labels."""
        mine = slice(number * self._work.examples, (number + 1) * self._work.examples)
        return self.affine(self.q[mine]), self.labels[mine]

    @property
    def rows(self) -> list[IntArray]:
        """Each client's positions in ``q``."""
        starts = np.arange(self._work.clients)[:, None] * self._work.examples
        return list(starts + np.arange(self._work.examples))

    def score(self, runner: str, weight: FloatArray, bias: FloatArray) -> float:
        """Accuracy of a head (K, d), (K,) on the test part; the head is saved for comparison."""
        np.save(head_file(self._work.folder, runner), np.column_stack([weight, bias]))
        predictions = (self.affine(self._test_q) @ weight.T + bias).argmax(axis=1)
        return float((predictions == self._test_labels).mean())


def head_file(folder: str | Path, runner: str) -> Path:
    """The file of a runner's last head, float32 (K, d + 1)."""
    return Path(folder) / f"{runner}.npy"


def read_work(path: str) -> Work:
    """The work that a runner's command line names."""
    return Work(**json.loads(Path(path).read_text()))


def write_data(work: Work) -> Path:
    """Write synthetic features: uniform noise around class means that nearly separate classes.

    Returns:
        The file that describes the work.
    """
    folder = Path(work.folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(work.seed)
    means = rng.integers(0, _OFFSET, (work.classes, work.features), dtype=np.uint8)
    total = work.clients * work.examples
    labels = rng.integers(0, work.classes, total)
    q = np.lib.format.open_memmap(folder / "q.npy", "w+", np.uint8, (total, work.features))
    for start in range(0, total, _ROWS):
        block = labels[start : start + _ROWS]
        noise = rng.integers(0, _NOISE, (len(block), work.features), dtype=np.uint8)
        q[start : start + len(block)] = noise + means[block]
    q.flush()
    test_labels = rng.integers(0, work.classes, _TEST_EXAMPLES)
    noise = rng.integers(0, _NOISE, (_TEST_EXAMPLES, work.features), dtype=np.uint8)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "test_labels.npy", test_labels)
    np.save(folder / "test_q.npy", noise + means[test_labels])
    description = folder / "work.json"
    description.write_text(json.dumps(dataclasses.asdict(work)))
    return description
