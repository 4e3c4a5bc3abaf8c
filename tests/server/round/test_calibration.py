"""Which temperature a run takes, and what is kept of it."""

import numpy as np
import pytest

from common.temperature import SHARPNESS, check_losses, largest_spread, losses_by_sharpness
from common.types import Affine, FeatureSet, Head
from server.record.runfolder import SUMMARY
from server.round.calibration import (
    Temperature,
    best_calibration,
    calibration_of,
    kept_calibration,
    of_test_images,
    temperatures,
)
from server.round.client_figures import ClientFigures


def figures(sizes, factors=None):
    """Clients whose logits are right in three of four examples, at different scales."""
    rng = np.random.default_rng(0)
    losses = {}
    for client, n in enumerate(sizes):
        factor = (factors or {}).get(client, 1.0)
        labels = np.arange(n) % 4 == 0
        logits = factor * np.stack([np.ones(n), rng.normal(0, 0.1, n)], axis=1)
        losses[client] = losses_by_sharpness(logits, labels.astype(np.int64)).mean(axis=0)
    counts = dict(enumerate(sizes))
    return ClientFigures(counts, counts, None, None, losses)


def test_test_parts_of_fifty_examples_give_the_temperature():
    found, other = temperatures(figures([30, 20]), {0: 100, 1: 100}, 0.1)
    assert other.value == 0.1
    assert (found.fitted_on, found.examples) == ("clients' test parts", 50)
    # Right in 3 of 4 at a lead of 1: ln 3 is the lead that says so.
    assert found.value == pytest.approx(1 / np.log(3), rel=0.15)


@pytest.mark.parametrize(("told", "value", "words"), [
    (0.1, 0.1, "clients' statistics"), (None, 1.0, "nothing: clients have 49 test examples"),
])  # fmt: skip
def test_fewer_are_not_enough(told, value, words):
    (found,) = temperatures(figures([30, 19]), {0: 100, 1: 100}, told)
    assert (found.value, found.examples) == (value, 0)
    assert found.fitted_on.startswith(words)


def test_a_client_counts_with_no_more_test_examples_than_it_trains_on():
    (honest,) = temperatures(figures([60, 60], {1: 50.0}), {0: 540, 1: 10}, None)
    boasts = figures([60, 60], {1: 50.0})
    boasts = ClientFigures({0: 60, 1: 2**31 - 1}, boasts.correct, None, None, boasts.losses)
    assert temperatures(boasts, {0: 540, 1: 10}, None) == [honest]
    assert honest.examples == 70


def separable(n):
    """Examples of two classes that a head tells apart by one feature, nine of ten rightly."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, n)
    shown = np.where(rng.random(n) < 0.9, labels, 1 - labels)
    affine = Affine(np.ones(1, np.float32), np.full(1, 1, np.float32))
    return FeatureSet((2 * shown[:, None]).astype(np.uint8), labels, affine, "f")


@pytest.mark.parametrize("estimate", [0.5, None])
def test_a_client_that_makes_its_losses_up_does_not_spoil_the_probabilities(estimate, caplog):
    head = Head.from_matrix(np.array([[-0.2, 0.0], [0.2, 0.0]]))
    test, parts = separable(400), [separable(10 + i) for i in range(20)]
    losses = {}
    for client, part in enumerate(parts):
        logits = part.x.astype(np.float64) @ head.matrix.T
        losses[client] = losses_by_sharpness(logits, part.labels).mean(axis=0)
    counts = {client: len(part) for client, part in enumerate(parts)}
    honest = ClientFigures(counts, counts, None, None, losses)
    trained = dict.fromkeys(counts, 100)
    good = best_calibration(temperatures(honest, trained, estimate), head, test)
    assert good.fitted_on == "clients' test parts"
    assert good.loss < 0.6 * good.loss_before
    # As steep as logits can be apart, which is what the check of each curve allows.
    spread = largest_spread(head, test.affine)
    made_up = np.log(2) + spread * SHARPNESS
    check_losses(made_up, 2, spread)
    forged = ClientFigures(counts, counts, None, None, {**losses, 3: made_up})
    choices = temperatures(forged, trained, estimate)
    assert calibration_of(choices[0], head, test).loss > 1.1 * good.loss_before
    found = best_calibration(choices, head, test)
    assert "is not used: with it the loss" in caplog.text
    assert found.loss <= 1.1 * found.loss_before


def kept(tmp_path, head):
    rng = np.random.default_rng(0)
    affine = Affine(np.ones(3, np.float32), np.zeros(3, np.float32))
    q = rng.integers(0, 9, (40, 3), dtype=np.uint8)
    test = FeatureSet(q, rng.integers(0, 2, 40), affine, "")
    found = calibration_of(temperatures(figures([60]), {0: 100}, None)[0], head, test)
    content = {"head_sha256": head.sha256, "calibration": found.model_dump()}
    SUMMARY.write(tmp_path / "summary.json", content)
    return found


def test_a_later_export_finds_the_temperature_of_its_head_only(tmp_path):
    head = Head.from_matrix(np.ones((2, 4)) * [[1], [-1]])
    assert kept_calibration(tmp_path, head) is None
    found = kept(tmp_path, head)
    assert kept_calibration(tmp_path, head) == found
    assert kept_calibration(tmp_path, Head.zeros(2, 3)) is None


def test_a_private_run_takes_that_of_the_servers_own_test_images():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    q = rng.integers(0, 60, (400, 3)) + 40 * (np.arange(3) == labels[:, None])
    test = FeatureSet(q.astype(np.uint8), labels, Affine(np.ones(3, "f4"), np.zeros(3, "f4")), "f")
    head = Head.from_matrix(np.hstack([np.eye(3), np.zeros((3, 1))]) / 2)
    found = of_test_images(head, test)
    assert (found.fitted_on, found.examples) == (
        "the server's test set, on which it is measured too", 400
    )  # fmt: skip
    tried = [
        calibration_of(Temperature(value, ""), head, test).loss
        for value in np.geomspace(found.value / 8, 8 * found.value, 100)
    ]
    assert found.value > 2, "logits are too far apart"
    assert calibration_of(found, head, test).loss <= min(tried) * (1 + 1e-2)
    few = of_test_images(head, test.select(np.arange(49)))
    assert (few.value, few.examples) == (1.0, 0)
    assert few.fitted_on == "nothing: the server has 49 test images, fewer than 50"
