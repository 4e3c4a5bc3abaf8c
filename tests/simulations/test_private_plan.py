"""A planned private run: the simulation is that of a run, and says what it cannot know."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fedhead
from common.config import load_config
from common.experiment import client_shares, experiment_dataset, experiment_features
from common.types import FloatArray
from server.export.run_model import prepare
from server.record.runfolder import read_run_json
from server.round.private import Decided
from simulations.probe.private_plan import _unit
from simulations.probe.private_training import Dealt, _weights, private_head

Fedhead = Callable[..., tuple[int, str, str]]


def decided(**values: float) -> Decided:
    terms = {
        "clients": 12, "examples": 4.0, "rounds": 4, "norm": 1.0, "multiplier": 1.0, "noise": 1.0,
        "clip": 0.1, "step": 10.0, "divisor": 12.0,
    }  # fmt: skip
    return Decided(**{**terms, **values})  # type: ignore[arg-type]


def dealt(sizes: list[int], classes: int = 3, width: int = 5) -> Dealt:
    rng = np.random.default_rng(sum(sizes))
    x = rng.standard_normal((sum(sizes), width)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return Dealt(x, rng.integers(0, classes, sum(sizes)), np.array(sizes), classes)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [3, 1, 7], [150, 2, 90]], ids=str)
def test_updates_are_the_clipped_mean_gradients(sizes: list[int]) -> None:
    data, rng = dealt(sizes), np.random.default_rng(1)
    head = rng.standard_normal((3, 5)).astype(np.float32)
    weights, clip = np.arange(1.0, len(sizes) + 1), 0.15
    wanted, start, clipped = np.zeros((3, 5)), 0, 0
    for weight, size in zip(weights, sizes, strict=True):
        gradient = np.zeros((3, 5))
        for i in range(start, start + size):
            logits = head.astype(np.float64) @ data.x[i]
            shares = np.exp(logits) / np.exp(logits).sum()
            gradient += np.outer(shares - np.eye(3)[data.labels[i]], data.x[i]) / size
        length = float(np.linalg.norm(gradient))
        clipped += length > clip
        wanted -= weight * gradient * min(1.0, clip / length)
        start += size
    assert clipped  # the bound is at work
    assert data.updates(head, weights, clip) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_everyone_counts_once_however_few_are_simulated() -> None:
    every = _weights(5, np.arange(5), 1, decided(), "everyone", np.random.default_rng(0))
    assert every.tolist() == [12 / 5] * 5


def test_coins_ask_as_many_clients_as_they_should() -> None:
    rng, terms = np.random.default_rng(0), decided(rate=0.25, divisor=3.0)
    drawn = [_weights(12, np.arange(12), 1, terms, "poisson", rng) for _ in range(4000)]
    assert {*np.unique(drawn)} == {0.0, 1.0}  # nobody twice
    assert np.mean(np.sum(drawn, axis=1)) == pytest.approx(3.0, abs=0.12)  # 5 deviations of 1.5
    few = [_weights(4, np.arange(4), 1, terms, "poisson", rng) for _ in range(4000)]
    assert np.mean(np.sum(few, axis=1)) == pytest.approx(3.0, abs=0.14)  # of 1.73


def test_turns_ask_each_client_once_in_as_many_rounds() -> None:
    rng, terms = np.random.default_rng(0), decided(separation=3, divisor=4.0)
    turns = rng.permutation(12)
    rounds = [_weights(12, turns, t, terms, "min-separation", rng) for t in (1, 2, 3, 4)]
    assert np.sum(rounds[:3], axis=0).tolist() == [1.0] * 12
    assert (rounds[3] == rounds[0]).all()


def test_noise_of_a_head_is_that_of_the_last_half_of_its_rounds() -> None:
    # Where nobody learns anything, rounds add N(0, (step noise clip / n)^2) each, and of the heads
    # after rounds 3 and 4 the mean has the first three rounds' noise, and half of the fourth's.
    data = Dealt(np.zeros((12, 400), np.float32), np.zeros(12, np.int64), np.ones(12, np.int64), 5)
    head = private_head(data, decided(), "everyone", np.random.default_rng(0))
    deviation = 10.0 * 1.0 * 0.1 / 12 * math.sqrt(3 + 0.25)
    assert head.std() == pytest.approx(deviation, rel=0.08)  # 5 deviations of 2,000 numbers


def test_noise_with_turns_takes_earlier_noise_off() -> None:
    data = Dealt(np.zeros((12, 400), np.float32), np.zeros(12, np.int64), np.ones(12, np.int64), 5)
    heads = {
        b: private_head(
            data, decided(separation=b, rounds=6), "min-separation", np.random.default_rng(0)
        )
        for b in (1, 6)
    }
    # The sum of all rounds' noise is C z with c_0, ..., c_5 in place of ones (C C = all ones).
    assert heads[6].std() < 0.75 * heads[1].std()


@pytest.fixture
def digits(tiny_toml: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_toml.replace("clients-per-round = 4\nlr = 0.01\n", ""))
    return path


@pytest.mark.wide
def test_it_is_what_a_run_does(digits: Path, tmp_path: Path) -> None:
    """With next to no noise a run's head is the simulated one, weight by weight."""
    overrides = {"privacy.epsilon": 1e7, "privacy.step": 30.0, "train.rounds": 5}
    run = fedhead.run(digits, overrides, out=tmp_path / "run", progress=False)
    config = load_config(run.path / "config.toml")
    terms = Decided(**read_run_json(run.path)["privacy"])
    features = experiment_features(config, prepare(config, experiment_dataset(config)))
    shares = [share.train for share in client_shares(config)]
    order = np.concatenate(shares)
    sizes = np.array([len(share) for share in shares])
    data = Dealt(_unit(features, order), features.labels[order], sizes, 10)
    head = private_head(data, terms, "everyone", np.random.default_rng(0))
    found: FloatArray = run.head.weight * terms.norm  # its features have that norm, and these 1
    assert np.abs(head).max() > 0.1
    assert np.abs(found - head).max() < 0.01 * np.abs(head).max()
    assert np.abs(run.head.bias).max() == 0.0


def test_the_command_says_noise_and_accuracy(fedhead: Fedhead, digits: Path) -> None:
    arguments = ("privacy", "plan", "--clients", 40, "--epsilon", 3, "--data", digits)
    code, out, _ = fedhead(*arguments)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.replace("│", " ").split())
    for part in (
        "epsilon 3, delta 1e-05, one client added or removed", "40, typically with",
        "10 of FedAvg, mechanism everyone", "are dealt out to the 40 clients",
    ):  # fmt: skip
        assert part in words
    code, out, _ = fedhead(*arguments, "--json")
    plan = json.loads(out)
    assert [one["epsilon"] for one in plan["outlooks"]] == [1, 2, 3, 4, 8, None]
    wanted = plan["outlooks"][2]
    terms = wanted["decided"]
    # Golden of Balle and Wang's formula, arXiv 1805.06530; ten rounds need the root of ten of it.
    golden = {1: 3.7306, 8: 0.60023}
    for one in plan["outlooks"]:
        if sigma := golden.get(one["epsilon"]):
            assert one["decided"]["multiplier"] == pytest.approx(sigma * 10**0.5, rel=2e-5)
    assert wanted["mean_noise"] == pytest.approx(
        terms["noise"] * terms["clip"] * terms["norm"] / 40
    )
    noises = [one["decided"]["noise"] for one in plan["outlooks"][:-1]]
    assert noises == sorted(noises, reverse=True)
    assert plan["accuracy"] == wanted["accuracy"] < plan["outlooks"][-1]["accuracy"]


def test_more_clients_than_images_make_are_told(fedhead: Fedhead, digits: Path) -> None:
    arguments = ("privacy", "plan", "--clients", 5000, "--data", digits)
    code, out, _ = fedhead(*arguments, "--typical-examples", 30)
    assert code == 0
    words = " ".join(out.split())
    plan = json.loads(fedhead(*arguments, "--typical-examples", 30, "--json")[1])
    assert plan["simulated"] == plan["images"] // 30 < 5000
    assert f"make {plan['simulated']:,} clients: each stands for" in words
    assert "with the noise for 5,000" in words
    assert plan["outlooks"][0]["decided"]["divisor"] == 5000


def test_turns_of_more_clients_than_images_make(fedhead: Fedhead, digits: Path) -> None:
    code, out, _ = fedhead(
        "privacy", "plan", "--clients", 5000, "--mechanism", "min-separation", "--data", digits,
        "--clients-per-round", 500, "--typical-examples", 30, "--json",
    )  # fmt: skip
    assert code == 0
    plan = json.loads(out)
    assert plan["rounds"] == 20  # by the rule
    terms = plan["outlooks"][0]["decided"]
    assert (terms["divisor"], terms["separation"]) == (500, 10)
    assert 0.5 < plan["accuracy"] <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--epsilon", "inf"), "--epsilon inf is no privacy"),
        (("--epsilon", "0"), "privacy.epsilon"),
        (("--delta", "0.1"), "privacy.delta=0.1, expected below 0.025"),
        (("--mechanism", "one-shot"), "one-shot is for closed forms"),
        (("--mechanism", "poisson"), "poisson and min-separation need it"),
        (("--clients-per-round", "5"), "everyone is without it"),
        (("--set", "privacy.clip=adaptive"), "is not simulated"),
        (("--set", "privacy.epsilon=2"), "give --epsilon instead"),
        (("--set", "train.momentum=0.9"), "would be ignored"),
        (("--typical-examples", "100000"), "fewer than one client's"),
        (("--data", "nothing.toml"), "no such file"),
        (("--data", "mnits"), "nor a data set of that name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_planned_is_one_clear_line(
    fedhead: Fedhead, digits: Path, arguments: tuple[str, ...], words: str
) -> None:
    data = () if "--data" in arguments else ("--data", digits)
    code, _, err = fedhead("privacy", "plan", "--clients", 40, *data, *arguments)
    assert code == 1
    assert words in err
    assert "Traceback" not in err
