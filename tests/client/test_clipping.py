"""Clipping in compiled loops gives the integers of the reference, client by client."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from client.cohort.clipping import clipped_products, clipped_sum, products
from client.cohort.examples import Examples
from common.privacy.integers import RESOLUTION, clipped, is_within, squared_norm
from common.softmax import rows_of_norm
from common.types import Affine, FeatureSet, Head

ANY = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    (0.0, -0.0, 1.0, -1.0, 1.401298464324817e-45, 3.4028234663852886e38)
)
CLIPS = st.floats(5e-324, 1.7e308) | st.sampled_from((1e-6, 1.0, 1e6))
FEW = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=ANY)
)


@st.composite
def many(draw: st.DrawFn) -> np.ndarray:
    """Clients with updates of very different lengths, some of them zero, of many numbers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    m, k, d = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 3000))
    scales = 10.0 ** draw(arrays(np.float64, m, elements=st.floats(-40, 37)))
    scales[rng.random(m) < draw(st.floats(0, 1))] = 0
    return (rng.standard_normal((m, k, d)) * scales[:, None, None]).astype(np.float32)


def one_by_one(deltas: np.ndarray, clip: float) -> tuple[np.ndarray, list[bool]]:
    total = np.zeros(deltas.shape[1:], np.int64)
    for delta in deltas:
        total += clipped(delta, clip)
    return total, [is_within(delta, clip) for delta in deltas]


@given(FEW | many(), CLIPS)
@example(np.full((2, 10, 1281), 1, np.float32), 0.5)  # more numbers than are summed at a time
@example(np.ones((1, 1, 2**16), np.float32), 256.0)  # its norm is the clip
@settings(deadline=None, max_examples=300)
def test_the_sum_is_that_of_the_references_integers_to_the_bit(
    deltas: np.ndarray, clip: float
) -> None:
    total, within, finite = clipped_sum(deltas, clip)
    expected, inside = one_by_one(deltas, clip)
    assert total.dtype == np.int64
    np.testing.assert_array_equal(total, expected)
    assert within.tolist() == inside
    assert finite.all()
    assert squared_norm(total) <= (RESOLUTION * len(deltas)) ** 2


@given(many(), CLIPS, st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_who_is_not_finite_is_left_out_alone(
    deltas: np.ndarray, clip: float, bad: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    wild = rng.random(len(deltas)) < 0.5
    deltas[wild, rng.integers(deltas.shape[1]), rng.integers(deltas.shape[2])] = bad
    total, within, finite = clipped_sum(deltas, clip)
    assert finite.tolist() == (~wild).tolist()
    assert not within[wild].any()
    np.testing.assert_array_equal(total, one_by_one(deltas[~wild], clip)[0])


@given(many())
@settings(deadline=None, max_examples=30)
def test_the_order_of_clients_does_not_matter(deltas: np.ndarray) -> None:
    there, back = clipped_sum(deltas, 1.0), clipped_sum(deltas[::-1], 1.0)
    np.testing.assert_array_equal(there[0], back[0])
    np.testing.assert_array_equal(there[1], back[1][::-1])


@st.composite
def chunks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Duals, examples and counts of a few clients, of which one may not be finite."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = np.array(draw(st.lists(st.integers(1, 11), min_size=1, max_size=6)), np.int64)
    dual = rng.standard_normal((draw(st.integers(1, 7)), counts.sum())).astype(np.float32)
    x = rng.standard_normal((counts.sum(), draw(st.integers(1, 70)))).astype(np.float32)
    dual *= 10.0 ** rng.integers(-30, 30)
    if draw(st.booleans()):
        x[rng.integers(len(x))] = draw(st.sampled_from([math.nan, math.inf]))
    return dual, x, counts


def added(dual: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The product as a sum of examples, each float32 product and sum rounded."""
    out = np.zeros((len(dual), x.shape[1]), np.float32)
    for i, row in enumerate(x):
        out += dual[:, i, None] * row
    return out


@given(chunks(), st.sampled_from((1e-6, 1.0, 1e6)))
@settings(deadline=None, max_examples=200)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what is not finite
def test_updates_made_and_clipped_at_once_are_those_made_first_one_example_after_another(
    chunk: tuple[np.ndarray, np.ndarray, np.ndarray], clip: float
) -> None:
    dual, x, counts = chunk
    ends = np.cumsum(counts)[:-1]
    each = zip(np.split(dual, ends, 1), np.split(x, ends), strict=True)
    expected = np.stack([added(*mine) for mine in each])
    made = products(dual, x, counts)
    np.testing.assert_array_equal(made, expected)
    total, within, finite = clipped_products(dual, x, counts, clip)
    good = np.isfinite(expected).all((1, 2))
    assert finite.tolist() == good.tolist()
    reference, inside = one_by_one(expected[good], clip)
    np.testing.assert_array_equal(total, reference)
    assert total.dtype == np.int64
    assert within[good].tolist() == inside
    assert not within[~good].any()


def features(n: int, d: int, seed: int = 0) -> FeatureSet:
    """Examples of which the third has nothing but zeros."""
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 256, (n, d), dtype=np.uint8)
    q[2] = 128
    affine = Affine(rng.uniform(0.004, 0.012, d).astype(np.float32), np.full(d, 128, np.float32))
    return FeatureSet(q, rng.integers(0, 3, n), affine, "f" * 64)


@pytest.mark.parametrize("d", [1, 15, 16, 17, 64, 255, 1280])
@pytest.mark.parametrize("norm", [1e-3, 1.0, 30.0])
def test_rows_get_the_norm_and_no_bias_and_zeros_stay(d: int, norm: float) -> None:
    fs = features(9, d)
    plain = torch.from_numpy(fs.x)
    x = rows_of_norm(plain, norm).numpy()
    long = np.flatnonzero(fs.q.astype(int).max(1) != 128 if d == 1 else np.arange(9) != 2)
    lengths = np.linalg.norm(x[:, :-1].astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths[long], norm, rtol=1e-6)
    np.testing.assert_allclose(  # in the same direction
        x[long, :-1], fs.x[long, :-1] / np.linalg.norm(fs.x[long, :-1], axis=1)[:, None] * norm,
        rtol=1e-5,
    )  # fmt: skip
    assert not x[2].any()
    assert not x[:, -1].any()
    assert (fs.x[:, -1] == 1).all()  # the given ones stay as they are
    np.testing.assert_array_equal(plain.numpy(), fs.x)

    loader = Examples(fs, [np.arange(9)], 16, torch.float32)
    rows = np.array([4, 2, 8, 0])
    for _ in range(2):  # lengths are kept
        for asked in (rows, rows[::-1]):
            _, loaded, _ = loader.load(asked, norm)
            np.testing.assert_allclose(loaded[:, : d + 1].numpy(), x[asked], rtol=1e-6)
            assert not loaded[:, d:].any()
    _, loaded, _ = loader.load(rows)
    np.testing.assert_array_equal(loaded[:, : d + 1].numpy(), fs.x[rows])


def test_a_head_trained_on_rows_of_a_norm_needs_no_change_for_plain_ones() -> None:
    # The norm is the mean length, so logits of plain features have the scale of training.
    fs = features(200, 40)
    lengths = np.linalg.norm(fs.x[:, :-1], axis=1)
    norm = float(lengths[lengths > 0].mean())
    head = Head(np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32), np.zeros(3, "f4"))
    matrix = torch.from_numpy(head.matrix)
    plain = torch.from_numpy(fs.x) @ matrix.t()
    trained = rows_of_norm(torch.from_numpy(fs.x), norm) @ matrix.t()
    assert float(plain.std() / trained.std()) == pytest.approx(1, abs=0.05)
    others = np.arange(200) != 2
    assert (plain.argmax(1) == trained.argmax(1)).numpy()[others].all()
