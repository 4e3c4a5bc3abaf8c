"""Attacks on updates: byzfl's on the same rows, and what they leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import AttackConfig
from common.types import ClientPlan, UpdateBatch
from server.round.attacks import corrupt

N, K, D = 9, 3, 7
MALICIOUS = frozenset({2, 5, 77})  # 77 is not asked this round
HONEST = np.array([i not in MALICIOUS for i in range(N)])
UPDATE_KINDS = ("sign-flip", "alie", "ipm", "gaussian", "nan")


def rows(seed: int = 0, n: int = N, **more: np.ndarray) -> UpdateBatch:
    deltas = np.random.default_rng(seed).normal(size=(n, K, D)).astype(np.float32)
    counts = np.arange(10, 10 + n)
    ids = tuple((i,) for i in range(n))
    return UpdateBatch(ids, counts, counts.astype(np.float64), {"delta": deltas, **more})


def attacked(
    batch: UpdateBatch, kind: str, scale: float = 0.0, round_number: int = 1, seed: int = 0,
    malicious: frozenset[int] = MALICIOUS, plan: ClientPlan | None = None,
) -> UpdateBatch:  # fmt: skip
    attack = AttackConfig.model_validate({"kind": kind, "scale": scale})
    return corrupt(
        batch, malicious, attack, plan or ClientPlan(), seed=seed, round_number=round_number
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "scale", "oracle", "args"),
    [
        ("alie", 0.0, "ALittleIsEnough", {"tau": 1.5}),
        ("alie", 3.0, "ALittleIsEnough", {"tau": 3.0}),
        ("ipm", 0.0, "InnerProductManipulation", {"tau": 2.0}),
        ("ipm", 0.5, "InnerProductManipulation", {"tau": 0.5}),
    ],
)
def test_it_is_byzfls_attack_on_the_honest_rows(
    kind: str, scale: float, oracle: str, args: dict[str, float]
) -> None:
    byzfl = pytest.importorskip("byzfl")
    batch = rows()
    honest = batch.fields["delta"][HONEST].reshape(HONEST.sum(), -1).astype(np.float64)
    want = getattr(byzfl, oracle)(**args)(honest).reshape(K, D)
    got = attacked(batch, kind, scale).fields["delta"]
    for i in np.flatnonzero(~HONEST):
        np.testing.assert_allclose(got[i], want, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_flipped_sign_is_byzfls_on_the_clients_own_row_times_the_scale() -> None:
    byzfl = pytest.importorskip("byzfl")
    batch = rows()
    got = attacked(batch, "sign-flip").fields["delta"]
    for i in np.flatnonzero(~HONEST):
        own = batch.fields["delta"][i].astype(np.float64)
        flip = byzfl.SignFlipping()(own.reshape(1, -1)).reshape(K, D)
        np.testing.assert_allclose(got[i], 5 * flip, rtol=1e-6)


@given(
    st.sampled_from((*UPDATE_KINDS, "inflate", "backdoor")), st.integers(0, 20),
    st.sets(st.integers(0, 8)), st.integers(1, 5),
)  # fmt: skip
def test_honest_rows_and_what_was_given_stay(
    kind: str, seed: int, malicious: set[int], round_number: int
) -> None:
    batch = rows(seed)
    before = batch.fields["delta"].copy(), batch.num_examples.copy(), batch.weights.copy()
    got = attacked(batch, kind, malicious=frozenset(malicious), round_number=round_number)
    assert (batch.fields["delta"] == before[0]).all()
    assert (batch.num_examples == before[1]).all()
    assert (batch.weights == before[2]).all()
    honest = [i for i in range(N) if i not in malicious]
    assert (got.fields["delta"][honest] == before[0][honest]).all()
    assert (got.num_examples[honest] == before[1][honest]).all()
    assert got.fields["delta"].dtype == np.float32
    assert got.client_ids == batch.client_ids
    same = [i for i in malicious if np.array_equal(got.fields["delta"][i], before[0][i])]
    if kind in ("inflate", "backdoor"):  # without a scale
        assert len(same) == len(malicious)
    elif kind != "alie":  # one client alone is its own mean, without deviation
        assert same == []


def test_a_backdoors_scale_multiplies_the_clients_own_row() -> None:
    batch = rows()
    got = attacked(batch, "backdoor", 100.0).fields["delta"]
    np.testing.assert_allclose(got[~HONEST], 100 * batch.fields["delta"][~HONEST], rtol=1e-6)


@given(st.sampled_from(("sign-flip", "alie", "ipm", "gaussian")), st.permutations(range(N)))
def test_the_order_of_clients_changes_nothing(kind: str, order: list[int]) -> None:
    batch = rows()
    shuffled = UpdateBatch(
        tuple(batch.client_ids[i] for i in order), batch.num_examples[order],
        batch.weights[order], {"delta": batch.fields["delta"][order]},
    )  # fmt: skip
    straight, other = (attacked(b, kind).fields["delta"] for b in (batch, shuffled))
    np.testing.assert_allclose(other, straight[order], rtol=1e-6)


def test_noise_is_normal_and_another_one_for_each_round_client_and_field() -> None:
    big = np.zeros((2, 40, 500), np.float32)
    batch = rows(n=2, delta=big, control_delta=big)

    def noise(**keys: Any) -> tuple[np.ndarray, np.ndarray]:
        made = attacked(batch, "gaussian", 3.0, malicious=frozenset({0, 1}), **keys).fields
        return made["delta"], made["control_delta"]

    delta, control = noise()
    # 20,000 draws of deviation 3: the mean's deviation is 0.021, the deviation's 0.015
    assert abs(delta[0].mean()) < 5 * 0.021
    assert abs(delta[0].std() - 3) < 5 * 0.015
    assert (noise()[0] == delta).all()
    for other in (delta[1], control[0], noise(round_number=2)[0][0], noise(seed=1)[0][0]):
        assert abs(np.corrcoef(delta[0].ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("kind", UPDATE_KINDS)
def test_every_field_that_is_a_head_is_attacked_and_numbers_are_not(kind: str) -> None:
    steps = np.arange(N, dtype=np.float32)[:, None]
    second = 2 * rows(1).fields["delta"].astype(np.float32)
    batch = rows(effective_steps=steps, control_delta=second)
    got = attacked(batch, kind).fields
    assert (got["effective_steps"] == steps).all()
    for name in ("delta", "control_delta"):
        changed = (got[name] != batch.fields[name]).reshape(N, -1).any(axis=1)
        assert (changed == ~HONEST).all()


@pytest.mark.parametrize("kind", ["alie", "ipm"])
def test_a_round_without_honest_clients_attacks_itself(kind: str) -> None:
    batch = rows(n=2)
    got = attacked(batch, kind, 1.0, malicious=frozenset({0, 1})).fields["delta"]
    deltas = batch.fields["delta"].astype(np.float64)
    want = deltas.mean(axis=0) + deltas.std(axis=0, ddof=1) if kind == "alie" else -deltas.mean(0)
    for row in got:
        np.testing.assert_allclose(row, want, rtol=1e-5, atol=1e-6)
    alone = attacked(rows(n=1), "alie", malicious=frozenset({0})).fields["delta"]
    assert np.isfinite(alone).all()


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_inflated_examples_weigh_more_where_examples_are_weights(weighting: Any) -> None:
    batch = rows()
    got = attacked(batch, "inflate", 3.0, plan=ClientPlan(weighting=weighting))
    counts = np.where(HONEST, 1, 3) * batch.num_examples
    assert (got.num_examples == counts).all()
    assert (got.weights == (counts if weighting == "examples" else 1)).all()


def test_inflated_statistics_are_those_of_examples_that_are_there_so_often() -> None:
    gram = np.full((N, 6), 2**31, np.uint32)
    moments = np.arange(N * K * D, dtype=np.uint32).reshape(N, K, D)
    fields = {"gram": gram, "moments": moments}
    batch = UpdateBatch(tuple((i,) for i in range(N)), np.arange(N), np.ones(N), fields)
    plan = ClientPlan(kind="statistics", fields=("gram", "moments"), weighting="uniform")
    got = attacked(batch, "inflate", 10.0, plan=plan).fields
    factors = np.where(HONEST, 1, 10)
    assert got["gram"].dtype == np.uint64
    assert (got["gram"] == factors[:, None] * gram.astype(np.uint64)).all()
    assert (got["moments"] == factors[:, None, None] * moments).all()
