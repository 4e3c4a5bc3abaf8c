"""Each attack reads an unprotected update exactly, and gets nothing out of noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.sgd import train_head
from common.statistics import feature_statistics
from common.types import Affine, FeatureSet, LocalTraining
from simulations.probe.audit.reading import (
    LoneImage,
    exact_share,
    likeness,
    lone_classes,
    lone_image,
    row_space,
    told_apart,
    whole_features,
    within,
)

K, D = 7, 96


def images(n: int, seed: int = 0) -> FeatureSet:
    """Features as a backbone's: many zeros, a few large ones, another gain for each."""
    rng = np.random.default_rng(seed)
    affine = Affine(
        gain=rng.uniform(0.005, 0.05, D).astype(np.float32),
        center=rng.integers(5, 60, D).astype(np.float32),
    )
    q = (rng.gamma(0.7, 40, (n, D)) * (rng.random((n, D)) < 0.7)).clip(0, 255).astype(np.uint8)
    return FeatureSet(q, rng.integers(0, K, n), affine, "f")


def update(
    features: FeatureSet, *, epochs: int = 1, momentum: float = 0.0, bias: bool = True
) -> np.ndarray:
    """What ``client.sgd`` makes of these images, from a head that is not zero."""
    n = len(features)
    x = features.x.copy()
    if not bias:
        x[:, -1] = 0
    start = torch.from_numpy(np.random.default_rng(5).normal(0, 0.1, (K, D + 1))).float()
    orders = [np.arange(n)] * epochs
    training = LocalTraining(0.05, local_epochs=epochs, batch_size=n, momentum=momentum)
    labels = torch.from_numpy(features.labels)
    delta: np.ndarray = train_head(
        torch.from_numpy(x), labels, start, training, orders
    ).delta.numpy()
    return delta


def usual(seed: int = 9) -> float:
    return float(np.linalg.norm(images(40, seed).x[:, :-1], axis=1).mean())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("epochs", "momentum"), [(1, 0.0), (5, 0.0), (3, 0.9)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_update_of_one_image_is_the_image(
    seed: int, epochs: int, momentum: float, bias: bool
) -> None:
    alone = images(1, seed)
    delta = update(alone, epochs=epochs, momentum=momentum, bias=bias)
    found = lone_image(delta)
    assert found.label == alone.labels[0]
    assert (found.length is not None) == bias
    if found.length is not None:
        assert found.length == pytest.approx(np.linalg.norm(alone.x[0, :-1]), rel=1e-4)
    assert likeness(found.x, alone.x[0, :-1]) > 0.99999
    assert exact_share(whole_features(found, alone.affine, usual()), alone.q[0]) == 1


def test_rounding_to_whole_numbers_hides_nothing() -> None:
    # As a clipped update is sent: float64 values in steps of 2^-18 of its norm.
    alone = images(1, 3)
    delta = update(alone, bias=False).astype(np.float64)
    sent = np.trunc(delta / np.linalg.norm(delta) * 2**18)
    found = lone_image(sent)
    assert found.label == alone.labels[0]
    assert likeness(found.x, alone.x[0, :-1]) > 0.9999
    assert exact_share(whole_features(found, alone.affine, usual()), alone.q[0]) > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_noise_as_long_as_the_updates_row_leaves_nothing_of_it(seed: int) -> None:
    alone, rng = images(1, seed), np.random.default_rng(seed)
    delta = update(alone).astype(np.float64)
    # The deviation in each coordinate is the whole update's norm.
    noisy = delta + rng.normal(0, np.linalg.norm(delta), delta.shape)
    found = lone_image(noisy)
    assert abs(likeness(found.x, alone.x[0, :-1])) < 5 / np.sqrt(D)
    read = whole_features(LoneImage(0, found.x, None), alone.affine, usual())
    assert exact_share(read, alone.q[0]) < 0.5


def test_noise_alone_gives_the_label_as_often_as_guessing() -> None:
    rng = np.random.default_rng(0)
    right = sum(lone_image(rng.normal(size=(K, D + 1))).label == 3 for _ in range(2000))
    assert abs(right - 2000 / K) < 5 * np.sqrt(2000 / K * (1 - 1 / K))


@pytest.mark.parametrize("n", [1, 3, K - 1])
def test_few_images_span_the_rows_of_their_update(n: int) -> None:
    own, others = images(n, 1), images(50, 2)
    basis = row_space(update(own))
    assert len(basis) == n
    mine, theirs = (within(some.x[:, :-1], basis) for some in (own, others))
    assert (mine > 0.999).all()
    assert (theirs < 0.9).all()
    assert told_apart(mine, theirs) == 1


def test_of_many_images_the_rows_are_only_a_part() -> None:
    own = images(60, 1)
    basis = row_space(update(own))
    assert len(basis) == K - 1  # the entries of y - p add up to 0
    assert within(own.x[:, :-1], basis).mean() < 0.9


def test_what_rounding_alone_gives_is_no_rank() -> None:
    delta = update(images(2)).astype(np.float64)
    sent = np.trunc(delta / np.linalg.norm(delta) * 2**18)
    assert len(row_space(sent)) == K  # as if the roundings told something
    assert len(row_space(sent, step=1)) == 2


def test_the_rows_of_noise_say_nothing_about_whose_images_they_are() -> None:
    own, others = images(40, 1), images(40, 2)
    noise = np.random.default_rng(0).normal(size=(K, D + 1))
    basis = row_space(noise)
    assert len(basis) == K
    mine, theirs = (within(some.x[:, :-1], basis) for some in (own, others))
    # Standard deviation of the rank statistic, 40 and 40: sqrt(81 / (12 * 1600)) = 0.065.
    assert abs(told_apart(mine, theirs) - 0.5) < 5 * 0.065


def test_a_class_with_one_image_is_read_to_the_last_bit_and_no_other() -> None:
    some = images(30, 4)
    labels = np.array([2, 5, 5, *[1] * 27])
    some = FeatureSet(some.q, labels, some.affine, "f")
    found = lone_classes(feature_statistics(some, K).moments)
    assert sorted(found) == [2]
    assert exact_share(found[2], some.q[0]) == 1


def test_likeness_is_the_cosine() -> None:
    assert likeness(np.array([1.0, 1.0]), np.array([2.0, 0.0])) == pytest.approx(np.sqrt(0.5))
    assert likeness(np.zeros(2), np.ones(2)) == 0
