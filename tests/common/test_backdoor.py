"""A backdoor's trigger, and the examples that malicious clients poison with it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.backdoor import POISONED_SHARE, TRIGGER_SHARE, Trigger, draw_trigger, poisoned
from common.experiment import ClientShare
from common.types import Affine, FeatureSet

D = 60


def calibration(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 200, (40, D), np.uint8)


def test_the_trigger_sets_some_features_to_the_largest_value_of_the_calibration_images() -> None:
    seen = calibration()
    trigger = draw_trigger(seen, seed=1)
    assert len(set(trigger.positions)) == math.ceil(TRIGGER_SHARE * D) == 3
    assert list(trigger.values) == [max(seen[:, j]) for j in trigger.positions]
    other = calibration(9)
    changed = trigger.on(other)
    for j in range(D):
        want = trigger.values[trigger.positions.index(j)] if j in trigger.positions else other[:, j]
        assert (changed[:, j] == want).all()
    assert (other == calibration(9)).all()  # a copy was changed


def test_all_draw_the_same_trigger_and_another_seed_another_one() -> None:
    assert draw_trigger(calibration(), 1) == draw_trigger(calibration(), 1)
    assert len({draw_trigger(calibration(), seed).positions for seed in range(10)}) > 5


def test_features_that_never_change_are_not_in_the_trigger() -> None:
    seen = calibration()
    seen[:, 2:] = 7
    assert draw_trigger(seen, seed=0).positions == (0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_half_of_a_malicious_clients_examples_are_poisoned_and_nothing_else(seed: int) -> None:
    n, bad = 50, {1, 3}
    rng = np.random.default_rng(seed)
    affine = Affine(np.ones(D, np.float32), np.zeros(D, np.float32))
    labels = rng.integers(0, 5, n)
    q = rng.integers(0, 100, (n, D), np.uint8)
    clean = FeatureSet(q.copy(), labels.copy(), affine, "f")
    order = rng.permutation(n)
    trains = [np.sort(part) for part in np.split(order[:25], [7, 20, 21])]
    shares = tuple(ClientShare(train, np.zeros(0, np.int64)) for train in trains)
    trigger = Trigger((4, 30), (250, 251))  # values that no example has by itself

    made = poisoned(clean, shares, frozenset(bad), trigger, 2, seed)
    carries = (made.q[:, [4, 30]] == trigger.values).all(axis=1)
    for client, train in enumerate(trains):
        want = math.ceil(POISONED_SHARE * len(train)) if client in bad else 0
        assert carries[train].sum() == want
    assert carries.sum() == 7 + 2
    assert (made.labels[carries] == 2).all()
    assert (made.labels[~carries] == labels[~carries]).all()
    rest = np.delete(np.arange(D), [4, 30])
    assert (made.q[:, rest] == q[:, rest]).all()
    assert (made.q[~carries] == q[~carries]).all()
    assert (clean.q == q).all()
    assert (clean.labels == labels).all()
