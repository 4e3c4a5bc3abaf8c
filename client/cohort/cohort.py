"""Local training of many clients' heads at once, with the result of ``client.sgd`` one by one.

Every SGD step on a linear head adds a combination of the client's own examples. So a client's head
always has the form ``w = alpha w0 + beta c + A X P`` (A: K x n), and the logits of all its examples
follow from the Gram matrix ``X P X^T``, which never changes. A round is one product for the first
logits, cheap steps on (K, n) matrices, and one product for all deltas. If a client has so many
examples that ordinary steps are cheaper, ``client.sgd`` trains it.

Threads work on chunks of clients, and results come back in the clients' order, so the number of
threads does not change any bit. Memory is needed for the kept Gram matrices and one chunk per
thread; a chunk holds at least one client's features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from client.cohort.chunks import Chunk
from client.cohort.grams import Grams
from client.cohort.objective import Objective
from client.cohort.workers import in_order, longer, parts
from common.errors import DataError, MissingExtraError
from common.machine import cores
from common.seeding import Purpose, stream_state
from common.temperature import SHARPNESS, losses_by_sharpness
from common.types import Affine, FeatureSet, IntArray, LocalTraining

try:
    from client.cohort.examples import Examples
    from client.cohort.job import Job, train_dual, train_primal
except ImportError as exc:
    raise MissingExtraError("numba", "simulation", "training clients together") from exc

__all__ = ["Chunk", "Cohort", "Objective", "warm_up"]

T = TypeVar("T")
Floats = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]

_CHUNK_ROWS = 1024  # 5 MB in float32 at d = 1280, which fits a core's part of the cache


class Cohort:
    """The clients that one process may train together, one round at a time.

    Args:
        features: examples of all clients.
        rows: for each client, int64 positions in ``features``; the index is the client's id.
            Labels must lie in [0, K) of the heads that are trained.
        memory_bytes: memory for Gram matrices that are kept between rounds.
        chunk_rows: number of examples that one thread works on at a time; of narrow ones up to
            several times as many in a private round.
        threads: number of threads; 0: one for each core that this process may use.
        dtype: dtype of all arithmetic; float64 is for tests.
    """

    def __init__(
        self,
        features: FeatureSet,
        rows: Sequence[IntArray],
        *,
        memory_bytes: int = 2_000_000_000,
        chunk_rows: int = _CHUNK_ROWS,
        threads: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._examples = Examples(features, rows, chunk_rows, dtype)
        self._torch_dtype, self._dtype = dtype, self._examples.dtype
        self.num_examples, self.largest_label = (
            self._examples.num_examples,
            self._examples.largest_label,
        )
        self._chunk_rows, self._threads = chunk_rows, threads or cores()
        self._width = self._examples.width
        # Above twice the width the dual form is never cheaper, whatever the number of epochs.
        small = np.where(self.num_examples <= 2 * self._width, self.num_examples, 0)
        self._grams = Grams(small, memory_bytes, dtype)

    @property
    def num_features(self) -> int:
        return self._examples.features.num_features

    def examples(self, clients: IntArray) -> FeatureSet:
        """Clients' examples one after another, as a copy."""
        return self._examples.features.select(self._examples.positions(clients)[0])

    def train(
        self,
        clients: IntArray,
        start: Floats,
        objective: Objective,
        *,
        seed: int,
        round_number: int,
        consume: Callable[[Chunk], T],
    ) -> Iterator[T]:
        """Train clients from the same head.

        Args:
            clients: int64 (m,), ids; each has at least one example.
            start: (K, d + 1), the global head; not changed.
            objective: what they minimise, and how.
            seed: the run's seed, for the batch orders.
            round_number: the round's number, for the batch orders.
            consume: called with each chunk in a worker thread; its results are yielded in the
                order of the clients.

        Raises:
            DataError: a client has no examples.
        """
        job = self._job(clients, start, objective, seed, round_number)
        self._grams.use(objective.preconditioner, objective.unit_norm)

        def work(part: slice) -> T:
            if job.dual[part.start]:
                return train_dual(job, part, self._examples, self._grams, consume)
            return train_primal(job, part, self._examples, consume)

        rows = self._chunk_rows
        if objective.private and objective.is_plain:  # then chunks change no bit
            width = max(self._examples.padded_width, len(start))
            rows = longer(rows, width, int(job.num_examples.sum()), self._threads)
        yield from in_order(parts(job.num_examples, rows, job.dual), work, self._threads)

    def _job(
        self,
        clients: IntArray,
        start: Floats,
        objective: Objective,
        seed: int,
        round_number: int,
    ) -> Job:
        clients = np.asarray(clients, np.int64)
        counts = self.num_examples[clients]
        if not counts.all():
            raise DataError(f"client {clients[counts == 0][0]} has no training examples")
        preconditioner = None
        if objective.preconditioner is not None:
            preconditioner = torch.zeros([self._examples.padded_width] * 2, dtype=self._torch_dtype)
            preconditioner[: self._width] = self._examples.padded(objective.preconditioner)
        training, mu = objective.training, objective.mu
        hyper = [training.lr, training.momentum, mu + training.weight_decay, mu]
        start = np.ascontiguousarray(start, self._dtype)
        return Job(
            objective=objective,
            start=start,
            padded_start=self._examples.padded(start),
            preconditioner=preconditioner,
            hyper=np.array(hyper, self._dtype),
            clients=clients,
            num_examples=counts,
            epochs=objective.epochs(clients),
            batch_sizes=objective.batches(clients),
            dual=self._dual_is_cheaper(clients, len(start), objective),
            seed=seed,
            round_number=round_number,
            stream=np.uint64(stream_state(seed, Purpose.BATCH_ORDER, round_number)),
        )

    def evaluate(self, clients: IntArray, matrix: Floats) -> tuple[IntArray, Float64Array]:
        """Evaluate a head on each client's examples; ties go to the lower class.

        Args:
            clients: int64 (m,), ids; each with at least one example.
            matrix: (K, d + 1).

        Returns:
            Correct predictions int64 (m,), and mean cross-entropy float64 (m,).
        """
        rows, ends = self._examples.positions(np.asarray(clients, np.int64))
        weight = self._examples.padded(matrix)
        hits, losses = np.zeros(len(rows), np.int64), np.zeros(len(rows))

        def work(part: slice) -> None:
            buffer, x, labels = self._examples.load(rows[part])
            logits, y = weight @ x.t(), torch.from_numpy(labels)
            losses[part] = (torch.logsumexp(logits, 0) - logits.gather(0, y[None])[0]).numpy()
            hits[part] = (logits.argmax(0) == y).numpy()
            self._examples.give_back(buffer)

        starts = range(0, len(rows), self._chunk_rows)
        tasks = (slice(start, start + self._chunk_rows) for start in starts)
        deque(in_order(tasks, work, self._threads), maxlen=0)
        if not len(rows):
            return hits, losses
        correct: IntArray = np.add.reduceat(hits, ends[:-1])
        return correct, np.add.reduceat(losses, ends[:-1]) / np.diff(ends)

    def losses(self, clients: IntArray, matrix: Floats) -> Float64Array:
        """Each client's mean cross-entropy at each value of SHARPNESS, float64 (m, 49).

        Args:
            clients: int64 (m,), ids; each with at least one example.
            matrix: (K, d + 1).
        """
        rows, ends = self._examples.positions(np.asarray(clients, np.int64))
        weight, counts = self._examples.padded(matrix), np.diff(ends)
        owners = np.repeat(np.arange(len(clients)), counts)

        def work(part: slice) -> tuple[IntArray, Float64Array]:
            buffer, x, labels = self._examples.load(rows[part])
            of_rows = losses_by_sharpness((weight @ x.t()).numpy().T, labels)
            self._examples.give_back(buffer)
            first = np.flatnonzero(np.diff(owners[part], prepend=-1))
            return owners[part][first], np.add.reduceat(of_rows, first)

        sums = np.zeros((len(clients), len(SHARPNESS)))
        starts = range(0, len(rows), self._chunk_rows)
        tasks = (slice(start, start + self._chunk_rows) for start in starts)
        for who, of_part in in_order(tasks, work, self._threads):
            sums[who] += of_part
        return sums / counts[:, None]

    def prepare(self, clients: IntArray) -> None:
        """Compute the clients' Gram matrices now, those that are kept, for plain training."""
        clients = np.asarray(clients, np.int64)
        clients = clients[self._grams.kept(clients)]
        self._grams.use(None)

        def work(part: slice) -> None:
            rows, ends = self._examples.positions(clients[part])
            buffer, x, _ = self._examples.load(rows)
            self._grams.prepare(clients[part], ends, x, None)
            self._examples.give_back(buffer)

        tasks = parts(self.num_examples[clients], self._chunk_rows)
        deque(in_order(tasks, work, self._threads), maxlen=0)

    def touch(self, clients: IntArray, matrix: Floats) -> None:
        """Compute only the two products that read every feature, with the conversion.

        This is a lower bound of a round's cost; benchmarks compare it with a round.
        """
        weight = self._examples.padded(matrix)

        def work(part: slice) -> None:
            buffer, x, _ = self._examples.load(self._examples.positions(clients[part])[0])
            _ = (weight @ x.t()) @ x
            self._examples.give_back(buffer)

        tasks = parts(self.num_examples[clients], self._chunk_rows)
        deque(in_order(tasks, work, self._threads), maxlen=0)

    def _dual_is_cheaper(
        self, clients: IntArray, k: int, objective: Objective
    ) -> npt.NDArray[np.bool_]:
        """Whether the dual form needs fewer multiply-adds; a kept Gram matrix costs nothing.

        Adam has no dual form: its steps are no linear combination of examples.
        """
        if objective.training.optimizer != "sgd":
            return np.zeros(len(clients), np.bool_)
        width, n = self._width, self.num_examples[clients].astype(np.float64)
        epochs = objective.epochs(clients)
        dual, primal, gram = epochs * n * n * k, epochs * 2 * n * width * k, n * n * width
        if objective.preconditioner is not None:
            gram += n * width**2
            primal += epochs * np.ceil(n / objective.batches(clients)) * k * width**2
        dual += np.where(self._grams.kept(clients), 0, gram)
        cheaper: npt.NDArray[np.bool_] = dual <= primal
        return cheaper


def warm_up(*, private: bool = False) -> None:
    """Load or compile the kernels now, so that no round has to.

    Args:
        private: whether those that clip are needed, too.
    """
    q = np.zeros((1, 1), np.uint8)
    q.flags.writeable = False  # like a memory-mapped file
    one = np.ones(1, np.float32)
    features = FeatureSet(q, np.zeros(1, np.int64), Affine(one, one), "")
    objective = Objective(LocalTraining(1.0), unit_norm=float(private))
    cohort, first = Cohort(features, [np.zeros(1, np.int64)]), np.zeros(1, np.int64)
    start = np.zeros((1, 2), np.float32)

    def consume(chunk: Chunk) -> None:
        if private:
            chunk.clipped_sum(1.0)
            Chunk.clipped_sum(chunk, 1.0)  # where an update is more than a sum of examples

    list(cohort.train(first, start, objective, seed=0, round_number=0, consume=consume))
