"""The main job end to end, in this process, on a small experiment."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

import client.memory as client_state
import server.round.loop
import server.round.memory
from client.memory import ClientMemory
from common.errors import ConfigError, DataError, RunError
from common.files import simulated_state
from common.readback import seal
from common.types import Head, UpdateBatch
from server.strategies import STRATEGIES
from server.strategies.averaging import fedavg
from simulations.report.runs import read_run
from simulations.run import run_in_process

Make = Callable[..., Path]


def matrix(run: Path) -> np.ndarray:
    head = load_file(run / "head.safetensors")
    return np.concatenate([head["weight"], head["bias"][:, None]], axis=1).astype(np.float64)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_it_promises(tiny: Make) -> None:
    run = tiny("baseline.enabled=true")
    summary = run_in_process(run)
    for key in (
        "accuracy", "loss", "centralized_accuracy", "ridge_accuracy", "rounds", "clients",
        "uplink_bytes", "downlink_bytes", "full_model_uplink_bytes", "seconds", "model_path",
        "model_bytes", "head_sha256", "fingerprint",
    ):  # fmt: skip
        assert summary[key] is not None, key
    for name in ("config.toml", "metrics.jsonl", "model.pt", "model.json", "head.safetensors"):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").glob("events*"))
    assert [line["round"] for line in lines(run)] == [1, 2, 3, 4, 5]
    # 4 of 8 clients in 5 rounds, and every byte of their payloads counted
    assert summary["valid_updates"] == 20
    head_bytes = 10 * 673 * 4
    assert 20 * head_bytes < summary["uplink_bytes"] < 20 * (head_bytes + 1000)
    assert summary["full_model_uplink_bytes"] > 100 * summary["uplink_bytes"]
    assert summary["accuracy"] > 0.5  # chance is 0.1
    confusion = read_run(run).confusion
    assert np.trace(confusion) / confusion.sum() == pytest.approx(summary["accuracy"])
    shares = np.diagonal(confusion) / confusion.sum(axis=1)
    assert [one["accuracy"] for one in summary["classes"]] == pytest.approx(shares.tolist())
    assert summary["balanced_accuracy"] == pytest.approx(shares.mean())
    assert lines(run)[-1]["balanced-accuracy"] == summary["balanced_accuracy"]
    assert 0.5 < summary["local_accuracy_mean"] < 1
    assert 0 <= summary["clients_better_alone"] <= 8
    rates = {summary["ridge_accuracy"], summary["logistic_accuracy"]}
    assert summary["centralized_accuracy"] in rates


@pytest.mark.slow
def test_v3_small_runs_and_its_exported_file_gives_the_same_bits(tiny: Make) -> None:
    run = tiny("backbone.arch=mobilenet_v3_small", "backbone.weights=random")
    summary = run_in_process(run)  # compares the file with the training side, bit by bit
    assert summary["model_bytes"] < 1_300_000
    assert summary["accuracy"] > 0.3  # even random features; chance is 0.1
    assert json.loads((run / "model.json").read_text())["num_features"] == 576


def variants(*names: str) -> list[Any]:
    """What is told apart from the others in the slow tier alone."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("strategy", ["scaffold", *variants("fedavg", "fedprox", "fed3r")])
def test_the_same_run_twice_gives_the_same_bytes(quick: Make, strategy: str) -> None:
    first = run_in_process(quick(f"strategy.name={strategy}", name="a"))
    second = run_in_process(quick(f"strategy.name={strategy}", name="b"))
    assert first["head_sha256"] == second["head_sha256"]
    other = run_in_process(quick(f"strategy.name={strategy}", "seed=1", name="c"))
    assert other["head_sha256"] != first["head_sha256"]


@pytest.mark.parametrize("strategy", ["fed3r", *variants("fedavg", "scaffold")])
def test_the_number_of_nodes_changes_the_head_by_rounding_only(quick: Make, strategy: str) -> None:
    runs = []
    for nodes in (1, 3, 8):
        run = quick(f"strategy.name={strategy}", f"simulation.nodes={nodes}", name=str(nodes))
        runs.append((run, run_in_process(run)))
    for run, summary in runs[1:]:
        assert relative(matrix(run), matrix(runs[0][0])) <= 1e-5
        assert summary["accuracy"] == runs[0][1]["accuracy"]
        assert summary["uplink_bytes"] == runs[0][1]["uplink_bytes"]
        files = [folder / "confusion.json" for folder in (run, runs[0][0])]
        assert files[0].read_bytes() == files[1].read_bytes()
    if strategy == "fed3r":
        # Integer statistics: not even rounding.
        assert len({summary["head_sha256"] for _, summary in runs}) == 1


SCAFFOLD = ("strategy.name=scaffold",)
PLANS = [
    (),
    ("train.momentum=0.9", "train.weight-decay=0.01", "train.local-epochs=3"),
    ("strategy.name=fedprox", "strategy.args.mu=0.5"),
    SCAFFOLD,
    ("strategy.name=norm_clipping", "strategy.args.bound=0.05"),
    ("round.max-update-norm=0.5",),
    ("strategy.name=fed3r",),
    ("strategy.precondition=gram", "train.lr=0.1"),
    ("strategy.name=feddyn",),
    ("strategy.name=fednova", "train.momentum=0.5"),
    ("strategy.name=qfedavg",),
    ("strategy.name=krum",),
]


@pytest.mark.parametrize("plan", PLANS, ids=" ".join)
def test_clients_trained_together_are_those_trained_one_by_one(
    quick: Make, plan: tuple[str, ...]
) -> None:
    together, alone = quick(*plan, name="a"), quick(*plan, "simulation.trainer=reference", name="b")
    ours, theirs = run_in_process(together), run_in_process(alone)
    assert relative(matrix(together), matrix(alone)) <= 1e-5
    for key in ("accuracy", "valid_updates", "rejected_updates", "uplink_bytes", "downlink_bytes"):
        assert ours[key] == theirs[key], key
    for a, b in zip(lines(together), lines(alone), strict=True):
        for key in ("train-loss-before", "train-loss-after"):
            assert a[key] == pytest.approx(b[key], rel=1e-4)


PREPARED = ("strategy.precondition=gram", "strategy.init=fed3r", "train.lr=0.05")


@pytest.mark.parametrize("name", ["scaffold", *variants("fedavg", "norm_clipping", "median")])
def test_a_round_of_statistics_starts_any_gradient_strategy(quick: Make, name: str) -> None:
    run = quick(*PREPARED, f"strategy.name={name}", "baseline.enabled=true", name="a")
    summary = run_in_process(run)
    figures = lines(run)
    # Everybody is asked once, then four of eight a round.
    assert [line["valid"] for line in figures] == [8, 4, 4, 4, 4]
    # The first head is ridge regression's, only surer of itself.
    assert figures[0]["accuracy"] == summary["ridge_accuracy"]
    assert summary["accuracy"] >= summary["ridge_accuracy"] - 0.05
    again = run_in_process(
        quick(*PREPARED, f"strategy.name={name}", "baseline.enabled=true", name="b")
    )
    assert again["head_sha256"] == summary["head_sha256"]


@pytest.mark.parametrize("strategy", ["fed3r", "afl", "fedcof"])
def test_a_start_for_what_needs_none_is_refused(quick: Make, strategy: str) -> None:
    with pytest.raises(ConfigError, match="has no gradients"):
        quick(*PREPARED, f"strategy.name={strategy}")


def test_a_preconditioner_goes_to_each_client_once_and_again_if_lost(
    quick: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("strategy.precondition=gram", "train.clients-per-round=0")
    run = quick(*settings)
    summary = run_in_process(run)
    _, first, *later = [line["downlink-bytes"] for line in lines(run)]
    size, clients = 673**2 * 4, summary["clients"]
    assert first > clients * size
    assert max(later) < clients * 100_000
    # A node whose file is gone is sent it again, and nothing else changes.
    step = server.round.own.OwnAlgorithm.step
    gone = []

    def forget(engine: object, number: int, head: Head, fault: object) -> object:
        if number == 4:
            for path in simulated_state().glob("*/constant-*"):
                path.unlink()
                gone.append(path)
            client_state._constant.cache_clear()
        return step(engine, number, head, fault)  # type: ignore[arg-type]

    monkeypatch.setattr(server.round.own.OwnAlgorithm, "step", forget)
    again = quick(*settings, name="again")
    assert run_in_process(again)["head_sha256"] == summary["head_sha256"]
    assert gone
    assert lines(again)[3]["downlink-bytes"] > size > lines(again)[4]["downlink-bytes"]


def test_memory_for_grams_changes_the_head_by_rounding_only(quick: Make) -> None:
    kept, made = quick(name="a"), quick("simulation.cohort-memory=0B", name="b")
    run_in_process(kept)
    run_in_process(made)
    assert relative(matrix(made), matrix(kept)) <= 1e-5


def test_single_updates_travel_in_waves_that_change_nothing(
    quick: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clipped = ("strategy.name=norm_clipping", "train.clients-per-round=0")
    whole, waves = quick(*clipped, name="a"), quick(*clipped, name="b")
    run_in_process(whole)
    monkeypatch.setattr(server.round.memory, "_WAVE_BYTES", 3 * 4 * 10 * 1281)
    summary = run_in_process(waves)
    assert relative(matrix(waves), matrix(whole)) <= 1e-5
    assert summary["valid_updates"] == 5 * 8


def test_more_single_updates_than_memory_holds_are_refused(
    quick: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def median(
        state: object, head: Head, updates: UpdateBatch, _context: object
    ) -> tuple[object, Head]:
        middle = np.median(updates.fields["delta"], axis=0)
        return state, Head.from_matrix(head.matrix + middle)

    strategy = dataclasses.replace(fedavg(), name="median", reduce="individual", aggregate=median)
    monkeypatch.setitem(STRATEGIES, "median", lambda: strategy)
    summary = run_in_process(quick("strategy.name=median", name="a"))
    assert summary["valid_updates"] == 20
    assert summary["accuracy"] > 0.2
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    with pytest.raises(RunError, match="median needs the updates of all 4 clients at once, 0.0 GB"):
        run_in_process(quick("strategy.name=median", name="b"))


def test_scaffold_forgets_rounds_that_did_not_count(
    quick: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server's c stays the mean of what counts of the clients' c_i, whatever gets lost.
    own: dict[int, np.ndarray] = {}
    state = server.round.own.OwnAlgorithm.state.fget
    step = server.round.own.OwnAlgorithm.step
    aggregate = server.round.own.OwnAlgorithm._aggregate
    losses = []

    def lose_some(self, context, head, updates, fault):  # type: ignore[no-untyped-def]
        if context.round_number in (2, 4):
            losses.append(context.round_number)
            return None
        return aggregate(self, context, head, updates, fault)

    def watch(self, number, head, fault):  # type: ignore[no-untyped-def]
        result = step(self, number, head, fault)
        kept = state(self)
        store = ClientMemory(simulated_state() / self._run.run_id)
        shapes = {"control": kept.strategy.control.shape}
        memories = zip(kept.memory_clients.tolist(), kept.memory_rounds.tolist(), strict=True)
        for client, counted in memories:
            own[client] = store.load(client, counted, shapes)["control"]
        total = np.sum(list(own.values()), axis=0) / 8
        np.testing.assert_allclose(kept.strategy.control, total, atol=1e-5)
        return result

    monkeypatch.setattr(server.round.own.OwnAlgorithm, "_aggregate", lose_some)
    monkeypatch.setattr(server.round.own.OwnAlgorithm, "step", watch)
    run_in_process(quick(*SCAFFOLD, "train.rounds=6"))
    assert losses == [2, 4]
    assert len(own) == 8


def test_a_round_without_enough_clients_trains_nobody(quick: Make) -> None:
    run = quick("availability.dropout-rate=0.75", "train.clients-per-round=0", *SCAFFOLD)
    with pytest.raises(RunError, match="no round of 5 gave a new head"):
        run_in_process(run)


def test_absent_clients_are_counted_and_cost_no_uplink(quick: Make) -> None:
    away = ("availability.dropout-rate=0.4", "train.clients-per-round=0", "round.quorum=0.0")
    run = quick(*away, "availability.straggler-rate=0.3", "availability.deadline-seconds=1.5")
    summary = run_in_process(run)
    figures = lines(run)
    dropped, late = (sum(int(line[key]) for line in figures) for key in ("dropped", "late"))  # type: ignore[call-overload]
    assert dropped > 0
    assert late > 0
    assert summary["failed_updates"] == dropped + late
    assert summary["valid_updates"] == 5 * 8 - dropped - late
    assert summary["uplink_bytes"] < summary["downlink_bytes"]
    assert all(0 < float(line["simulated-seconds"]) <= 1.5 for line in figures)  # type: ignore[arg-type]
    assert summary["simulated_seconds"] == pytest.approx(
        sum(float(line["simulated-seconds"]) for line in figures)  # type: ignore[arg-type]
    )


def test_a_share_of_the_clients_is_asked_and_said_as_a_number(
    quick: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedhead")
    share = run_in_process(quick("train.clients-per-round=0.3", name="share"))
    number = run_in_process(quick("train.clients-per-round=3", name="number"))
    assert "train.clients-per-round = 0.3: a round asks 3 of 8 clients" in caplog.text
    assert share["head_sha256"] == number["head_sha256"]


def test_fed3r_equals_the_centralized_ridge_head(quick: Make) -> None:
    run = quick(
        "strategy.name=fed3r", "train.clients-per-round=0", "baseline.enabled=true",
    )  # fmt: skip
    summary = run_in_process(run)
    assert summary["rounds"] == 1
    assert summary["accuracy"] == summary["ridge_accuracy"]
    (figures,) = lines(run)
    assert figures["strategy"]["ridge-lambda"] == summary["ridge_lambda"] > 0
    told = quick(
        "strategy.name=fed3r", f"strategy.args.lam={summary['ridge_lambda']!r}",
        "train.clients-per-round=0", "baseline.enabled=true", name="told",
    )  # fmt: skip
    again = run_in_process(told)
    assert (again["head_sha256"], again["ridge_lambda"]) == (summary["head_sha256"], None)


def test_fed3r_asks_each_client_once(quick: Make) -> None:
    summary = run_in_process(
        quick("strategy.name=fed3r", "train.rounds=5", "train.clients-per-round=3")
    )
    assert (summary["rounds"], summary["valid_updates"]) == (3, 8)  # 3 + 3 + 2


def test_stock_fedavg_gives_the_head_of_our_own(quick: Make) -> None:
    own = quick(name="own")
    stock = quick("strategy.name=flwr.serverapp.strategy:FedAvg", name="stock")
    ours, theirs = run_in_process(own), run_in_process(stock)
    assert relative(matrix(stock), matrix(own)) <= 1e-5
    assert theirs["accuracy"] == ours["accuracy"]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("FedProx", ["strategy.args.proximal-mu=0.1"]),
        ("FedAvgM", ["strategy.args.server-momentum=0.5"]),
        ("FedAdam", ["strategy.args.eta=0.01"]),
        pytest.param("FedAdagrad", ["strategy.args.eta=0.01"], marks=pytest.mark.slow),
        pytest.param("FedYogi", ["strategy.args.eta=0.01"], marks=pytest.mark.slow),
        ("FedMedian", []),
        ("FedTrimmedAvg", []),
        ("Krum", ["strategy.args.num-malicious-nodes=1"]),
        ("MultiKrum", ["strategy.args.num-malicious-nodes=1"]),
        pytest.param("Bulyan", ["strategy.args.num-malicious-nodes=0"], marks=pytest.mark.slow),
        pytest.param("QFedAvg", [], marks=pytest.mark.slow),
    ],
)
def test_stock_strategies_run_in_the_same_loop(quick: Make, name: str, args: list[str]) -> None:
    run = quick(f"strategy.name=flwr.serverapp.strategy:{name}", "train.rounds=2", *args)
    summary = run_in_process(run)
    assert summary["valid_updates"] == 8
    assert summary["accuracy"] > 0.2
    assert np.isfinite(matrix(run)).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.name=fedavgg"], "did you mean fedavg"),
        (["strategy.args.mu=1"], r"unknown key strategy.args.mu \(fedavg knows: server-lr\)"),
        (["strategy.name=fedprox", "strategy.args.mu=-1"], "must be greater than or equal to 0"),
        (["strategy.name=fedprox", "strategy.args.mu=high"], "must be a valid number"),
        (["strategy.name=scaffold", "train.momentum=0.9"], "momentum must be 0"),
        (["strategy.name=flwr.serverapp.strategy:FedNone"], "cannot be imported"),
        (["strategy.name=json:JSONDecoder"], "returns a JSONDecoder, expected a Strategy"),
        (["strategy.name=flwr.serverapp.strategy:FedAvg", "strategy.args.x=1"], "do not fit"),
        (
            ["strategy.name=flwr.serverapp.strategy:FedAvg", "strategy.args.fraction-train=0.5"],
            "set train.clients-per-round instead",
        ),
    ],
)
def test_a_wrong_strategy_is_one_clear_line(
    quick: Make, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_in_process(quick(*overrides))


class _Stop(BaseException):
    """Ends a run where no handler may catch it, as SIGKILL would."""


BOUNDED = ('round.max-update-norm="auto"',)


@pytest.mark.parametrize(
    ("moment", "strategy"),
    [
        ("after the checkpoint", "fedavg"),
        ("before the checkpoint", "scaffold"),
        ("after the checkpoint", "bounded"),
        *(
            pytest.param(moment, strategy, marks=pytest.mark.slow)
            for moment, strategy in (
                ("before the checkpoint", "fedavg"),
                ("after the checkpoint", "scaffold"),
                ("before the checkpoint", "feddyn"),
                ("after the checkpoint", "feddyn"),
                ("before the checkpoint", "fed3r"),
                ("after the checkpoint", "fed3r"),
                ("before the checkpoint", "prepared"),
                ("after the checkpoint", "prepared"),
                ("before the checkpoint", "bounded"),
            )
        ),
    ],
)
def test_a_run_cut_off_in_round_4_resumes_to_the_same_bytes(
    quick: Make, strategy: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"prepared": PREPARED, "bounded": BOUNDED}
    what = named.get(strategy, (f"strategy.name={strategy}",))
    overrides = (*what, "train.rounds=6", "train.clients-per-round=1")
    whole = run_in_process(quick(*overrides, name="whole"))
    run = quick(*overrides, name="cut")
    save = server.round.loop.save_checkpoint

    def cut(*args: object, round_number: int, **kwargs: object) -> None:
        if round_number == 4 and moment == "before the checkpoint":
            raise _Stop  # the clients are ahead of the server now
        save(*args, round_number=round_number, **kwargs)  # type: ignore[arg-type]
        if round_number == 4:
            raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(server.round.loop, "save_checkpoint", cut)
        with pytest.raises(_Stop):
            run_in_process(run)
    resumed = run_in_process(run)
    assert resumed["head_sha256"] == whole["head_sha256"]
    assert resumed["uplink_bytes"] == whole["uplink_bytes"]
    assert [line["round"] for line in lines(run)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_run_killed_with_sigkill_resumes_to_the_same_bytes(quick: Make, strategy: str) -> None:
    overrides = (f"strategy.name={strategy}", "train.rounds=60")
    whole = run_in_process(quick(*overrides, name="whole"))
    run = quick(*overrides, name="killed")
    process = subprocess.Popen(
        [sys.executable, "-m", "fedhead", "resume", str(run)],
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run / "summary.json").exists()
    assert run_in_process(run)["head_sha256"] == whole["head_sha256"]


def test_a_run_with_damaged_metrics_goes_back_and_writes_them_again(
    quick: Make, caplog: pytest.LogCaptureFixture
) -> None:
    run = quick()
    whole = run_in_process(run)
    before = [line["accuracy"] for line in lines(run)]
    metrics = run / "metrics.jsonl"
    first, *between, last = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([first, *between, last.replace(b"0", b"\xff", 1)]))
    assert run_in_process(run)["head_sha256"] == whole["head_sha256"]
    assert "metrics.jsonl, line 5 is damaged" in caplog.text
    assert [line["accuracy"] for line in lines(run)] == before
    metrics.write_bytes(b"".join([first.replace(b"0", b"1", 1), *between, last]))
    with pytest.raises(RunError, match="metrics.jsonl, line 1 is damaged .* begin the run again"):
        run_in_process(run)


def test_a_stock_strategy_cannot_be_resumed(quick: Make) -> None:
    run = quick("strategy.name=flwr.serverapp.strategy:FedAvg", "train.rounds=2")
    run_in_process(run)
    with pytest.raises(RunError, match="cannot be resumed"):
        run_in_process(run)


def test_one_class_clients_train_and_empty_ones_are_left_out(
    quick: Make, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run_in_process(
        quick("partition.scheme=pathological", "partition.classes-per-client=1",
             "partition.num-clients=10", "train.clients-per-round=10")
    )  # fmt: skip
    assert summary["valid_updates"] == 50
    caplog.clear()
    run = quick(
        "partition.alpha=0.01", "partition.min-examples=0", "partition.num-clients=30",
        "train.clients-per-round=0", "train.rounds=1", name="empty",
    )  # fmt: skip
    summary = run_in_process(run)
    assert 0 < summary["clients"] < 30
    assert "has no training examples and is left out" in caplog.text


def test_an_impossible_partition_is_one_clear_line(quick: Make) -> None:
    with pytest.raises(DataError):
        run_in_process(quick("partition.num-clients=100000"))


def test_a_run_whose_data_have_changed_is_not_resumed(quick: Make) -> None:
    run = quick("train.rounds=2")
    run_in_process(run)
    file = run / "run.json"
    known = json.loads(file.read_text())
    del known["checksum"]
    file.write_bytes(seal(json.dumps({**known, "fingerprint": "0" * 64})))
    with pytest.raises(RunError, match="have changed since the run began"):
        run_in_process(run)


def test_a_folder_that_holds_something_else_is_not_touched(quick: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        quick()
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"
