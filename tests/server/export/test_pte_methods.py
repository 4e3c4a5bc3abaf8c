"""What the methods of device.pte compute, before any runtime compiles them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.statistics import EXACT_ROWS
from server.export.targets.pte_methods import (
    ABILITIES,
    METHODS,
    SETTINGS,
    Clipped,
    Gram,
    Predict,
    Step,
)
from tests.server.export.pte_problems import CASES, Problem, check_clipped, check_sums


@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_are_those_of_the_client(trained, name):
    Problem(trained, CASES[name]).check(Step(trained.backbone))


def test_every_setting_changes_the_head(trained):
    """A case whose term does nothing would prove nothing."""
    plain = Problem(trained, CASES["plain"]).want.delta
    for name in CASES.keys() - {"plain"}:
        assert not torch.allclose(Problem(trained, CASES[name]).want.delta, plain, atol=1e-4), name


@pytest.mark.parametrize("rows", [1, 7, EXACT_ROWS])
def test_sums_are_exact_up_to_256_rows_even_of_the_largest_features(trained, rows):
    random = np.random.default_rng(0).integers(0, 256, (rows, 60), dtype=np.uint8)
    for q in (random, np.full_like(random, 255)):
        labels = np.arange(rows) % 10
        check_sums(Gram(10), q, labels, trained.backbone.affine)


def test_a_clipped_update_is_that_of_the_client():
    check_clipped(Clipped(), (10, 673))


def test_logits_are_the_heads(trained):
    q = torch.from_numpy(trained.features[:20].copy())
    logits = Predict(trained.backbone)(q, torch.from_numpy(trained.head.matrix))
    np.testing.assert_allclose(logits.numpy(), trained.logits[:20], rtol=1e-4, atol=1e-4)


def test_the_contract_names_what_callers_look_for():
    assert SETTINGS == ("lr", "momentum", "decay", "mu", "unit_norm")
    assert " adam" not in " ".join(ABILITIES), "a step is SGD's"
    constants = {"fingerprint", "classes", "abilities", "input_size", "num_features"}
    assert constants | {"num_classes", "most_rows"} < METHODS.keys()
