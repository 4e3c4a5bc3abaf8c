"""One call of a cohort's training, and the training of one part of its clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.cohort.chunks import Chunk, DualChunk, PrimalChunk
from client.cohort.examples import Examples
from client.cohort.grams import Grams
from client.cohort.kernels import train_clients
from client.cohort.objective import Objective
from client.local import batch_orders
from client.sgd import Terms, train_head
from common.types import IntArray

__all__ = ["Job", "train_dual", "train_primal"]

T = TypeVar("T")
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Job:
    """One call of ``train``: values for all its chunks, and arrays with a row for each client."""

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


def train_dual(
    job: Job, part: slice, examples: Examples, grams: Grams, consume: Callable[[Chunk], T]
) -> T:
    """Train some clients at once, in the dual form; their memory is reused after ``consume``."""
    objective, clients = job.objective, job.clients[part]
    rows, ends = examples.positions(clients)
    buffer, x, labels = examples.load(rows, objective.unit_norm)
    needed = _reads_grams(job, part)
    spare, offsets = grams.prepare(clients, ends, x, job.preconditioner, needed=needed)
    logits = _logits(job, part, x)
    corrections = None
    first = shift = np.empty((0, 0), examples.dtype)
    if not objective.is_plain:
        first, shift = logits.numpy().copy(), np.zeros(logits.shape, examples.dtype)
    if objective.corrections is not None:
        corrections = np.asarray(objective.corrections(clients), examples.dtype)
        for matrix, begin, end in zip(corrections, ends[:-1], ends[1:], strict=True):
            shift[:, begin:end] = (examples.padded(matrix) @ x[begin:end].t()).numpy()
    dual, m = torch.zeros_like(logits), len(clients)
    losses, coefficients, steps = np.zeros((m, 2)), np.empty((m, 2)), np.empty(m, np.int64)
    train_clients(
        logits.numpy(), dual.numpy(), first, shift,
        labels, ends, clients, grams.slab.numpy(), spare.numpy(), offsets, job.stream,
        job.epochs[part], job.batch_sizes[part], job.hyper, not objective.private,
        losses, coefficients, steps,
    )  # fmt: skip
    result = consume(
        DualChunk(
            clients, job.num_examples[part], losses, steps,
            job.start, x, dual, coefficients, corrections, job.preconditioner,
        )
    )  # fmt: skip
    examples.give_back(buffer)
    return result


def _logits(job: Job, part: slice, x: Tensor) -> Tensor:
    """Logits (K, M) of all examples under the global head."""
    if not job.objective.private:
        return job.padded_start @ x.t()
    counts = job.num_examples[part].tolist()
    logits, start = torch.empty((len(job.start), len(x)), dtype=x.dtype), job.padded_start.t()
    each = zip(x.split_with_sizes(counts), logits.t().split_with_sizes(counts), strict=True)
    for mine, out in each:
        torch.mm(mine, start, out=out)
    return logits


def _reads_grams(job: Job, part: slice) -> bool:
    """Whether logits are needed beyond the first ones, for a further step or for a loss."""
    if not (job.objective.private and job.objective.is_plain):
        return True
    batches = -(-job.num_examples[part] // job.batch_sizes[part])
    return bool((job.epochs[part] * batches > 1).any())


def train_primal(job: Job, part: slice, examples: Examples, consume: Callable[[Chunk], T]) -> T:
    """Train one client by the reference trainer."""
    objective, clients = job.objective, job.clients[part]
    rows = examples.positions(clients)[0]
    buffer, x, labels = examples.load(rows, objective.unit_norm)
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
        corrections = torch.from_numpy(np.asarray(objective.corrections(clients), examples.dtype))
    preconditioner = job.preconditioner
    result = train_head(
        x[:, : examples.width].contiguous(),
        torch.from_numpy(labels),
        torch.from_numpy(job.start),
        training,
        orders,
        Terms(
            objective.mu,
            None if corrections is None else corrections[0],
            None if preconditioner is None else preconditioner[: examples.width, : examples.width],
        ),
    )
    examples.give_back(buffer)
    losses, steps = (
        np.array([[result.loss_before, result.loss_after]]),
        np.array([result.steps]),
    )
    return consume(
        PrimalChunk(clients, job.num_examples[part], losses, steps, result.delta.numpy())
    )
