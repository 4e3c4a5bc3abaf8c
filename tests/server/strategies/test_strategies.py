"""Strategies against plain NumPy written from the papers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from client.client_round import ClientRound
from client.local import batch_orders, client_update
from client.memory import ClientMemory
from common.messages import TrainRequest
from common.types import Affine, ClientPlan, FeatureSet, Head, LocalTraining, UpdateBatch
from common.updates import FieldSums, client_weights
from server.strategies import STRATEGIES, build_strategy
from server.strategy import RoundContext, Strategy, with_metrics

D, K, CLIENTS, ROUNDS = 5, 3, 4, 3
TRAINING = LocalTraining(lr=0.1, local_epochs=2, batch_size=4)
AFFINE = Affine(np.full(D, 0.01, np.float32), np.full(D, 100, np.float32))


FIRST = RoundContext(1, CLIENTS, CLIENTS, lr=TRAINING.lr, affine=AFFINE, zero_point=0, seed=0)


def features(client: int) -> FeatureSet:
    rng = np.random.default_rng(client)
    n = 6 + 3 * client
    q = rng.integers(0, 256, (n, D), dtype=np.uint8)
    return FeatureSet(q, rng.integers(0, K, n), AFFINE, "f")


def cohort(round_number: int) -> list[int]:
    return [c for c in range(CLIENTS) if c != round_number % CLIENTS]


def federate(strategy: Strategy, folder: Path) -> Head:  # type: ignore[type-arg]
    """The strategy's rounds by the real client code, without any messages."""
    head = Head.zeros(K, D)
    state, store = strategy.init(head), ClientMemory(folder)
    counted: dict[int, int] = {}
    for number in range(1, ROUNDS + 1):
        context = dataclasses.replace(FIRST, round_number=number)
        plan = strategy.plan(state, context)
        clients = tuple(cohort(number))
        request = TrainRequest(
            head, plan, TRAINING, clients, number, "r", 0, "f", "sum",
            memory_rounds=tuple(counted.get(client, 0) for client in clients),
        )  # fmt: skip
        client_round = ClientRound(request, store)
        updates = []
        for client in clients:
            update = client_update(client_round, client, features(client))
            counted[client] = number
            updates.append(update.fields)
        counts = np.array([len(features(c)) for c in cohort(number)], np.int64)
        weights = client_weights(plan, counts)
        sums = FieldSums()
        for fields, weight in zip(updates, weights, strict=True):
            sums.add(fields, weight)
        batch = UpdateBatch(
            (tuple(cohort(number)),),
            np.array([counts.sum()]),
            np.array([weights.sum()]),
            sums.row(),
        )
        given = strategy.aggregate(state, head, batch, context)
        state, head, _ = with_metrics(given, strategy.name)
    return head


def gradient(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    z = x @ w.T
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(y)


def batches(client: int, number: int) -> list[np.ndarray]:
    n = len(features(client))
    orders = batch_orders(n, TRAINING, seed=0, round_number=number, client=client)
    return [o[i : i + TRAINING.batch_size] for o in orders for i in range(0, n, 4)]


@pytest.mark.parametrize(("name", "mu"), [("fedavg", 0.0), ("fedprox", 0.7)])
def test_fedavg_and_fedprox(name: str, mu: float, tmp_path: Path) -> None:
    w = np.zeros((K, D + 1))
    for number in range(1, ROUNDS + 1):
        total, delta = 0, np.zeros_like(w)
        for c in cohort(number):
            f, y = features(c), w.copy()
            for b in batches(c, number):
                g = gradient(f.x[b].astype(float), f.labels[b], y) + mu * (y - w)
                y -= TRAINING.lr * g
            total += len(f)
            delta += len(f) * (y - w)
        w = w + 0.5 * delta / total
    args = {"server-lr": 0.5, **({"mu": mu} if mu else {})}
    got = federate(build_strategy(name, args), tmp_path)
    np.testing.assert_allclose(got.matrix, w, rtol=1e-4, atol=1e-6)


def test_scaffold(tmp_path: Path) -> None:
    # Algorithm 1 of arXiv 1910.06378 with option II.
    w = c_server = np.zeros((K, D + 1))
    c_client = [np.zeros_like(w) for _ in range(CLIENTS)]
    for number in range(1, ROUNDS + 1):
        deltas, control_deltas = [], []
        for c in cohort(number):
            f, y, steps = features(c), w.copy(), 0
            for b in batches(c, number):
                g = gradient(f.x[b].astype(float), f.labels[b], y)
                y -= TRAINING.lr * (g - c_client[c] + c_server)
                steps += 1
            new = c_client[c] - c_server + (w - y) / (steps * TRAINING.lr)
            deltas.append(y - w)
            control_deltas.append(new - c_client[c])
            c_client[c] = new
        w = w + np.mean(deltas, axis=0)
        c_server = c_server + len(deltas) / CLIENTS * np.mean(control_deltas, axis=0)
    got = federate(build_strategy("scaffold", {}), tmp_path)
    np.testing.assert_allclose(got.matrix, w, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold"])
def test_an_aggregation_changes_nothing_it_was_given(name: str) -> None:
    strategy = build_strategy(name, {})
    head = Head.zeros(K, D)
    state = strategy.init(head)
    fields = {f: np.ones((1, K, D + 1), np.float32) for f in strategy.plan(state, FIRST).fields}
    batch = UpdateBatch(((0, 1),), np.array([5]), np.array([2.0]), fields)
    _, new, _ = with_metrics(strategy.aggregate(state, head, batch, FIRST), name)
    assert not head.matrix.any()
    assert all((array == 1).all() for array in fields.values())
    assert new.weight.dtype == np.float32
    assert new.matrix.shape == (K, D + 1)


def test_every_strategy_has_its_paper_in_its_docstring() -> None:
    for name, factory in STRATEGIES.items():
        assert "arXiv" in (factory.__doc__ or ""), name


def test_plans_are_plain_values() -> None:
    plan = build_strategy("fedavg", {}).plan(None, FIRST)
    assert isinstance(plan, ClientPlan)
    assert plan.fields == ("delta",)
