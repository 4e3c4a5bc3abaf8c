"""The cohort trainer against the plain reference, and against itself."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from client.cohort.cohort import Chunk, Cohort, Objective
from client.cohort.examples import Examples
from client.cohort.grams import Grams
from client.cohort.kernels import _batch_order
from client.local import batch_orders
from client.sgd import Terms, train_head
from common.errors import DataError
from common.evaluation import evaluate, losses_of
from common.seeding import Purpose, batch_order, stream_state
from common.types import Affine, FeatureSet, Head, LocalTraining

SEED, ROUND = 5, 3


def features(n: int, d: int, k: int, seed: int = 0) -> FeatureSet:
    rng = np.random.default_rng(seed)
    affine = Affine(
        rng.uniform(0.004, 0.012, d).astype(np.float32), rng.uniform(90, 160, d).astype(np.float32)
    )
    q = rng.integers(0, 256, (n, d), dtype=np.uint8)
    return FeatureSet(q, rng.integers(0, k, n), affine, "f")


def shares(sizes: list[int], seed: int = 0) -> list[np.ndarray]:
    """Who owns which row: scattered, as after a partition."""
    order = np.random.default_rng(seed).permutation(sum(sizes))
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def real_x(fs: FeatureSet, rows: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """What trainers see, in the arithmetic of the test."""
    center, gain = (torch.from_numpy(a).to(dtype) for a in (fs.affine.center, fs.affine.gain))
    x = (torch.from_numpy(fs.q[rows]).to(dtype) - center) * gain
    return torch.cat([x, torch.ones(len(rows), 1, dtype=dtype)], dim=1)


@dataclass(frozen=True)
class Case:
    sizes: list[int]
    d: int
    k: int
    momentum: float
    weight_decay: float
    mu: float
    correct: bool
    precondition: bool
    epochs: list[int]
    batch_sizes: list[int]
    memory_bytes: int
    chunk_rows: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    each = {"min_size": len(sizes), "max_size": len(sizes)}
    return Case(
        sizes=sizes,
        d=draw(st.integers(1, 12)),
        k=draw(st.integers(1, 5)),
        momentum=draw(st.sampled_from([0.0, 0.9])),
        weight_decay=draw(st.sampled_from([0.0, 0.05])),
        mu=draw(st.sampled_from([0.0, 0.3])),
        correct=draw(st.booleans()),
        precondition=draw(st.booleans()),
        epochs=draw(st.lists(st.integers(1, 3), **each)),
        batch_sizes=draw(st.lists(st.integers(1, 45), **each)),
        memory_bytes=draw(st.sampled_from([0, 2_000, 1 << 20])),
        chunk_rows=draw(st.sampled_from([1, 16, 1024])),
    )


def both(case: Case, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Deltas and losses of the cohort and of the reference."""
    fs = features(sum(case.sizes), case.d, case.k)
    owned = shares(case.sizes)
    rng = np.random.default_rng(1)
    real = torch.empty(0, dtype=dtype).numpy().dtype
    start = (rng.normal(size=(case.k, case.d + 1)) * 0.3).astype(real)
    drift = (rng.normal(size=(len(case.sizes), *start.shape)) * 0.1).astype(real)
    root = rng.normal(size=(case.d + 1, case.d + 1)) * 0.3
    p = (np.eye(case.d + 1) + root).astype(real) if case.precondition else None
    training = LocalTraining(0.05, 1, 1, case.momentum, case.weight_decay)
    cohort = Cohort(
        fs, owned, memory_bytes=case.memory_bytes, chunk_rows=case.chunk_rows, dtype=dtype
    )
    objective = Objective(
        training,
        mu=case.mu,
        corrections=(lambda clients: drift[clients]) if case.correct else None,
        preconditioner=p,
        local_epochs=np.array(case.epochs),
        batch_sizes=np.array(case.batch_sizes),
    )
    weights = rng.uniform(0.5, 2, len(owned))

    def consume(chunk: Chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert chunk.finite.all()
        return chunk.deltas(), chunk.losses, chunk.weighted_sum(weights[chunk.clients])

    parts = list(
        cohort.train(
            np.arange(len(owned)), start, objective, seed=SEED, round_number=ROUND, consume=consume
        )
    )
    deltas, losses = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    summed = sum(part[2] for part in parts)
    tolerance = 1e-9 if real == np.float64 else 1e-4
    wanted = np.tensordot(weights, deltas.astype(np.float64), 1)
    assert np.abs(summed - wanted).max() <= tolerance * max(np.abs(wanted).max(), 1e-3)

    expected, expected_losses = [], []
    for client, rows in enumerate(owned):
        local = LocalTraining(
            0.05, case.epochs[client], case.batch_sizes[client], case.momentum, case.weight_decay
        )
        result = train_head(
            real_x(fs, rows, dtype),
            torch.from_numpy(fs.labels[rows]),
            torch.from_numpy(start),
            local,
            batch_orders(len(rows), local, seed=SEED, round_number=ROUND, client=client),
            Terms(
                case.mu,
                torch.from_numpy(drift[client]) if case.correct else None,
                None if p is None else torch.from_numpy(p),
            ),
        )
        expected.append(result.delta.numpy())
        expected_losses.append([result.loss_before, result.loss_after])
    return deltas, np.array(expected), losses, np.array(expected_losses)


TYPICAL = Case([50, 7, 1, 30], 8, 4, 0.9, 0.05, 0.3, True, True, [3, 1, 2, 2], [10, 10, 10, 7],
               1 << 20, 1024)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
@example(TYPICAL)
def test_equals_the_reference_in_double_precision(case: Case) -> None:
    got, expected, losses, expected_losses = both(case, torch.float64)
    scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
    assert (np.abs(got - expected) <= 1e-9 * np.maximum(scale, 1e-3)).all()
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
@example(TYPICAL)
def test_equals_the_reference_in_single_precision(case: Case) -> None:
    got, expected, losses, expected_losses = both(case, torch.float32)
    scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
    # A residual p - 1 is known to 1e-7 where p is nearly 1, as that of a single class.
    least = 1e-2 if case.k == 1 else 1e-3
    assert (np.abs(got - expected) <= 1e-4 * np.maximum(scale, least)).all()
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_the_reference_at_the_real_width(momentum: float) -> None:
    # 2,700 examples lie above the crossover at 1,280 features, 300 do not.
    case = Case([50, 2700, 300, 1], 1280, 10, momentum, 0.0, 0.0, False, False,
                [5, 2, 2, 5], [10, 32, 32, 10], 1 << 30, 1024)  # fmt: skip
    got, expected, _, _ = both(case, torch.float32)
    scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
    # A residual p - 1 is known to 1e-7 where p is nearly 1, as that of the lone example.
    assert (np.abs(got - expected) <= 1e-4 * np.maximum(scale, 1e-2)).all()


def test_the_compiled_batch_order_is_the_house_one() -> None:
    keys = np.empty(100, np.int64)
    for n, client, epoch in ((1, 0, 0), (50, 7, 2), (100, 123_456, 9)):
        state = np.uint64(stream_state(11, Purpose.BATCH_ORDER, 4, client, epoch))
        want = batch_order(n, seed=11, round_number=4, client=client, epoch=epoch)
        np.testing.assert_array_equal(_batch_order(state, n, keys), want)


SIZES = [20, 1, 33, 50, 8, 17, 40]


def summed(
    cohort: Cohort, clients: np.ndarray, objective: Objective, round_number: int = 1
) -> np.ndarray:
    start = np.zeros((3, 17), np.float32)
    parts = cohort.train(
        clients, start, objective, seed=0, round_number=round_number,
        consume=lambda chunk: chunk.weighted_sum(chunk.num_examples.astype(np.float64)),
    )  # fmt: skip
    return np.add.reduce(list(parts))


def make(**options: int) -> Cohort:
    return Cohort(features(sum(SIZES), 16, 3), shares(SIZES), **options)  # type: ignore[arg-type]


PLAIN = Objective(LocalTraining(0.05, 2, 10))


def test_threads_change_no_bit() -> None:
    everyone = np.arange(len(SIZES))
    one = summed(make(threads=1, chunk_rows=30), everyone, PLAIN)
    three = summed(make(threads=3, chunk_rows=30), everyone, PLAIN)
    assert one.tobytes() == three.tobytes()


def test_torchs_own_threads_change_no_bit() -> None:
    fs, owned = features(4000, 1280, 10), np.split(np.arange(4000), 80)
    start = np.zeros((10, 1281), np.float32)
    before = torch.get_num_threads()
    results = set()
    try:
        for number in (1, 2, 4, 1):
            torch.set_num_threads(number)
            # A number that no other test uses: the workers' threads are new ones.
            cohort = Cohort(fs, owned, threads=2 + number)
            parts = cohort.train(
                np.arange(80), start, PLAIN, seed=0, round_number=1,
                consume=lambda chunk: chunk.weighted_sum(np.ones(len(chunk.clients))),
            )  # fmt: skip
            results.add(np.add.reduce(list(parts)).tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(results) == 1


@pytest.mark.parametrize("chunk_rows", [1, 25, 60])
@pytest.mark.parametrize("memory_bytes", [0, 5_000])
def test_chunks_and_memory_change_little(chunk_rows: int, memory_bytes: int) -> None:
    everyone = np.arange(len(SIZES))
    whole = summed(make(), everyone, PLAIN)
    parts = summed(make(chunk_rows=chunk_rows, memory_bytes=memory_bytes), everyone, PLAIN)
    assert np.abs(whole - parts).max() <= 1e-5 * np.abs(whole).max()


def test_kept_grams_are_those_made_anew() -> None:
    cohort = make()
    summed(cohort, np.array([0, 3, 6]), PLAIN)
    again = summed(cohort, np.arange(len(SIZES)), PLAIN, round_number=2)
    fresh = summed(make(), np.arange(len(SIZES)), PLAIN, round_number=2)
    assert again.tobytes() == fresh.tobytes()


def test_another_preconditioner_makes_other_grams() -> None:
    everyone = np.arange(len(SIZES))
    p, other = np.eye(17, dtype=np.float32) * 0.5, np.eye(17, dtype=np.float32) * 2
    cohort = make()
    for matrix in (p, other, None, p):
        objective = Objective(LocalTraining(0.05, 2, 10), preconditioner=matrix)
        fresh = summed(make(), everyone, objective)
        assert summed(cohort, everyone, objective).tobytes() == fresh.tobytes()


def test_nothing_given_is_changed() -> None:
    fs = features(sum(SIZES), 16, 3)
    q, labels, start = fs.q.copy(), fs.labels.copy(), np.ones((3, 17), np.float32)
    cohort = Cohort(fs, shares(SIZES))
    list(
        cohort.train(
            np.arange(3), start, PLAIN, seed=0, round_number=1, consume=lambda c: c.deltas()
        )
    )
    assert (fs.q == q).all()
    assert (fs.labels == labels).all()
    assert (start == 1).all()


def test_a_client_that_diverges_spoils_no_sum() -> None:
    def corrections(clients: np.ndarray) -> np.ndarray:
        out = np.zeros((len(clients), 3, 17), np.float32)
        out[clients == 1] = np.inf
        return out

    def consume(chunk: Chunk) -> tuple[list[bool], np.ndarray, np.ndarray]:
        return chunk.finite.tolist(), chunk.weighted_sum(chunk.finite * 2.0), chunk.deltas()

    with np.errstate(invalid="ignore"):
        ((finite, total, deltas),) = make().train(
            np.arange(3), np.zeros((3, 17), np.float32),
            Objective(LocalTraining(0.05, 2, 10), corrections=corrections),
            seed=0, round_number=1, consume=consume,
        )  # fmt: skip
    assert finite == [True, False, True]
    np.testing.assert_allclose(total, 2 * (deltas[0] + deltas[2]), atol=1e-5)


def test_evaluates_each_client_as_the_reference_does() -> None:
    fs, owned = features(sum(SIZES), 16, 3), shares(SIZES)
    head = Head.from_matrix(np.random.default_rng(3).normal(size=(3, 17)))
    clients = np.array([6, 0, 1, 3])
    correct, losses = Cohort(fs, owned, chunk_rows=30).evaluate(clients, head.matrix)
    for i, client in enumerate(clients):
        want = evaluate(head, fs.select(owned[client]))
        assert correct[i] == want.correct
        assert losses[i] == pytest.approx(want.loss, rel=1e-5)


@pytest.mark.parametrize("chunk_rows", [7, 1000])
def test_tells_each_clients_losses_by_temperature_as_the_reference_does(chunk_rows: int) -> None:
    fs, owned = features(sum(SIZES), 16, 3), shares(SIZES)
    head = Head.from_matrix(np.random.default_rng(3).normal(size=(3, 17)))
    clients = np.array([6, 0, 1, 3])
    losses = Cohort(fs, owned, chunk_rows=chunk_rows).losses(clients, head.matrix)
    for own, client in zip(losses, clients, strict=True):
        np.testing.assert_allclose(own, losses_of(head, fs.select(owned[client])), rtol=1e-4)


def test_nobody_is_evaluated_without_a_fuss() -> None:
    correct, losses = make().evaluate(np.zeros(0, np.int64), np.zeros((3, 17), np.float32))
    assert (len(correct), len(losses)) == (0, 0)
    assert not len(make().losses(np.zeros(0, np.int64), np.zeros((3, 17), np.float32)))


def test_a_client_without_examples_is_named() -> None:
    cohort = Cohort(features(5, 4, 2), [np.arange(5), np.zeros(0, np.int64)])
    with pytest.raises(DataError, match="client 1 has no training examples"):
        list(
            cohort.train(
                np.array([0, 1]), np.zeros((2, 5), np.float32), PLAIN, seed=0, round_number=1,
                consume=lambda chunk: chunk.steps,
            )
        )  # fmt: skip


def test_a_consumers_error_reaches_the_caller() -> None:
    def consume(chunk: Chunk) -> None:
        raise ValueError("as it should")

    with pytest.raises(ValueError, match="as it should"):
        list(
            make(chunk_rows=1).train(
                np.arange(7), np.zeros((3, 17), np.float32), PLAIN, seed=0, round_number=1,
                consume=consume,
            )
        )  # fmt: skip


def test_a_batch_far_larger_than_the_data_is_the_whole_data() -> None:
    everyone = np.arange(len(SIZES))
    huge = summed(make(), everyone, Objective(LocalTraining(0.05, 2, 10**10)))
    whole = summed(make(), everyone, Objective(LocalTraining(0.05, 2, max(SIZES))))
    assert huge.tobytes() == whole.tobytes()


def test_one_large_client_does_not_take_the_memory_of_all() -> None:
    counts = np.array([600, *[20] * 100])
    grams = Grams(counts, 1_000_000, torch.float32)
    assert grams.kept(np.arange(101)).tolist() == [False, *[True] * 100]


def test_nobody_is_at_work_any_more_when_a_round_has_failed() -> None:
    running = threading.Semaphore(0)

    def consume(chunk: Chunk) -> None:
        if chunk.clients[0] == 0:
            running.acquire()  # until another chunk is in the middle of its work
            raise ValueError("as it should")
        running.release()
        time.sleep(0.1)
        done.append(chunk.clients[0])

    done: list[int] = []
    with pytest.raises(ValueError, match="as it should"):
        list(
            make(chunk_rows=1, threads=2).train(
                np.arange(3), np.zeros((3, 17), np.float32), PLAIN, seed=0, round_number=1,
                consume=consume,
            )
        )  # fmt: skip
    finished = list(done)
    time.sleep(0.3)
    assert done == finished


def test_threads_change_no_bit_with_everything_at_once() -> None:
    fs, owned = features(600, 16, 3), np.split(np.arange(600), [100, 130, 500])
    p = np.eye(17, dtype=np.float32) * 0.9
    drift = np.random.default_rng(0).normal(size=(4, 3, 17)).astype(np.float32) * 0.1
    objective = Objective(
        LocalTraining(0.02, 2, 10, 0.9, 0.01), mu=0.1,
        corrections=lambda clients: drift[clients], preconditioner=p,
    )  # fmt: skip
    results = {
        summed(Cohort(fs, owned, threads=n, chunk_rows=60), np.arange(4), objective).tobytes()
        for n in (1, 2, 3)
    }
    assert len(results) == 1


def test_memory_for_a_client_of_many_examples_is_let_go() -> None:
    examples = Examples(features(12, 3, 2), [np.arange(12)], chunk_rows=4, dtype=torch.float32)
    large, _, _ = examples.load(np.arange(12))
    examples.give_back(large)
    usual, _, _ = examples.load(np.arange(2))
    assert len(usual) == 4 * examples.padded_width < len(large)
