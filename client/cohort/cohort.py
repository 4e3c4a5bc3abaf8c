"""Local training of many clients' heads at once, exactly as ``client.sgd`` does it one by one.

Every SGD step on a linear head adds a combination of the client's own examples, so a client's
head stays ``w = alpha w0 + beta c + A X P`` (A: K x n), and the logits of all its examples
follow through the Gram matrix ``X P X^T``, which never changes. A round is one product for the
first logits, cheap steps on (K, n) matrices, and one product for all deltas. A client with so
many examples that ordinary steps are cheaper is trained by ``client.sgd``.

Work goes in chunks of clients, a thread for each, and results come back in the clients' order:
the number of threads changes no bit. Memory is that of the kept Gram matrices and of one chunk for
each thread, at least one client's features.
"""

from __future__ import annotations

import dataclasses
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.cohort.chunks import Chunk, DualChunk, PrimalChunk
from client.cohort.grams import Grams
from client.local import batch_orders
from client.sgd import train_head
from common.errors import DataError, MissingExtraError
from common.machine import cores
from common.seeding import Purpose, stream_state
from common.types import Affine, FeatureSet, IntArray, LocalTraining

try:
    from client.cohort.kernels import to_float, train_clients
except ImportError as exc:
    raise MissingExtraError("numba", "simulation", "training clients together") from exc

__all__ = ["Chunk", "Cohort", "Objective", "warm_up"]

T = TypeVar("T")
Floats = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]

_CHUNK_ROWS = 1024  # 5 MB in float32 at d = 1280: stays in a core's part of the cache
_ALIGN = 16  # rows begin at multiples of 64 bytes, wherever a client lies in its chunk


@dataclass(frozen=True, eq=False)
class Objective:
    """What clients minimise besides their cross-entropy, and how; see ``client.sgd.train_head``.

    Attributes:
        training: hyperparameters.
        mu: proximal coefficient.
        corrections: clients' ids (m,) to (m, K, d + 1), added to each gradient; called once
            for each chunk, in a worker's thread.
        preconditioner: (d + 1, d + 1), multiplies the data's gradient from the right.
        local_epochs: int64 by client, in place of ``training.local_epochs``.
        batch_sizes: int64 by client, in place of ``training.batch_size``.
    """

    training: LocalTraining
    mu: float = 0.0
    corrections: Callable[[IntArray], Floats] | None = None
    preconditioner: Floats | None = None
    local_epochs: IntArray | None = None
    batch_sizes: IntArray | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a step adds examples and nothing else."""
        training = self.training
        extra = self.mu or training.momentum or training.weight_decay
        return not extra and self.corrections is None

    def epochs(self, clients: IntArray) -> IntArray:
        return _each(self.local_epochs, self.training.local_epochs, clients)

    def batches(self, clients: IntArray) -> IntArray:
        return _each(self.batch_sizes, self.training.batch_size, clients)


@dataclass(frozen=True, eq=False)
class _Job:
    """One call of ``train``: what is the same for all its chunks, or has a row for each client."""

    objective: Objective
    start: Floats
    padded_start: Tensor
    preconditioner: Tensor | None
    hyper: Floats
    clients: IntArray
    num_examples: IntArray
    epochs: IntArray
    batch_sizes: IntArray
    dual: npt.NDArray[np.bool_]
    seed: int
    round_number: int
    stream: np.uint64


class Cohort:
    """The clients that one process may train together, one round at a time.

    Args:
        features: examples of all of them.
        rows: for each client, int64 positions in ``features``; the index is the client's id.
            Labels must lie in [0, K) of the heads that are trained.
        memory_bytes: for Gram matrices that stay between rounds.
        chunk_rows: examples that one thread works on at a time.
        threads: 0: one for each core that this process may use.
        dtype: of all arithmetic; float64 is for tests.
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
        self._features, self._torch_dtype = features, dtype
        self._dtype = torch.empty(0, dtype=dtype).numpy().dtype
        self._rows = np.concatenate([np.zeros(0, np.int64), *rows])
        self._ends = np.cumsum([0, *(len(r) for r in rows)])
        self.num_examples: IntArray = np.diff(self._ends)
        self._chunk_rows = chunk_rows
        self._threads = threads or cores()
        self._center = features.affine.center.astype(self._dtype)
        self._gain = features.affine.gain.astype(self._dtype)
        self._width = features.num_features + 1
        self._padded_width = -(-self._width // _ALIGN) * _ALIGN
        self.largest_label: IntArray = np.full(len(rows), -1, np.int64)
        present = np.flatnonzero(self.num_examples)
        if len(present):
            labels = features.labels[self._rows]
            self.largest_label[present] = np.maximum.reduceat(labels, self._ends[present])
        self._buffers: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        # Above twice the width no number of epochs makes the dual form the cheaper one.
        small = np.where(self.num_examples <= 2 * self._width, self.num_examples, 0)
        self._grams = Grams(small, memory_bytes, dtype)

    @property
    def num_features(self) -> int:
        return self._features.num_features

    def examples(self, clients: IntArray) -> FeatureSet:
        """Clients' examples one after another, as a copy."""
        return self._features.select(self._positions(clients)[0])

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
            clients: int64 (m,), ids; each with at least one example.
            start: (K, d + 1), the global head; not changed.
            objective: what they do.
            seed: of the run, for the batch orders.
            round_number: of this round, for the batch orders.
            consume: called with each chunk in a worker's thread; what it returns is yielded in
                the order of the clients.

        Raises:
            DataError: a client has no examples.
        """
        job = self._job(clients, start, objective, seed, round_number)
        self._grams.use(objective.preconditioner)

        def work(part: slice) -> T:
            run = self._dual if job.dual[part.start] else self._primal
            return run(job, part, consume)

        yield from _in_order(self._parts(job.num_examples, job.dual), work, self._threads)

    def _job(
        self,
        clients: IntArray,
        start: Floats,
        objective: Objective,
        seed: int,
        round_number: int,
    ) -> _Job:
        clients = np.asarray(clients, np.int64)
        counts = self.num_examples[clients]
        if not counts.all():
            raise DataError(f"client {clients[counts == 0][0]} has no training examples")
        preconditioner = None
        if objective.preconditioner is not None:
            preconditioner = torch.zeros([self._padded_width] * 2, dtype=self._torch_dtype)
            preconditioner[: self._width] = self._padded(objective.preconditioner)
        training, mu = objective.training, objective.mu
        hyper = [training.lr, training.momentum, mu + training.weight_decay, mu]
        start = np.ascontiguousarray(start, self._dtype)
        return _Job(
            objective=objective,
            start=start,
            padded_start=self._padded(start),
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
        """How a head does on each client's examples; ties go to the lower class.

        Args:
            clients: int64 (m,), ids; each with at least one example.
            matrix: (K, d + 1).

        Returns:
            Correct predictions int64 (m,), and mean cross-entropy float64 (m,).
        """
        rows, ends = self._positions(np.asarray(clients, np.int64))
        weight = self._padded(matrix)
        hits, losses = np.zeros(len(rows), np.int64), np.zeros(len(rows))

        def work(part: slice) -> None:
            buffer, x, labels = self._load(rows[part])
            logits, y = weight @ x.t(), torch.from_numpy(labels)
            losses[part] = (torch.logsumexp(logits, 0) - logits.gather(0, y[None])[0]).numpy()
            hits[part] = (logits.argmax(0) == y).numpy()
            self._give_back(buffer)

        starts = range(0, len(rows), self._chunk_rows)
        parts = (slice(start, start + self._chunk_rows) for start in starts)
        deque(_in_order(parts, work, self._threads), maxlen=0)
        if not len(rows):
            return hits, losses
        correct: IntArray = np.add.reduceat(hits, ends[:-1])
        return correct, np.add.reduceat(losses, ends[:-1]) / np.diff(ends)

    def prepare(self, clients: IntArray) -> None:
        """Make the clients' Gram matrices now, as far as they are kept, for plain training."""
        clients = np.asarray(clients, np.int64)
        clients = clients[self._grams.kept(clients)]
        self._grams.use(None)

        def work(part: slice) -> None:
            rows, ends = self._positions(clients[part])
            buffer, x, _ = self._load(rows)
            self._grams.prepare(clients[part], ends, x, None)
            self._give_back(buffer)

        parts = self._parts(self.num_examples[clients], np.ones(len(clients), np.bool_))
        deque(_in_order(parts, work, self._threads), maxlen=0)

    def touch(self, clients: IntArray, matrix: Floats) -> None:
        """Both products that touch every feature, with their conversion, and nothing else.

        What a round costs at least: benchmarks put its time beside a round's.
        """
        weight = self._padded(matrix)

        def work(part: slice) -> None:
            buffer, x, _ = self._load(self._positions(clients[part])[0])
            _ = (weight @ x.t()) @ x
            self._give_back(buffer)

        parts = self._parts(self.num_examples[clients], np.ones(len(clients), np.bool_))
        deque(_in_order(parts, work, self._threads), maxlen=0)

    def _dual_is_cheaper(
        self, clients: IntArray, k: int, objective: Objective
    ) -> npt.NDArray[np.bool_]:
        """Which form needs fewer multiply-adds; a Gram that is kept counts as free."""
        width, n = self._width, self.num_examples[clients].astype(np.float64)
        epochs = objective.epochs(clients)
        dual, primal, gram = epochs * n * n * k, epochs * 2 * n * width * k, n * n * width
        if objective.preconditioner is not None:
            gram += n * width**2
            primal += epochs * np.ceil(n / objective.batches(clients)) * k * width**2
        dual += np.where(self._grams.kept(clients), 0, gram)
        cheaper: npt.NDArray[np.bool_] = dual <= primal
        return cheaper

    def _parts(self, counts: IntArray, dual: npt.NDArray[np.bool_]) -> Iterator[slice]:
        """Runs of clients with about ``chunk_rows`` examples; a primal one is alone."""
        first, rows = 0, 0
        for i, n in enumerate(counts.tolist()):
            if i > first and (rows + n > self._chunk_rows or not (dual[i] and dual[i - 1])):
                yield slice(first, i)
                first, rows = i, 0
            rows += n
        if first < len(counts):
            yield slice(first, len(counts))

    def _load(self, rows: IntArray) -> tuple[Tensor, Tensor, IntArray]:
        """Examples at these rows.

        Returns:
            The memory to give back; x (M, padded width); labels (M,).
        """
        usual, size = self._chunk_rows * self._padded_width, len(rows) * self._padded_width
        if size > usual:
            buffer = torch.empty(size, dtype=self._torch_dtype)
        else:
            try:
                buffer = self._buffers.get_nowait()
            except queue.Empty:
                buffer = torch.empty(usual, dtype=self._torch_dtype)
        x = buffer[:size].view(len(rows), self._padded_width)
        to_float(self._features.q, rows, self._center, self._gain, x.numpy())
        return buffer, x, self._features.labels[rows]

    def _give_back(self, buffer: Tensor) -> None:
        if len(buffer) == self._chunk_rows * self._padded_width:  # a larger one is let go
            self._buffers.put(buffer)

    def _positions(self, clients: IntArray) -> tuple[IntArray, IntArray]:
        """Clients' rows of the features, and where each begins and ends among them."""
        counts = self.num_examples[clients]
        ends = np.zeros(len(clients) + 1, np.int64)
        np.cumsum(counts, out=ends[1:])
        places = np.repeat(self._ends[clients] - ends[:-1], counts)
        places += np.arange(ends[-1])
        return self._rows[places], ends

    def _padded(self, matrix: Floats) -> Tensor:
        out = torch.zeros((len(matrix), self._padded_width), dtype=self._torch_dtype)
        out[:, : matrix.shape[1]] = torch.from_numpy(np.asarray(matrix, self._dtype))
        return out

    def _dual(self, job: _Job, part: slice, consume: Callable[[Chunk], T]) -> T:
        objective, clients = job.objective, job.clients[part]
        rows, ends = self._positions(clients)
        buffer, x, labels = self._load(rows)
        spare, offsets = self._grams.prepare(clients, ends, x, job.preconditioner)
        logits = job.padded_start @ x.t()
        corrections = None
        first = shift = np.empty((0, 0), self._dtype)
        if not objective.is_plain:
            first, shift = logits.numpy().copy(), np.zeros(logits.shape, self._dtype)
        if objective.corrections is not None:
            corrections = np.asarray(objective.corrections(clients), self._dtype)
            for matrix, begin, end in zip(corrections, ends[:-1], ends[1:], strict=True):
                shift[:, begin:end] = (self._padded(matrix) @ x[begin:end].t()).numpy()
        dual, m = torch.zeros_like(logits), len(clients)
        losses, coefficients, steps = np.empty((m, 2)), np.empty((m, 2)), np.empty(m, np.int64)
        train_clients(
            logits.numpy(), dual.numpy(), first, shift,
            labels, ends, clients, self._grams.slab.numpy(), spare.numpy(), offsets, job.stream,
            job.epochs[part], job.batch_sizes[part], job.hyper, losses, coefficients, steps,
        )  # fmt: skip
        result = consume(
            DualChunk(
                clients, job.num_examples[part], losses, steps,
                job.start, x, dual, coefficients, corrections, job.preconditioner,
            )
        )  # fmt: skip
        self._give_back(buffer)
        return result

    def _primal(self, job: _Job, part: slice, consume: Callable[[Chunk], T]) -> T:
        """One client, by the reference."""
        objective, clients = job.objective, job.clients[part]
        buffer, x, labels = self._load(self._positions(clients)[0])
        training = dataclasses.replace(
            objective.training,
            local_epochs=int(job.epochs[part.start]),
            batch_size=int(job.batch_sizes[part.start]),
        )
        orders = batch_orders(
            len(labels),
            training,
            seed=job.seed,
            round_number=job.round_number,
            client=int(clients[0]),
        )
        corrections = None
        if objective.corrections is not None:
            corrections = torch.from_numpy(np.asarray(objective.corrections(clients), self._dtype))
        preconditioner = job.preconditioner
        result = train_head(
            x[:, : self._width].contiguous(),
            torch.from_numpy(labels),
            torch.from_numpy(job.start),
            training,
            orders,
            mu=objective.mu,
            correction=None if corrections is None else corrections[0],
            preconditioner=(
                None if preconditioner is None else preconditioner[: self._width, : self._width]
            ),
        )
        self._buffers.put(buffer)
        losses, steps = (
            np.array([[result.loss_before, result.loss_after]]),
            np.array([result.steps]),
        )
        return consume(
            PrimalChunk(clients, job.num_examples[part], losses, steps, result.delta.numpy())
        )


def warm_up() -> None:
    """Load the compiled kernels, or compile them, so that no round has to."""
    q = np.zeros((1, 1), np.uint8)
    q.flags.writeable = False  # as a memory-mapped file is
    one = np.ones(1, np.float32)
    features = FeatureSet(q, np.zeros(1, np.int64), Affine(one, one), "")
    objective = Objective(LocalTraining(1.0))
    cohort, first = Cohort(features, [np.zeros(1, np.int64)]), np.zeros(1, np.int64)
    start = np.zeros((1, 2), np.float32)
    list(cohort.train(first, start, objective, seed=0, round_number=0, consume=lambda c: c.steps))


def _each(given: IntArray | None, default: int, clients: IntArray) -> IntArray:
    if given is None:
        return np.full(len(clients), default, np.int64)
    chosen: IntArray = np.asarray(given, np.int64)[clients]
    return chosen


@lru_cache(maxsize=4)
def _workers(threads: int) -> ThreadPoolExecutor:
    # Kept: BLAS sets itself up anew in each new thread, which takes longer than a small round.
    return ThreadPoolExecutor(threads, "fedhead-cohort", initializer=_one_blas_thread)


def _one_blas_thread() -> None:
    # Asking first matters: a thread takes over the process's number when it first needs one,
    # and that would undo a setting made before, or not, as other threads happen to be on time.
    torch.get_num_threads()
    torch.set_num_threads(1)


def _in_order(tasks: Iterable[slice], work: Callable[[slice], T], threads: int) -> Iterator[T]:
    """Results in the order of the tasks; at most a few are ahead of the reader."""
    pool, pending = _workers(threads), deque[Future[T]]()
    try:
        for task in tasks:
            pending.append(pool.submit(work, task))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        # Nobody may still be at work on the Grams when the next round begins.
        wait(pending)
