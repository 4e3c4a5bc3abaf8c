"""One client moves the exact sum by at most RESOLUTION, whatever it holds."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from common.errors import ReplyError
from common.privacy.integers import (
    MAX_CLIENTS,
    MAX_SIZE,
    OFFSET,
    RESOLUTION,
    check_clipped,
    clipped,
    is_within,
    offset_sum,
    squared_norm,
    with_offset,
)
from common.statistics import exact_sum

# Numbers of every size that a float has, with many zeros, equal ones, and ones near each other.
ANY = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    (0.0, -0.0, 1.0, -1.0, 0.1, 5e-324, -5e-324, 1.7e308, -1.7e308, 1 - 2**-53, 2.0**-20)
)
CLIPS = st.floats(5e-324, 1.7e308) | st.sampled_from((1e-6, 1.0, 1e6, 0.1))
UPDATES = array_shapes(max_dims=2, max_side=40).flatmap(
    lambda shape: (
        arrays(np.float64, shape, elements=ANY)
        | arrays(np.float32, shape, elements=st.floats(-(2.0**120), 2.0**120, width=32))
    )
)
SCALED = st.builds(
    lambda seed, size, decades, equal: (
        (np.ones(size) if equal else np.random.default_rng(seed).standard_normal(size))
        * 10.0**decades
    ),
    st.integers(0, 2**32),
    st.integers(1, 700),
    st.floats(-6, 6),
    st.booleans(),
)


def exact_squares(values: np.ndarray) -> int:
    return sum(int(value) ** 2 for value in values.reshape(-1))


@given(UPDATES | SCALED, CLIPS)
@example(np.full(3, 1.7e308), 5e-324)
@example(np.full(3, 5e-324), 1.7e308)
@example(np.array([1.0, 0.0]), 1.0)
@example(np.full(2**16, 1.0), 256.0)  # its norm is the clip, and so are all parts' multiples
@settings(deadline=None, max_examples=400)
def test_no_update_is_longer_than_the_clip(delta: np.ndarray, clip: float) -> None:
    assert exact_squares(clipped(delta, clip)) <= RESOLUTION**2


@given(st.lists(SCALED, min_size=1, max_size=6), st.floats(1e-6, 1e6), st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_adding_or_removing_one_client_moves_the_sum_by_at_most_the_clip(
    deltas: list[np.ndarray], clip: float, pick: int
) -> None:
    size = max(delta.size for delta in deltas)
    sent = [with_offset(clipped(np.resize(delta, size), clip)) for delta in deltas]
    left_out = pick % len(sent)
    total = exact_sum(np.zeros(size, np.uint64), np.stack(sent))
    others = sent[:left_out] + sent[left_out + 1 :]
    neighbour = exact_sum(np.zeros(size, np.uint64), np.array(others).reshape(-1, size))
    moved = offset_sum(total, len(sent)) - offset_sum(neighbour, len(others))
    assert exact_squares(moved) <= RESOLUTION**2
    np.testing.assert_array_equal(moved, clipped(np.resize(deltas[left_out], size), clip))
    check_clipped(total, len(sent))


@given(UPDATES, CLIPS)
@settings(deadline=None, max_examples=200)
def test_it_is_the_update_in_steps_of_the_clip_and_never_larger(
    delta: np.ndarray, clip: float
) -> None:
    # Without roundings: each number is x / max(clip, norm) RESOLUTION, less than a step and a
    # relative 2^-20 sqrt(size) nearer to zero.
    exact = [Fraction(float(x)) for x in delta.reshape(-1)]
    squared = sum(x * x for x in exact)
    top = max(map(abs, exact))
    if top == 0:
        norm = Fraction(0)
    else:  # the square root of a fraction of any size, to 2^-60
        norm = top * Fraction(math.isqrt(int(squared / top**2 * 4**60)), 2**60)
    longest = max(Fraction(clip), norm)
    for x, got in zip(exact, clipped(delta, clip).reshape(-1).tolist(), strict=True):
        want = abs(x) / longest * RESOLUTION
        slack = 1 + want * Fraction(math.ceil(math.sqrt(len(exact)) * 1.01), 2**20)
        assert want - slack - Fraction(1, 10**6) <= abs(got) <= want + Fraction(1, 10**6)
        assert got == 0 or (got > 0) == (x > 0)


@given(SCALED, st.floats(1e-6, 1e6), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_coordinates_does_not_matter(
    delta: np.ndarray, clip: float, chance: np.random.Generator
) -> None:
    order = list(range(delta.size))
    chance.shuffle(order)
    np.testing.assert_array_equal(clipped(delta[order], clip), clipped(delta, clip)[order])


@given(UPDATES, CLIPS)
@settings(deadline=None)
def test_it_follows_the_five_lines_that_other_languages_follow(
    delta: np.ndarray, clip: float
) -> None:
    x = [float(value) for value in delta.reshape(-1)]
    peak = max(map(abs, x))
    u = [value / peak if peak else 0.0 for value in x]
    norm = math.sqrt(sum(math.ceil(abs(value) * 2.0**20) ** 2 for value in u)) / 2**20
    factor = RESOLUTION / norm if peak / clip * norm > 1 else peak / clip * RESOLUTION
    assert clipped(delta, clip).reshape(-1).tolist() == [math.trunc(v * factor) for v in u]
    assert is_within(delta, clip) == (not peak / clip * norm > 1)


def test_rounding_to_nearest_would_be_longer_than_the_clip() -> None:
    # The reason for truncation: the bound is tight enough that nearest rounding breaks it.
    generator = np.random.default_rng(0)
    longest = 0
    for _ in range(20):
        delta = generator.standard_normal(2560)
        nearest = np.rint(delta / np.linalg.norm(delta) * RESOLUTION).astype(np.int64)
        longest = max(longest, exact_squares(nearest))
        assert 0.99 < math.sqrt(exact_squares(clipped(delta, 1e-3))) / RESOLUTION <= 1
    assert longest > RESOLUTION**2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("call", [clipped, is_within])
def test_what_is_not_finite_is_refused(bad: float, call: object) -> None:
    assert callable(call)
    with pytest.raises(ReplyError, match="delta is not finite"):
        call(np.array([0.0, bad, 1.0], np.float32), 1.0)
    with pytest.raises(ValueError, match=f"clip is {bad}, expected a finite number above 0"):
        call(np.ones(3), bad)


def test_sizes_and_clips_without_meaning_are_refused() -> None:
    for clip in (0.0, -1.0):
        with pytest.raises(ValueError, match="expected a finite number above 0"):
            clipped(np.ones(2), clip)
    with pytest.raises(ReplyError, match=f"has {MAX_SIZE + 1} numbers, expected at most"):
        clipped(np.broadcast_to(np.float32(0), (MAX_SIZE + 1,)), 1.0)
    assert clipped(np.zeros((0, 3)), 1.0).shape == (0, 3)


def test_the_largest_update_does_not_overflow() -> None:
    q = clipped(np.broadcast_to(np.float32(1e30), (MAX_SIZE,)), 1.0)
    assert q[0] == math.floor(RESOLUTION / math.sqrt(MAX_SIZE))
    assert squared_norm(q) == MAX_SIZE * int(q[0]) ** 2 <= RESOLUTION**2


def test_what_is_sent_is_unsigned_and_comes_back() -> None:
    q = np.array([-RESOLUTION, 0, RESOLUTION])
    sent = with_offset(q)
    assert sent.dtype == np.uint32
    assert sent.tolist() == [0, OFFSET, 2 * OFFSET]
    many = sent.astype(np.uint64) * 20_000  # above 2^32
    np.testing.assert_array_equal(offset_sum(many, 20_000), q * 20_000)


def test_a_server_refuses_what_no_honest_client_sends() -> None:
    honest = with_offset(clipped(np.array([[3.0, -4.0]]), 1.0))
    check_clipped(honest)
    check_clipped(with_offset(np.array([RESOLUTION, 0])))
    check_clipped(with_offset(np.array([0, -RESOLUTION])))
    with pytest.raises(ReplyError, match=f"clipped_delta has {2 * OFFSET + 1}, expected at most"):
        check_clipped(np.array([2 * OFFSET + 1, OFFSET], np.uint32))
    # One integer too long: a square more than the clip's, which a float of 32 bits cannot see.
    with pytest.raises(ReplyError, match="is 1 clips long, which is more than 1"):
        check_clipped(with_offset(np.array([RESOLUTION, 1])))
    with pytest.raises(ReplyError, match="is 1.41421356 clips long, which is more than 1"):
        check_clipped(with_offset(np.array([RESOLUTION, RESOLUTION])))
    for clients in (0, -1, MAX_CLIENTS + 1):
        with pytest.raises(ReplyError, match=f"2 numbers from {clients} clients, expected at most"):
            check_clipped(honest, clients)
    with pytest.raises(ReplyError, match=f"has {MAX_SIZE + 1} numbers from 1 clients"):
        check_clipped(np.broadcast_to(np.uint32(0), (MAX_SIZE + 1,)))


@pytest.mark.parametrize("clients", [2, 1000, MAX_CLIENTS])
def test_a_sum_of_several_has_several_times_the_bound(clients: int) -> None:
    def of(*sums: int) -> np.ndarray:
        return (np.array(sums) + OFFSET * clients).astype(np.uint64)

    check_clipped(of(clients * RESOLUTION, 0), clients)
    check_clipped(of(0, -clients * RESOLUTION), clients)
    with pytest.raises(ReplyError, match=f"is {clients} clips long, which is more than"):
        check_clipped(of(clients * RESOLUTION, 1), clients)
    with pytest.raises(ReplyError, match="expected at most"):
        check_clipped(of(clients * RESOLUTION + 1), clients)


@given(st.lists(st.integers(-(2**38), 2**38), max_size=50))
def test_squares_of_sums_are_exact(values: list[int]) -> None:
    assert squared_norm(np.array(values, np.int64)) == sum(value**2 for value in values)


def test_squares_of_the_largest_sum_do_not_wrap_around() -> None:
    most = MAX_CLIENTS * RESOLUTION
    for value in (most, -most, most - 1):
        assert squared_norm(np.broadcast_to(np.int64(value), (MAX_SIZE,))) == MAX_SIZE * value**2
