"""What rounding explains, and what it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ExportError
from server.export.parity import check_within, measure, rounding

Case = tuple[np.ndarray, np.ndarray]


@st.composite
def products(draw: st.DrawFn) -> Case:
    """x and a matrix whose sums may cancel, with entries over many orders of magnitude."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, classes, width = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 400))
    sizes = 10 ** rng.uniform(-3, draw(st.sampled_from([-3, 3])), width)
    x = (rng.normal(size=(n, width)) * sizes).astype(np.float32)
    return x, rng.normal(size=(classes, width)).astype(np.float32)


def one_by_one(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The product, added up in float32 from the last feature to the first."""
    out = np.zeros((len(x), len(matrix)), np.float32)
    for i in reversed(range(x.shape[1])):
        out += x[:, i, None] * matrix[:, i]
    return out


@given(products())
def test_sums_in_any_order_lie_within_the_bound(case: Case) -> None:
    x, matrix = case
    check_within(x @ matrix.T, one_by_one(x, matrix), rounding(x, matrix), "the file")


@given(products())
def test_the_bound_is_small_beside_the_terms(case: Case) -> None:
    x, matrix = case
    assert (rounding(x, matrix) <= 1e-4 * (np.abs(x) @ np.abs(matrix).T)).all()


@pytest.mark.parametrize("wrong", [0.2, np.nan, np.inf])
def test_more_than_rounding_is_refused_by_its_place(wrong: float) -> None:
    x, matrix = np.ones((3, 8), np.float32), np.ones((2, 8), np.float32)
    logits = x @ matrix.T
    logits[2, 1] = wrong
    with pytest.raises(ExportError, match="the file: the logit of class 1 of image 2 is off by"):
        check_within(logits, x @ matrix.T, rounding(x, matrix), "the file")


def test_a_tie_in_float32_changes_no_class() -> None:
    trained = np.array([[1, 1 + 1e-8, 0], [3, 2, 1]], np.float32)
    other = np.array([[1, 0.9, 0], [2, 3, 1]], np.float32)
    check = measure(other, trained, np.array([0, 1]))
    assert check.argmax_agreement == 0.5  # the second image's class did change
    assert check.accuracy == 1.0
    assert check.max_logit_difference == 1.0
    assert check.logit_spread == 1.5
