"""Privacy around each strategy that needs no more than the sum of deltas, and around no other."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.privacy.integers import RESOLUTION, clipped, with_offset
from common.types import Affine, ClientPlan, Head, IntArray, UpdateBatch
from common.updates import added_up, joined
from server.record.checkpoint import load_latest, restore_state, save_checkpoint
from server.strategies import STRATEGIES, build_strategy, first_plan
from server.strategies.private import (
    DIGEST_BYTES,
    Digests,
    PrivateState,
    Released,
    Terms,
    private_reason,
    with_privacy,
)
from server.strategy import RoundContext, Strategy, with_metrics

K, D, CLIENTS, ROUNDS = 3, 5, 8, 6
SUITED = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedadagrad", "fedyogi")
TERMS = {
    "everyone": Terms(divisor=10, rounds=ROUNDS, clip=0.5, unit_norm=2.0, step=3.0),
    "adaptive": Terms(divisor=10, rounds=ROUNDS, clip=0.5, unit_norm=2.0, step=3.0, vote=70_000),
    "chained": Terms(divisor=4, rounds=ROUNDS, clip=0.5, unit_norm=2.0, step=3.0, chained=True),
}
AFFINE = Affine(np.full(D, 0.01, np.float32), np.full(D, 128.0, np.float32))
each_strategy = pytest.mark.parametrize("name", SUITED)
each_form = pytest.mark.parametrize("form", TERMS)


def quiet(number: int, total: IntArray, _clip: float, _earlier: Digests) -> Released:
    """A release without any noise."""
    digest = np.frombuffer(hashlib.sha256(total.tobytes()).digest(), np.uint8)
    return Released(total.copy(), digest, number >= ROUNDS)


def loud(number: int, total: IntArray, clip: float, earlier: Digests) -> Released:
    """Noise that everything decides which a release is called with."""
    seed = [number, *total.astype(np.uint64).tolist(), *earlier.ravel().tolist(), int(clip * 1e9)]
    noise = np.rint(np.random.default_rng(seed).normal(0, RESOLUTION, total.size))
    released = quiet(number, total, clip, earlier)
    return dataclasses.replace(released, noisy=total + noise.astype(np.int64))


def context(number: int = 1) -> RoundContext:
    return RoundContext(number, CLIENTS, CLIENTS, lr=0.1, affine=AFFINE, zero_point=0, seed=0)


def deltas(number: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(number)
    return [rng.normal(size=(K, D + 1)) * scale for scale in np.linspace(0.02, 0.4, CLIENTS)]


def row(client: int, delta: np.ndarray, plan: ClientPlan) -> UpdateBatch:
    one = np.ones(1, np.int64)
    fields: dict[str, np.ndarray] = {"clipped_delta": with_offset(clipped(delta, plan.clip))[None]}
    if "within_clip" in plan.fields:
        fields["within_clip"] = np.array([[np.linalg.norm(delta) <= plan.clip]], np.uint32)
    return UpdateBatch(((client,),), one, one.astype(np.float64), fields)


def rows(plan: ClientPlan, number: int = 1) -> list[UpdateBatch]:
    return [row(client, delta, plan) for client, delta in enumerate(deltas(number))]


def start(strategy: Strategy[Any]) -> tuple[Any, Head]:
    head = Head.from_matrix(np.random.default_rng(9).normal(size=(K, D + 1)) * 0.1)
    return strategy.init(head), head


def step(
    strategy: Strategy[Any], state: Any, head: Head, batches: list[UpdateBatch], number: int = 1
) -> tuple[Any, Head, dict[str, float]]:
    return with_metrics(
        strategy.aggregate(state, head, joined(batches), context(number)), strategy.name
    )


def flat(state: Any) -> list[Any]:
    values = [getattr(state, field.name) for field in dataclasses.fields(state)]
    return [
        flat(v) if dataclasses.is_dataclass(v) else v.tobytes() if isinstance(v, np.ndarray) else v
        for v in values
    ]


@each_form
@each_strategy
def test_nothing_given_is_changed_and_the_form_is_kept(name: str, form: str) -> None:
    strategy = with_privacy(build_strategy(name), TERMS[form], loud)
    state, head = start(strategy)
    batches = rows(strategy.plan(state, context()))
    before = [{key: a.copy() for key, a in batch.fields.items()} for batch in batches]
    matrix, kept = head.matrix.copy(), flat(state)
    new_state, new, _ = step(strategy, state, head, batches)
    assert (head.matrix == matrix).all()
    assert flat(state) == kept
    for batch, fields in zip(batches, before, strict=True):
        assert all((batch.fields[key] == fields[key]).all() for key in fields)
    assert new.matrix.shape == matrix.shape
    assert new.weight.dtype == new.bias.dtype == np.float32
    assert [type(v) for v in flat(new_state)] == [type(v) for v in kept]


@each_form
@each_strategy
def test_neither_order_nor_the_number_of_nodes_changes_a_bit(name: str, form: str) -> None:
    strategy = with_privacy(build_strategy(name), TERMS[form], loud)
    state, head = start(strategy)
    single = rows(strategy.plan(state, context()))
    nodes = [added_up(joined(single[:3])), added_up(joined(single[3:]))]
    heads = [step(strategy, state, head, b)[1].sha256 for b in (single, single[::-1], nodes)]
    assert len({*heads}) == 1


@each_form
@each_strategy
def test_a_saved_state_goes_on_to_the_same_bytes(name: str, form: str, tmp_path: Path) -> None:
    strategy = with_privacy(build_strategy(name), TERMS[form], loud)
    state, head = start(strategy)
    for number in range(1, ROUNDS):  # into the half of which heads are averaged
        batches = rows(strategy.plan(state, context(number)), number)
        state, head, _ = step(strategy, state, head, batches, number)
    save_checkpoint(tmp_path, round_number=ROUNDS - 1, head=head, state=state, counters={}, keep=1)
    kept = load_latest(tmp_path)
    assert kept is not None
    restored = restore_state(strategy.init(head), kept)
    batches = rows(strategy.plan(state, context(ROUNDS)), ROUNDS)
    whole = step(strategy, state, head, batches, ROUNDS)
    again = step(strategy, restored, kept.head, batches, ROUNDS)
    assert whole[1].sha256 == again[1].sha256
    assert flat(whole[0]) == flat(again[0])


@each_strategy
def test_the_inner_strategy_gets_the_mean_of_clipped_updates_as_one_client(name: str) -> None:
    terms = TERMS["everyone"]
    inner, outer = build_strategy(name), with_privacy(build_strategy(name), terms, quiet)
    state, head = start(outer)
    plan = outer.plan(state, context())
    _, new, _ = step(outer, state, head, rows(plan))
    # McMahan et al.: shorten, add up, divide by the configured number and not by those who came.
    norms = [max(1.0, float(np.linalg.norm(delta)) / terms.clip) for delta in deltas()]
    assert 0 < sum(norm > 1 for norm in norms) < CLIENTS
    mean = sum(d / n for d, n in zip(deltas(), norms, strict=True)) / terms.divisor * terms.step
    mean[:, -1] = 0  # features of one norm have no bias
    one = np.ones(1, np.int64)
    alone = UpdateBatch(((0,),), one, np.ones(1), {"delta": mean[None].astype(np.float32)})
    _, want, _ = step(inner, inner.init(head), head, [alone])
    # Each update is off by a unit of clip / 2^18, of which adaptive steps make 100 times as much.
    unit = CLIENTS * terms.clip / RESOLUTION / terms.divisor * terms.step
    np.testing.assert_allclose(new.matrix, want.matrix, rtol=1e-6, atol=100 * unit)
    assert np.abs(new.matrix - head.matrix).max() > 1000 * unit


@each_strategy
def test_the_last_head_is_the_mean_of_the_last_half(name: str) -> None:
    strategy = with_privacy(build_strategy(name), TERMS["everyone"], loud)
    inner = build_strategy(name)
    state, head = start(strategy)
    heads = []
    for number in range(1, ROUNDS + 1):
        before, plan = (state, head), strategy.plan(state, context(number))
        state, head, _ = step(strategy, *before, rows(plan, number), number)
        heads.append(head.matrix)
    assert inner.name == strategy.name
    # What the last round's own head would have been: that of a longer run with the same updates.
    longer = dataclasses.replace(TERMS["everyone"], rounds=ROUNDS)
    unfinished = with_privacy(build_strategy(name), longer, _never_last(loud))
    last = step(unfinished, *before, rows(plan, ROUNDS), ROUNDS)[1].matrix
    want = np.mean([*heads[ROUNDS // 2 : -1], last], axis=0)
    np.testing.assert_allclose(heads[-1], want, rtol=1e-6, atol=1e-7)
    assert np.abs(last - want).max() > 1e-3


def _never_last(release: Any) -> Any:
    return lambda *given: dataclasses.replace(release(*given), last=False)


def test_a_run_whose_budget_ends_early_ends_with_the_mean_so_far() -> None:
    def short(number: int, total: IntArray, clip: float, earlier: Digests) -> Released:
        return dataclasses.replace(loud(number, total, clip, earlier), last=number == ROUNDS - 1)

    strategy = with_privacy(build_strategy("fedavg"), TERMS["everyone"], short)
    state, head = start(strategy)
    for number in range(1, ROUNDS):
        state, head, _ = step(
            strategy, state, head, rows(strategy.plan(state, context(number)), number), number
        )
    assert state.num_heads == 2
    assert head.sha256 == Head.from_matrix(state.heads / 2).sha256


def test_a_round_without_clients_is_released_like_any_other() -> None:
    for form, terms in TERMS.items():
        seen: list[IntArray] = []

        def release(
            number: int, total: IntArray, clip: float, earlier: Digests, seen: list[IntArray] = seen
        ) -> Released:
            seen.append(total)
            return loud(number, total, clip, earlier)

        strategy = with_privacy(build_strategy("fedavg"), terms, release)
        state, head = start(strategy)
        _, new, _ = with_metrics(strategy.aggregate(state, head, joined([]), context()), form)
        assert seen[0].tolist() == [0] * (K * (D + 1) + bool(terms.vote))
        assert np.abs(new.matrix - head.matrix).max() > 0


def test_the_clip_follows_the_median_of_norms() -> None:
    strategy = with_privacy(build_strategy("fedavg"), TERMS["adaptive"], quiet)
    state, head = start(strategy)
    terms = dataclasses.replace(TERMS["adaptive"], divisor=CLIENTS)
    for clip in (0.1, 5.0):
        strategy = with_privacy(
            build_strategy("fedavg"), dataclasses.replace(terms, clip=clip), quiet
        )
        state, _ = start(strategy)
        for _ in range(60):
            state, _, told = step(strategy, state, head, rows(strategy.plan(state, context())))
        norms = sorted(float(np.linalg.norm(delta)) for delta in deltas())
        assert norms[CLIENTS // 2 - 1] * 0.9 < state.clip < norms[CLIENTS // 2] * 1.1
        assert told["clip"] == pytest.approx(state.clip, rel=0.2)
    # One step by hand: all are within, the share is 1, and the clip falls by exp(-0.2 (1 - 0.5)).
    wide = with_privacy(build_strategy("fedavg"), dataclasses.replace(terms, clip=5.0), quiet)
    after, _, _ = step(wide, *start(wide), rows(wide.plan(start(wide)[0], context())))
    assert after.clip == pytest.approx(5.0 * np.exp(-0.1))


def test_who_does_not_take_part_moves_neither_sum_nor_vote() -> None:
    totals: list[IntArray] = []

    def release(number: int, total: IntArray, clip: float, earlier: Digests) -> Released:
        totals.append(total)
        return quiet(number, total, clip, earlier)

    vote = TERMS["adaptive"].vote
    strategy = with_privacy(build_strategy("fedavg"), TERMS["adaptive"], release)
    state, head = start(strategy)
    all_rows = rows(strategy.plan(state, context()))
    for batches in (all_rows, all_rows[1:], all_rows[:-1]):
        step(strategy, state, head, batches)
    for fewer in totals[1:]:
        apart = totals[0] - fewer
        assert abs(apart[-1]) == vote
        assert np.linalg.norm(apart[:-1].astype(float)) <= RESOLUTION


def test_digests_are_kept_where_later_noise_needs_them_and_nowhere_else() -> None:
    for form, terms in TERMS.items():
        strategy = with_privacy(build_strategy("fedavg"), terms, loud)
        state, head = start(strategy)
        state, head, _ = step(strategy, state, head, rows(strategy.plan(state, context(2))), 2)
        assert isinstance(state, PrivateState)
        assert state.digests.shape == (ROUNDS if form == "chained" else 0, DIGEST_BYTES)
        assert np.flatnonzero(state.digests.any(axis=1)).tolist() == [1] * (form == "chained")


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in SUITED])
def test_all_others_are_refused_with_the_reason(name: str) -> None:
    strategy = build_strategy(name)
    assert private_reason(strategy, first_plan(strategy))
    with pytest.raises(ValueError, match=f"^{strategy.name}: "):
        first_plan(with_privacy(strategy, TERMS["everyone"], quiet))


def test_a_strategy_of_the_users_own_gets_no_row_and_makes_no_personal_head() -> None:
    fedavg = build_strategy("fedavg")
    rows_seen = dataclasses.replace(fedavg, name="own", each=lambda _state, _head, given: given)
    personal = dataclasses.replace(fedavg, name="own", personal=-1.0)
    for strategy, why in ((rows_seen, "reads each client's update"), (personal, "heads of their")):
        assert why in private_reason(strategy, first_plan(strategy))
        with pytest.raises(ValueError, match=f"^own: .*{why}"):
            with_privacy(strategy, TERMS["everyone"], quiet)


@each_strategy
def test_clients_are_asked_for_nothing_but_their_clipped_update(name: str) -> None:
    strategy = build_strategy(name)
    assert private_reason(strategy, first_plan(strategy)) == ""
    plan = first_plan(with_privacy(strategy, TERMS["everyone"], quiet))
    assert (plan.fields, plan.weighting, plan.private) == (("clipped_delta",), "uniform", True)
    assert (plan.clip, plan.unit_norm) == (0.5, 2.0)
