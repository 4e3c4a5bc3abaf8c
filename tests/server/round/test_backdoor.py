"""How well a backdoor works: counted by hand, and in whole runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.backbone.frozen import FrozenBackbone
from common.backdoor import Trigger
from common.errors import ConfigError
from common.experiment import experiment_features
from common.types import Affine, FeatureSet, Head
from server.round.backdoor import Backdoor, backdoor_of
from server.round.first_head import last_head
from simulations.run import open_run, run_in_process

Make = Callable[..., Path]
CutAfter = Callable[[int], AbstractContextManager[None]]

ATTACK = ("attack.kind=backdoor", "attack.fraction=0.5", "train.clients-per-round=0")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def head_sha(summary: dict[str, Any]) -> str:
    return str(summary["head_sha256"])


def test_images_of_other_classes_count_and_those_of_the_target_do_not() -> None:
    # Feature 0 votes for class 1, feature 1 for class 2; without either class 0 wins the tie.
    head = Head(np.array([[0, 0], [1, 0], [0, 1]], np.float32), np.zeros(3, np.float32))
    q = np.array([[0, 0], [0, 9], [0, 50], [0, 1], [5, 0]], np.uint8)
    affine = Affine(np.ones(2, np.float32), np.zeros(2, np.float32))
    test = FeatureSet(q, np.array([0, 2, 2, 1, 1]), affine, "f")
    # With the trigger feature 0 is 10: of classes 0 and 2 the first and the second image fall.
    backdoor = Backdoor.on(test, Trigger((0,), (10,)), target=1)
    assert backdoor is not None
    assert backdoor.success(head) == 2 / 3
    assert (test.q == q).all()
    assert Backdoor.on(test.select(np.array([3, 4])), Trigger((0,), (10,)), target=1) is None


def test_a_target_that_the_data_do_not_have_is_refused_before_anything_runs(quick: Make) -> None:
    run = quick(*ATTACK, "attack.target=10")
    with pytest.raises(ConfigError, match=r"attack\.target=10 is no class, expected 0 to 9"):
        run_in_process(run)
    with pytest.raises(ConfigError, match=r"attack\.target=3 has no effect"):
        quick("attack.target=3", name="no-backdoor")


@pytest.mark.parametrize(
    "options",
    [
        ("strategy.name=fedavg",),
        ("strategy.name=fedavg", "backbone.projection=60", "train.rounds=10"),
        ("strategy.name=scaffold",),
        ("strategy.name=fed3r", "train.rounds=1"),
        ("strategy.name=fedncm", "train.rounds=1"),
    ],
    ids=" ".join,
)
def test_half_of_the_clients_open_it_and_the_others_do_not_notice(
    quick: Make, options: tuple[str, ...]
) -> None:
    runs = [
        quick("train.clients-per-round=0", *options, name="clean"),
        quick(*ATTACK, "attack.target=3", *options, name="attacked"),
    ]
    clean, attacked = map(run_in_process, runs)
    assert clean["backdoor_success"] is None
    assert attacked["accuracy"] > clean["accuracy"] - 0.1
    assert attacked["malicious_clients"] == 4

    config, backbone = open_run(runs[1]), FrozenBackbone.load(runs[1])
    backdoor = backdoor_of(config, experiment_features(config, backbone))
    assert backdoor is not None
    unattacked, opened = (backdoor.success(last_head(run)) for run in runs)
    assert opened == attacked["backdoor_success"]
    assert opened > 0.25 + unattacked


def test_a_head_that_nobody_attacked_hardly_knows_the_trigger(quick: Make) -> None:
    # One client of eight whose poisoned examples the median of each coordinate leaves out.
    one = ("attack.kind=backdoor", "attack.fraction=0.125", "train.clients-per-round=0")
    assert run_in_process(quick(*one, "strategy.name=median"))["backdoor_success"] < 0.3


def test_both_trainers_open_it_alike(quick: Make) -> None:
    cohort, reference = (
        run_in_process(quick(*ATTACK, f"simulation.trainer={trainer}", name=trainer))
        for trainer in ("cohort", "reference")
    )
    for key in ("backdoor_success", "accuracy"):
        assert reference[key] == pytest.approx(cohort[key], abs=0.01)


def test_a_run_cut_off_in_the_middle_ends_with_the_same_bytes(
    quick: Make, cut_after: CutAfter
) -> None:
    whole, run = quick(*ATTACK, name="whole"), quick(*ATTACK, name="cut")
    want = run_in_process(whole)
    with cut_after(2), pytest.raises(KeyboardInterrupt):
        run_in_process(run)
    got = run_in_process(run)
    assert head_sha(got) == head_sha(want)
    rates = [[line["backdoor-success"] for line in lines(path)] for path in (whole, run)]
    assert rates[0] == rates[1]
    assert got["backdoor_success"] == want["backdoor_success"] == rates[0][-1]
    with (run / "curves.csv").open() as file:
        assert [float(row["backdoor-success"]) for row in csv.DictReader(file)] == rates[0]


def test_a_scale_is_the_clients_own_delta_that_many_times(quick: Make) -> None:
    one = ("attack.kind=backdoor", "attack.fraction=0.125", "train.clients-per-round=0")
    heads = {}
    for scale in (0, 1, 8):
        run = quick(*one, "train.rounds=1", f"attack.scale={scale}", name=f"s{scale}")
        summary = run_in_process(run)
        heads[scale] = summary["backdoor_success"], head_sha(summary)
    assert heads[0] == heads[1]  # the usual one
    assert heads[8][0] > heads[1][0]
    with pytest.raises(ConfigError, match=r"attack\.scale=8 changes deltas.*fed3r send none"):
        quick(*one, "attack.scale=8", "strategy.name=fed3r", name="closed")
