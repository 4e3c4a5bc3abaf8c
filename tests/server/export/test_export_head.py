"""The int8 head's arithmetic: exact sums, and no error but each weight's rounding."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.types import Affine, Head
from server.export.phone_model import PhoneHead, quantize_head

pytestmark = pytest.mark.wide


@st.composite
def heads(draw):
    """A head, an affine map with gains over up to eight orders of magnitude, and features."""
    classes, width = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    head = Head(
        rng.normal(size=(classes, width)).astype(np.float32),
        rng.normal(size=classes).astype(np.float32),
    )
    gain = 10 ** rng.uniform(-4, draw(st.sampled_from([-4, 0, 4])), width)
    affine = Affine(gain.astype(np.float32), rng.uniform(0, 255, width).astype(np.float32))
    return head, affine, rng.integers(0, 256, (8, width), np.uint8)


def phone_logits(head, affine, q):
    with torch.no_grad():
        return PhoneHead(quantize_head(head, affine))(torch.from_numpy(q)).numpy()


@given(heads())
def test_folding_adds_no_error_but_the_rounding_of_each_weight(case):
    head, affine, q = case
    exact = ((q - affine.center.astype(np.float64)) * affine.gain) @ head.weight.T.astype(
        np.float64
    ) + head.bias
    int8 = quantize_head(head, affine)
    # Half a step for each weight, times how far the feature is from its center.
    step = int8.class_scale[:, None] * int8.feature_scale
    bound = np.abs(q - affine.center.astype(np.float64)) @ (step / 2).T
    error = np.abs(phone_logits(head, affine, q) - exact)
    assert (error <= bound + 1e-6 * (np.abs(exact) + bound)).all()
    assert np.abs(int8.weight).max() <= 127


@given(heads())
def test_an_int8_head_adds_up_exactly_in_any_order(case):
    head, affine, q = case
    reverse = slice(None, None, -1)
    turned = Head(np.ascontiguousarray(head.weight[:, reverse]), head.bias)
    turned_affine = Affine(affine.gain[reverse].copy(), affine.center[reverse].copy())
    int8, other = quantize_head(head, affine), quantize_head(turned, turned_affine)
    # The biases are float sums, made once at export.
    other = dataclasses.replace(other, bias=int8.bias)
    with torch.no_grad():
        forwards = PhoneHead(int8)(torch.from_numpy(q))
        backwards = PhoneHead(other)(torch.from_numpy(q[:, reverse].copy()))
    assert forwards.numpy().tobytes() == backwards.numpy().tobytes()


def test_a_head_of_whole_int8_steps_is_exported_without_any_error():
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (5, 30)).astype(np.float32)
    weight[:, 0] = weight[2] = 127  # every class and every feature uses the whole range
    gain = np.full(30, 0.25, np.float32)
    affine = Affine(gain, rng.integers(0, 256, 30).astype(np.float32))
    q = rng.integers(0, 256, (50, 30), np.uint8)
    head = Head(weight, np.arange(5, dtype=np.float32))
    expected = affine(q) @ weight.T + head.bias
    np.testing.assert_allclose(phone_logits(head, affine, q), expected, rtol=1e-6)


def test_gains_of_very_different_size_do_not_cost_the_other_features_their_resolution():
    # Half of the features are nearly constant, so standardizing gives them a gain of 10,000.
    rng = np.random.default_rng(0)
    d, n = 200, 500
    std = np.where(np.arange(d) % 2, 1e-4, 20.0)
    affine = Affine((1 / std).astype(np.float32), np.full(d, 128, np.float32))
    q = np.clip(rng.normal(128, std, (n, d)).round(), 0, 255).astype(np.uint8)
    head = Head(rng.normal(size=(10, d)).astype(np.float32), np.zeros(10, np.float32))
    trained = affine(q) @ head.weight.T
    agreement = (phone_logits(head, affine, q).argmax(1) == trained.argmax(1)).mean()
    assert agreement >= 0.98
    # One scale a class, as the golden five lines: the reason for the second scale.
    folded = head.weight * affine.gain
    step = np.abs(folded).max(axis=1, keepdims=True) / 127
    rows_only = (q - 128.0) @ (np.rint(folded / step) * step).T
    assert (rows_only.argmax(1) == trained.argmax(1)).mean() < 0.5


def test_a_head_of_zeros_gives_exactly_its_bias():
    head = Head(np.zeros((3, 7), np.float32), np.array([0.1, -2, 3], np.float32))
    affine = Affine(np.ones(7, np.float32), np.full(7, 9, np.float32))
    q = np.full((2, 7), 200, np.uint8)
    np.testing.assert_array_equal(phone_logits(head, affine, q), np.stack([head.bias] * 2))
