"""What a user adds on the way between client and server: a field, a memory, a codec."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from safetensors.numpy import load_file

from client.app import app as client_app
from common.codecs import CODECS, Codec
from common.config import parse_overrides
from common.corrections import CORRECTIONS, Correction
from common.experiment import run_config
from common.fields import FIELDS, Field, Memory, Trained
from common.types import Layout
from server.app import run_experiment
from simulations.engines.in_process import InProcessGrid
from simulations.resume import change_run
from simulations.run import open_run, read_summary, run_in_process

Make = Callable[..., Path]

# A strategy that asks for them, in a user's own file.
STRATEGY = """
import dataclasses

from server.strategies.averaging import fedavg
from server.strategies.robust import median
from server.strategy import mean

told = []

def asking(**changes):
    plain = fedavg()
    def plan(state, context):
        return dataclasses.replace(plain.plan(state, context), **changes)
    def aggregate(state, head, updates, context):
        told.append({name: float(mean(updates, name)[0]) for name in updates.fields if name != "delta"})
        return plain.aggregate(state, head, updates, context)
    return dataclasses.replace(plain, name="asking", plan=plan, aggregate=aggregate)

def losses():
    return asking(fields=("delta", "loss"))

def visits():
    return asking(fields=("delta", "visits"), correction="visits", weighting="uniform")

def halved():
    return asking(uplink="half")

def halved_down():
    return asking(downlink="half")

def halved_median():
    plain = median()
    def plan(state, context):
        return dataclasses.replace(plain.plan(state, context), uplink="half")
    return dataclasses.replace(plain, name="halved_median", plan=plan)
"""  # noqa: E501


# The function beside a row of common/fields.py.
def loss(trained: Trained) -> np.ndarray:
    return np.array([trained.loss], np.float32)


def visits(trained: Trained) -> np.ndarray:
    return trained.memory["visits"]


# The function beside a row of common/corrections.py.
def one_more(trained: Trained) -> Memory:
    return {"visits": trained.memory["visits"] + 1}


# A file in common/codecs: half precision.
def encode(array: np.ndarray, _seed: int) -> bytes:
    return array.astype("<f2").tobytes()


def decode(payload: bytes, layout: Layout, _seed: int) -> np.ndarray:
    return np.frombuffer(payload, "<f2").reshape(layout.shape).astype(np.float32)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """One row each; the module of the strategy."""
    number = Field(lambda k, d: (1,), loss, is_bounded=False, exact=True)
    monkeypatch.setitem(FIELDS, "loss", number)  # type: ignore[arg-type]
    count = Field(lambda k, d: (1,), visits, is_bounded=False, exact=True)
    monkeypatch.setitem(FIELDS, "visits", count)  # type: ignore[arg-type]
    memory = Correction({"visits": lambda k, d: (1,)}, one_more)
    monkeypatch.setitem(CORRECTIONS, "visits", memory)  # type: ignore[arg-type]
    monkeypatch.setitem(CODECS, "half", Codec("half", encode, decode))  # type: ignore[arg-type]
    (tmp_path / "mine.py").write_text(STRATEGY)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine", None)
    return importlib.import_module("mine")


OPTIONS = ("train.clients-per-round=0",)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("trainer", ["cohort", "reference"])
def test_a_field_is_a_row_and_a_function(quick: Make, own: Any, trainer: str) -> None:
    run = quick(*OPTIONS, "strategy.name=mine:losses", "train.rounds=2", "simulation.nodes=3",
                f"simulation.trainer={trainer}")  # fmt: skip
    run_in_process(run)
    wanted = [line["train-loss-before"] for line in lines(run)]
    assert [told["loss"] for told in own.told] == pytest.approx(wanted, rel=1e-6)


def test_a_memory_is_a_row_and_a_function_and_goes_on_with_the_run(quick: Make, own: Any) -> None:
    run = quick(*OPTIONS, "strategy.name=mine:visits", "train.rounds=2")
    run_in_process(run)
    change_run(run, open_run(run), parse_overrides(["train.rounds=4"]))
    assert run_in_process(run)["rounds"] == 4
    assert [told["visits"] for told in own.told] == [0, 1, 2, 3]


def uplink(run: Path) -> int:
    return int(run_in_process(run)["uplink_bytes"])


@pytest.mark.parametrize(("name", "plain"), [("halved", "fedavg"), ("halved_median", "median")])
def test_a_codec_is_a_file_and_a_row_and_its_bytes_are_those_of_what_is_encoded(
    quick: Make, own: Any, name: str, plain: str
) -> None:
    options = (*OPTIONS, "train.rounds=1")
    plain_run = quick(*options, f"strategy.name={plain}", name="plain")
    before = uplink(plain_run)
    runs = {}
    for trainer, nodes in (("cohort", 1), ("cohort", 8), ("reference", 3)):
        runs[trainer, nodes] = quick(
            *options, f"strategy.name=mine:{name}", f"simulation.nodes={nodes}",
            f"simulation.trainer={trainer}", name=f"{trainer}{nodes}",
        )  # fmt: skip
        # 8 clients' heads of 10 classes, 2 bytes a number instead of 4; numbers of a varint's
        # length apart, the rest of a message weighs the same. The lengths of a payload and of what
        # it is nested in take a byte less each below 16,384 bytes: some six of them.
        assert before - uplink(runs[trainer, nodes]) == pytest.approx(8 * (2 * 6730 + 6), abs=8 * 4)
    heads = [load_file(run / "head.safetensors")["weight"] for run in runs.values()]
    exact = load_file(plain_run / "head.safetensors")["weight"]
    for head in heads[1:]:  # trainers agree to rounding, which half precision makes a step
        np.testing.assert_allclose(head, heads[0], rtol=0, atol=1e-5)
    assert not np.array_equal(heads[0], exact)
    np.testing.assert_allclose(heads[0], exact, rtol=0, atol=1e-4)


def test_a_head_on_its_way_down_has_a_codec_of_its_own(quick: Make, own: Any) -> None:
    plain = run_in_process(quick(*OPTIONS, "train.rounds=2", name="plain"))
    options = ("train.rounds=2", "strategy.name=mine:halved_down")
    halved = run_in_process(quick(*OPTIONS, *options, name="down"))
    assert halved["uplink_bytes"] == plain["uplink_bytes"]
    # The first head is zero, which takes no bytes; the second takes half of them, in one part. What
    # tells which head it is takes some 60 bytes.
    saved = plain["downlink_bytes"] - halved["downlink_bytes"]
    assert saved == pytest.approx(8 * (4 + 2) * 6730, abs=2 * 8 * 80)
    assert halved["head_sha256"] != plain["head_sha256"]
    assert halved["accuracy"] == pytest.approx(plain["accuracy"], abs=0.02)


@pytest.mark.parametrize("payload", [b"", b"pickle", bytes(13459), bytes(26920)])
def test_a_foreign_payload_costs_its_client_its_round_and_nobody_else(
    quick: Make, own: Any, caplog: pytest.LogCaptureFixture, payload: bytes
) -> None:
    def answer(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 2:
            reply.content["report"]["field.delta"] = [payload]  # type: ignore[index]
        return reply

    run = quick(*OPTIONS, "strategy.name=mine:halved", "train.rounds=1", "simulation.nodes=8")
    values = {"experiment": str(run / "config.toml"), "overrides": ""}
    app: Any = answer
    with caplog.at_level(logging.INFO, logger="fedhead"):
        run_experiment(InProcessGrid(app, 8, values), run_config(values))
    summary = read_summary(run)
    assert (summary["valid_updates"], summary["rejected_updates"]) == (7, 1)
    assert "round 1: client 2: delta cannot be decoded as half" in caplog.text
