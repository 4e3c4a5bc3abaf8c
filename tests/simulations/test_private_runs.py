"""Whole private runs: every strategy that suits, every mechanism, cut off and gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import server.round.judge
import server.round.loop
import server.round.own
import server.round.private
from common.errors import ConfigError, RunError
from common.privacy.gaussian import gaussian_sigma
from common.privacy.ledger import Ledger
from server.record.checkpoint import load_latest
from server.round.private import LEDGER, SECRET
from simulations.run import run_in_process

Make = Callable[..., Path]
CutAfter = Callable[[int], AbstractContextManager[None]]
Fedhead = Callable[..., tuple[int, str, str]]

ROUNDS = 6
PRIVATE = ("privacy.epsilon=30.0", f"train.rounds={ROUNDS}", 'train.lr="auto"')
MECHANISMS = {
    "everyone": ("train.clients-per-round=0",),
    "adaptive": ("train.clients-per-round=0", "privacy.clip=adaptive"),
    "poisson": ("privacy.mechanism=poisson", "train.clients-per-round=4"),
    "min-separation": ("privacy.mechanism=min-separation", "train.clients-per-round=4"),
}
SUITED = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedadagrad", "fedyogi")
each_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)


@pytest.fixture
def private(quick: Make) -> Make:
    """Makes a private run's folder."""
    return lambda *options, **kwargs: quick(*PRIVATE, *options, **kwargs)


def charged(run: Path) -> list[int]:
    return [entry.round for entry in Ledger(run / LEDGER).entries]


def spent(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epsilon-spent"] for line in lines]


def needs_accounting(mechanism: str) -> None:
    if mechanism == "poisson":
        pytest.importorskip("dp_accounting", reason="pip install 'fedhead[privacy]'")


def pairs() -> list[Any]:
    """Each strategy with everyone and each mechanism with FedAvg; the others in the wide tier."""
    return [
        pytest.param(s, m, marks=() if s == "fedavg" or m == "everyone" else pytest.mark.wide)
        for s in SUITED
        for m in MECHANISMS
    ]


@pytest.mark.parametrize(("strategy", "mechanism"), pairs())
def test_each_strategy_goes_with_each_mechanism_within_the_budget(
    private: Make, strategy: str, mechanism: str
) -> None:
    needs_accounting(mechanism)
    run = private(f"strategy.name={strategy}", *MECHANISMS[mechanism])
    summary = run_in_process(run)
    assert charged(run) == list(range(1, ROUNDS + 1))
    told = summary["privacy"]
    assert told["spent"] == spent(run)[-1]
    # What was planned is used, and no more. PLD bounds are within a hundredth.
    assert 0.99 * 30 < told["spent"] <= 30 * (1 + 1e-6)
    assert spent(run) == sorted(spent(run))
    assert told["mechanism"] == ("everyone" if mechanism == "adaptive" else mechanism)
    assert (told["unit"], told["noise"], told["clients"]) == ("client", "seed", 8)
    assert "not private" in told["sentence"]
    assert not (run / SECRET).exists()


@each_mechanism
@pytest.mark.parametrize("last", [1, 4])
def test_cut_off_between_rounds_it_goes_on_to_the_same_bytes(
    private: Make, cut_after: CutAfter, mechanism: str, last: int
) -> None:
    needs_accounting(mechanism)
    options = ("strategy.name=fedavgm", *MECHANISMS[mechanism])
    whole = run_in_process(private(*options, name="whole"))
    run = private(*options, name="cut")
    with cut_after(last), pytest.raises(KeyboardInterrupt):
        run_in_process(run)
    assert charged(run) == list(range(1, last + 1))
    assert run_in_process(run)["head_sha256"] == whole["head_sha256"]
    assert charged(run) == list(range(1, ROUNDS + 1))


def cut(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    """Interrupt a run after so many calls of a function."""
    inner, left = getattr(owner, name), [calls]

    def counted(*args: Any, **kwargs: Any) -> Any:
        given = inner(*args, **kwargs)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return given

    monkeypatch.setattr(owner, name, counted)


PLACES = {
    "charged, not drawn": (Ledger, "charge"),
    "drawn, not released": (server.round.private, "gaussian_integers"),
    "released, not evaluated": (server.round.own, "with_metrics"),
    "evaluated, not told": (server.round.judge, "evaluate"),
    "told, not kept": (server.round.loop.MetricsLog, "write"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("noise", ["seed", "secret"])
def test_cut_off_within_a_round_it_is_done_again_with_the_same_noise_at_no_charge(
    private: Make, monkeypatch: pytest.MonkeyPatch, noise: str, place: str
) -> None:
    run = private(*MECHANISMS["everyone"], f"privacy.noise={noise}", name="cut")
    with monkeypatch.context() as patch:
        cut(patch, *PLACES[place], calls=3)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(run)
    assert charged(run) == [1, 2, 3]
    assert (run / SECRET).exists() == (noise == "secret")
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    heads = {run_in_process(folder)["head_sha256"] for folder in (run, copy)}
    assert len(heads) == 1
    for folder in (run, copy):
        assert charged(folder) == list(range(1, ROUNDS + 1))
        assert not (folder / SECRET).exists()
    if noise == "seed":
        whole = run_in_process(private(*MECHANISMS["everyone"], name="whole"))
        assert heads == {whole["head_sha256"]}


def test_a_round_done_again_with_other_clients_gets_other_noise_and_ends_the_run_early(
    private: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = private(*MECHANISMS["everyone"])
    with monkeypatch.context() as patch:
        cut(patch, Ledger, "charge", calls=3)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(run)
    before = Ledger(run / LEDGER).entries
    all_answer = server.round.own.answering

    def without_the_first(*args: Any) -> list[int]:
        return all_answer(*args)[1:]

    monkeypatch.setattr(server.round.own, "answering", without_the_first)
    with caplog.at_level("INFO", "fedhead"):
        summary = run_in_process(run)
    after = Ledger(run / LEDGER).entries
    assert after[:3] == before
    assert charged(run) == [1, 2, 3, 3, 4, 5]
    assert after[2].digest != after[3].digest
    assert summary["rounds"] == ROUNDS - 1
    assert summary["privacy"]["spent"] <= 30 * (1 + 1e-6)
    assert "the privacy budget is spent: epsilon 30 of 30: done after 5 rounds" in caplog.text
    # The last head is the mean of the last half, as far as it came.
    kept = load_latest(run / "checkpoint")
    assert kept is not None
    heads = kept.arrays["strategy.heads"] / kept.scalars["strategy.num_heads"]
    np.testing.assert_allclose(kept.head.matrix, heads, rtol=1e-6)
    assert kept.scalars["strategy.num_heads"] == 2


def test_a_run_whose_secret_is_lost_pays_again(private: Make, cut_after: CutAfter) -> None:
    run = private(*MECHANISMS["everyone"], "privacy.noise=secret")
    with cut_after(2), pytest.raises(KeyboardInterrupt):
        run_in_process(run)
    (run / SECRET).unlink()
    shutil.rmtree(run / "checkpoint" / "000002")  # so that a round is done again
    run_in_process(run)
    assert charged(run) == [1, 2, 2, 3, 4, 5]
    assert len({entry.secret for entry in Ledger(run / LEDGER).entries}) == 2


@pytest.mark.parametrize("strategy", ["fed3r", "lda"])
def test_a_closed_form_is_made_of_one_release(private: Make, strategy: str) -> None:
    one_shot = (f"strategy.name={strategy}", "privacy.mechanism=one-shot", "train.rounds=1")
    run = private(*one_shot, "train.clients-per-round=0")
    summary = run_in_process(run)
    (entry,) = Ledger(run / LEDGER).entries
    assert (entry.round, entry.mechanism) == (1, "one-shot")
    assert entry.multiplier == pytest.approx(gaussian_sigma(30.0, 1e-5))
    assert summary["privacy"]["spent"] == pytest.approx(30.0, abs=1e-5)
    assert summary["accuracy"] > 0.5  # of ten digits, with eight clients
    # One step on all of a client's examples, whatever is set for clients that train.
    steps = ("train.local-epochs=4", "train.batch-size=3", "train.lr=0.7")
    other = run_in_process(private(*one_shot, "train.clients-per-round=0", *steps, name="steps"))
    assert other["head_sha256"] == summary["head_sha256"]


def test_a_turn_that_nobody_has_is_a_lost_round_and_not_the_end(
    private: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = server.round.private.Guard.chosen

    def nobody(self: Any, number: int, known: Any) -> set[int] | None:
        return set() if number == 2 else inner(self, number, known)

    monkeypatch.setattr(server.round.private.Guard, "chosen", nobody)
    run = private(*MECHANISMS["min-separation"])
    assert run_in_process(run)["accepted_rounds"] == ROUNDS - 1
    assert charged(run) == [1, 3, 4, 5, 6]


def test_with_coins_that_ask_nobody_noise_is_released(
    private: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_accounting("poisson")
    monkeypatch.setattr(server.round.private.Guard, "chosen", lambda *_: set())
    run = private(*MECHANISMS["poisson"])
    assert run_in_process(run)["accepted_rounds"] == ROUNDS
    assert charged(run) == list(range(1, ROUNDS + 1))


def test_a_run_that_starts_from_another_says_that_its_budget_does_not_count_that(
    private: Make, quick: Make, caplog: pytest.LogCaptureFixture
) -> None:
    former = quick("train.rounds=1", "backbone.projection=auto", name="former")
    run_in_process(former)
    # As many directions as the former run, whose backbone it is.
    run_in_process(private(*MECHANISMS["everyone"], "privacy.epsilon=500.0",
                           f"strategy.init-from={former}", name="later"))  # fmt: skip
    assert f"the budget does not count what training has cost {former}" in caplog.text


@each_mechanism
def test_any_number_of_nodes_gives_the_same_bytes(private: Make, mechanism: str) -> None:
    needs_accounting(mechanism)
    heads = {
        run_in_process(private(*MECHANISMS[mechanism], f"simulation.nodes={n}", name=f"n{n}"))[
            "head_sha256"
        ]
        for n in (1, 3, 8)
    }
    assert len(heads) == 1


def test_both_trainers_give_the_same_sums_up_to_roundings(
    private: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any) -> np.ndarray:
        return np.zeros(args[3], np.int64)

    monkeypatch.setattr(server.round.private, "gaussian_integers", none)
    heads = []
    for trainer in ("reference", "cohort"):
        run = private(*MECHANISMS["adaptive"], f"simulation.trainer={trainer}", name=trainer)
        run_in_process(run)
        kept = load_latest(run / "checkpoint")
        assert kept is not None
        heads.append(kept.head.matrix)
    scale = float(np.abs(heads[0]).max())
    np.testing.assert_allclose(heads[0], heads[1], atol=1e-3 * scale)


def test_a_private_run_keeps_its_number_of_rounds(
    private: Make, cut_after: CutAfter, fedhead: Fedhead
) -> None:
    run = private(*MECHANISMS["everyone"])
    with cut_after(2), pytest.raises(KeyboardInterrupt):
        run_in_process(run)
    code, _, err = fedhead("resume", run, "--set", f"train.rounds={ROUNDS + 1}")
    assert code == 1
    assert "cannot go on with another train.rounds (one budget of privacy" in err


REFUSED = {
    "strategy.name=scaffold": "scaffold does not go with privacy: what its clients remember",
    "strategy.name=feddyn": "feddyn does not go with privacy: what its clients remember",
    "strategy.name=qfedavg": "qfedavg does not go with privacy: its clients send fair_delta",
    "strategy.name=fednova": "fednova does not go with privacy: its clients send normalized_delta",
    "strategy.name=median": "median does not go with privacy: it reads each client's update",
    "strategy.name=krum": "krum does not go with privacy: it reads each client's update",
    "strategy.name=flwr.serverapp.strategy:FedAvg": "needs one of fedhead's strategies",
    "strategy.name=fed3r": 'which privacy releases once: set privacy.mechanism="one-shot"',
    "strategy.name=fedcof": "fedcof needs the statistics of clients: with privacy only fed3r and",
    "strategy.name=ditto": "ditto needs the statistics of clients",
    "strategy.init=fed3r": 'strategy.init="fed3r" has every client send its statistics',
    "strategy.precondition=gram": 'strategy.precondition="gram" needs the Gram matrix',
    "codec.up=drive": 'codec.up="drive" does not go with privacy',
    "round.max-update-norm=3.0": "round.max-update-norm=3.0 refuses whole updates",
    "round.max-update-norm=auto": "round.max-update-norm='auto' refuses whole updates",
    "attack.kind=sign-flip;attack.fraction=0.2": "changes updates after they are clipped",
    "train.clients-per-round=4": "draws cohorts of a fixed size",
    "train.clients-per-round=8": "is every client: with privacy that is",
    "privacy.mechanism=poisson": "needs train.clients-per-round",
    "privacy.mechanism=min-separation": "needs train.clients-per-round",
    "privacy.mechanism=one-shot": "releases statistics once, for fed3r and lda",
    "privacy.mechanism=poisson;train.clients-per-round=4;round.over-selection=0.5": (
        "round.over-selection does not go with"
    ),
    "privacy.mechanism=poisson;train.clients-per-round=4;codec.down=int8": (
        "shows whom earlier rounds asked"
    ),
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_does_not_go_with_privacy_is_refused_with_the_reason(
    private: Make, options: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        private("train.clients-per-round=0", *options.split(";"))
    assert REFUSED[options] in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(private: Make) -> None:
    with pytest.raises(ConfigError, match="4 problems"):
        private(
            "strategy.name=krum",
            "strategy.init=fed3r",
            "train.clients-per-round=4",
            "round.max-update-norm=3.0",
        )


def test_a_fixed_cohort_is_refused_with_what_it_would_cost(private: Make) -> None:
    pytest.importorskip("dp_accounting", reason="pip install 'fedhead[privacy]'")
    with pytest.raises(ConfigError) as caught:
        private("privacy.epsilon=2.0", "train.clients-per-round=4")
    assert "with the noise that makes epsilon 2 of coins it is" in str(caught.value)


def test_a_delta_that_gives_a_client_away_ends_the_run_before_its_first_round(
    private: Make,
) -> None:
    run = private(*MECHANISMS["everyone"], "privacy.delta=0.125")
    with pytest.raises(ConfigError, match="privacy.delta=0.125, expected below 0.125"):
        run_in_process(run)
    assert not (run / LEDGER).exists()


@pytest.mark.parametrize("lines", [0, 1, 2, None])
def test_a_run_whose_ledger_has_lost_a_release_does_not_go_on(
    private: Make, cut_after: CutAfter, lines: int | None
) -> None:
    run = private(*MECHANISMS["everyone"], "privacy.noise=secret")
    with cut_after(3), pytest.raises(KeyboardInterrupt):
        run_in_process(run)
    ledger = run / LEDGER
    kept = ledger.read_bytes().splitlines(keepends=True)[:lines]
    ledger.unlink() if lines is None else ledger.write_bytes(b"".join(kept))
    with pytest.raises(RunError, match="nobody can say what the run has spent"):
        run_in_process(run)
    assert (run / SECRET).exists()
