"""What clients do in a round: optimizer, schedule, loss, and who takes part."""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from common.config import load_config, parse_overrides
from common.corrections import CORRECTIONS, Correction
from common.errors import ConfigError, ProtocolError, RunError
from common.fields import head_shape
from common.messages import TrainRequest
from common.types import ClientPlan, Head, LocalTraining
from server.round.build import check_strategy
from server.strategies import STRATEGIES, fedavg
from server.strategy import RoundContext
from simulations.report import curve_rows, load_runs
from simulations.run import open_run, run_in_process

MakeRun = Callable[..., Path]

LOSSES = """
from torch.nn import functional as F

def plain(logits, labels):
    return F.cross_entropy(logits, labels)

def focal(logits, labels):
    log_p = F.log_softmax(logits, 1).gather(1, labels[:, None])[:, 0]
    return -((1 - log_p.exp()) ** 2 * log_p).mean()

def each(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")
"""


@pytest.fixture
def losses(tmp_path: Path) -> Iterator[None]:
    """A user's file beside the experiment."""
    (tmp_path / "my_losses.py").write_text(LOSSES)
    before = [*sys.path]
    yield
    sys.path[:] = before
    sys.modules.pop("my_losses", None)


@pytest.fixture
def losses_found(losses: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That file, where Python finds it."""
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[TrainRequest]:
    """What clients are asked to train, in order."""
    import client.app

    seen: list[TrainRequest] = []
    update = client.app.node_update

    def watched(request: TrainRequest, *args: object) -> object:
        seen.append(request)
        return update(request, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(client.app, "node_update", watched)
    return seen


def sha(folder: Path) -> str:
    return str(run_in_process(folder)["head_sha256"])


def test_adam_trains_by_the_reference_and_says_so(
    quick: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedhead")
    adam = run_in_process(quick("train.optimizer=adam", "train.lr=0.003", name="adam"))
    assert "reference trainer trains clients one by one: train.optimizer=adam" in caplog.text
    assert adam["accuracy"] > 0.5
    plain = quick("train.optimizer=adam", "train.lr=0.003", "simulation.trainer=reference")
    assert sha(plain) == adam["head_sha256"]
    assert sha(quick("train.optimizer=adamw", "train.lr=0.003", name="w")) == adam["head_sha256"]


@pytest.mark.parametrize("name", ["scaffold", "fednova", "qfedavg"])
def test_adam_is_refused_where_gradients_are_read_out_of_deltas(name: str) -> None:
    items = [f"strategy.name={name}", "train.optimizer=adam"]
    with pytest.raises(ConfigError, match=f'optimizer must be "sgd" with {name}'):
        check_strategy(load_config(None, parse_overrides(items)))


@pytest.mark.parametrize("of_sgd", [False, True])
def test_adam_is_refused_where_a_memory_reads_gradients_out_of_deltas(
    monkeypatch: pytest.MonkeyPatch, of_sgd: bool
) -> None:
    plain = fedavg()

    def plan(state: object, context: RoundContext) -> ClientPlan:
        return dataclasses.replace(plain.plan(state, context), correction="leaning")  # type: ignore[arg-type]

    own = dataclasses.replace(plain, name="leaning", plan=plan)
    memory = Correction({"control": head_shape}, lambda _: {}, of_sgd=of_sgd)
    monkeypatch.setitem(CORRECTIONS, "leaning", memory)  # type: ignore[arg-type]
    monkeypatch.setitem(STRATEGIES, "leaning", lambda: own)
    config = load_config(None, parse_overrides(["strategy.name=leaning", "train.optimizer=adam"]))
    with pytest.raises(ConfigError, match="with leaning") if of_sgd else nullcontext():
        check_strategy(config)


LOSS = "train.loss=my_losses:plain"


@pytest.mark.parametrize(
    "key", ["train.optimizer=adam", "train.schedule=cosine", "train.warmup-rounds=2", LOSS]
)
def test_a_closed_form_takes_no_key_of_training_that_has_no_effect(
    losses_found: None, key: str
) -> None:
    items = ["strategy.name=fed3r", key]
    with pytest.raises(ConfigError, match=f"{key.split('=')[0]} has no effect with fed3r"):
        check_strategy(load_config(None, parse_overrides(items)))


@pytest.mark.parametrize("name", ["qfedavg", "flwr.serverapp.strategy:QFedAvg"])
def test_a_loss_of_ones_own_is_refused_where_the_cross_entropy_weights_clients(
    losses_found: None, name: str
) -> None:
    with pytest.raises(ConfigError, match="their cross-entropy"):
        check_strategy(load_config(None, parse_overrides([f"strategy.name={name}", LOSS])))


def test_a_stock_strategy_with_the_clients_rate_takes_no_other_than_plain_sgd() -> None:
    stock = "strategy.name=flwr.serverapp.strategy:QFedAvg"
    for key in ("train.optimizer=adam", "train.schedule=cosine", "train.warmup-rounds=1"):
        with pytest.raises(ConfigError, match="takes the clients' one learning rate"):
            check_strategy(load_config(None, parse_overrides([stock, key])))


def test_a_client_that_knows_no_optimizer_but_sgd_misses_a_key() -> None:
    def order(training: LocalTraining) -> TrainRequest:
        return TrainRequest(Head.zeros(2, 3), ClientPlan(), training, (1,), 1, "r", 0, "f", "sum")

    adam = order(LocalTraining(0.1, optimizer="adam"))
    assert TrainRequest.read(adam.write()).training == adam.training
    assert "momentum" not in adam.config()
    sgd = order(LocalTraining(0.1, momentum=0.5))
    assert TrainRequest.read(sgd.write()).training == sgd.training
    assert "optimizer" not in sgd.config()
    content = sgd.write()
    del content["config"]["momentum"]  # type: ignore[union-attr]
    with pytest.raises(ProtocolError, match="momentum is missing"):
        TrainRequest.read(content)


def test_each_round_has_the_rate_of_its_schedule_on_clients_and_server(
    quick: MakeRun, requests: list[TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    import server.round.own

    contexts = []
    context = server.round.own.RoundContext

    def watched(**fields: object) -> object:
        contexts.append(context(**fields))  # type: ignore[arg-type]
        return contexts[-1]

    monkeypatch.setattr(server.round.own, "RoundContext", watched)
    schedule = ("train.schedule=linear", "train.warmup-rounds=1", "train.lr=0.02")
    folder = quick(*schedule, "train.rounds=5", "strategy.name=qfedavg")
    run_in_process(folder)
    expected = [0.01, 0.02, 0.015, 0.01, 0.005]
    assert [request.training.lr for request in requests] == pytest.approx(expected)
    assert [one.lr for one in contexts] == pytest.approx(expected)
    said = [row["learning-rate"] for row in curve_rows(load_runs([folder]))]
    assert said == pytest.approx(expected)


def test_scaffold_with_a_schedule_is_the_same_by_cohort_and_reference(quick: MakeRun) -> None:
    keys = ("strategy.name=scaffold", "train.schedule=cosine", "train.rounds=3")
    one = run_in_process(quick(*keys, name="cohort"))
    other = run_in_process(quick(*keys, "simulation.trainer=reference", name="reference"))
    assert one["accuracy"] == other["accuracy"]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_a_run_whose_rates_depend_on_its_length_keeps_it(quick: MakeRun) -> None:
    longer = {"train": {"rounds": 9}}
    falling = quick("train.schedule=cosine", name="falling")
    with pytest.raises(RunError, match=r"cannot go on with another train\.rounds"):
        open_run(falling, longer)
    assert open_run(quick("train.schedule=step", name="step"), longer).train.rounds == 9


def test_only_the_listed_clients_take_part(
    quick: MakeRun, requests: list[TrainRequest], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedhead")
    folder = quick(
        "train.clients=[6,1,3]", "train.clients-per-round=2", "baseline.enabled=true",
        "attack.kind=sign-flip", "attack.fraction=0.4",
    )  # fmt: skip
    summary = run_in_process(folder)
    assert {client for request in requests for client in request.clients} == {1, 3, 6}
    assert {len(request.clients) for request in requests} == {2}
    assert (summary["clients"], summary["malicious_clients"]) == (3, 1)
    assert json.loads((folder / "clients.json").read_text())["client"] == [1, 3, 6]
    assert "5 other clients are not in train.clients: left out" in caplog.text


def test_a_list_of_all_clients_changes_nothing(quick: MakeRun) -> None:
    everyone = f"train.clients={list(range(8))}"
    assert sha(quick(everyone, name="listed")) == sha(quick(name="plain"))


def test_listed_clients_send_their_statistics_and_nobody_else(
    quick: MakeRun, requests: list[TrainRequest]
) -> None:
    run_in_process(quick("train.clients=[0,5]", "strategy.name=fed3r", "train.clients-per-round=1"))
    assert sorted(c for request in requests for c in request.clients) == [0, 5]


def test_a_stock_strategy_asks_the_listed_clients(
    quick: MakeRun, requests: list[TrainRequest]
) -> None:
    stock = "strategy.name=flwr.serverapp.strategy:FedAvg"
    summary = run_in_process(
        quick(stock, "train.clients=[2,7]", "train.clients-per-round=0", "train.rounds=2")
    )
    assert (summary["clients"], summary["valid_updates"], len(requests)) == (2, 4, 4)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("[0,8]", "train.clients lists 8, ids go from 0 to 7"),
        ("[-1]", "train.clients lists -1, ids go from 0 to 7"),
        ("[3,3]", "lists 3 twice"),
        ('[3,"kim"]', "not both"),
    ],
)
def test_a_list_that_cannot_be_is_refused_at_once(
    quick: MakeRun, listed: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        quick(f"train.clients={listed}", "train.clients-per-round=1")


def test_names_are_for_devices(quick: MakeRun) -> None:
    folder = quick('train.clients=["kim"]', "train.clients-per-round=1")
    with pytest.raises(ConfigError, match="'kim', but simulated clients have ids from 0 to 7"):
        run_in_process(folder)


@pytest.mark.usefixtures("losses")
def test_a_loss_of_ones_own_beside_the_experiment_is_what_clients_minimise(
    quick: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedhead")
    own = run_in_process(quick("train.loss=my_losses:plain", name="own"))
    assert "one by one: train.loss=my_losses:plain" in caplog.text
    plain = run_in_process(quick("simulation.trainer=reference", name="plain"))
    assert own["accuracy"] == plain["accuracy"]
    assert own["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    focal = run_in_process(quick("train.loss=my_losses:focal", name="focal"))
    assert focal["loss"] != pytest.approx(plain["loss"], rel=1e-3)
    assert np.isclose(focal["accuracy"], plain["accuracy"], atol=0.1)


@pytest.mark.usefixtures("losses")
def test_what_is_no_loss_ends_the_run_before_its_first_round(quick: MakeRun) -> None:
    folder = quick("train.loss=my_losses:each")
    with pytest.raises(ConfigError, match=r"train.loss='my_losses:each': returned a Tensor of"):
        run_in_process(folder)
    assert not (folder / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match="no function 'absent'"):
        quick("train.loss=my_losses:absent", name="absent")
