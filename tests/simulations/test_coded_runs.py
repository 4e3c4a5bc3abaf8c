"""Runs whose clients encode what they send."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from safetensors.numpy import load_file

from client.app import app as client_app
from common.backbone.frozen import FrozenBackbone
from common.experiment import run_config
from common.types import Head
from server.app import run_experiment
from server.round.codecs import first_step
from simulations.engines.in_process import InProcessGrid
from simulations.run import read_summary, run_in_process

pytestmark = pytest.mark.wide

Make = Callable[..., Path]
CutAfter = Callable[[int], AbstractContextManager[None]]

SHORT = ("train.rounds=2", "train.lr=0.05")
# Small Gram matrices, because each client's is checked.
FEW = "backbone.projection=31"
CLOSED = ("strategy.name=fed3r", "train.rounds=3", "train.clients-per-round=3", FEW)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def matrix(run: Path) -> np.ndarray:
    return load_file(run / "head.safetensors")["weight"].astype(np.float64)


@pytest.mark.parametrize(
    "codec",
    [
        "drive", "int8-shared", "gram-int8",
        *(pytest.param(codec, marks=pytest.mark.slow) for codec in ("eden", "int8")),
    ],
)  # fmt: skip
def test_a_run_cut_off_in_the_middle_ends_with_the_same_bytes(
    quick: Make, cut_after: CutAfter, codec: str
) -> None:
    options = CLOSED if codec == "gram-int8" else ("train.rounds=3", "train.clients-per-round=2")
    whole = run_in_process(quick(*options, f"codec.up={codec}", name="whole"))
    run = quick(*options, f"codec.up={codec}", name="cut")

    with cut_after(2), pytest.raises(KeyboardInterrupt):
        run_in_process(run)
    resumed = run_in_process(run)
    for key in ("head_sha256", "uplink_bytes", "accuracy"):
        assert resumed[key] == whole[key], key


@pytest.mark.parametrize(
    ("codec", "strategy"),
    [("drive", "fedavg"), ("int8-shared", "fedavg"), ("int8", "median"), ("gram-int8", "fed3r")],
)
def test_bytes_are_those_of_each_clients_reply_and_far_fewer(
    quick: Make, codec: str, strategy: str
) -> None:
    options = ("train.rounds=1", "train.clients-per-round=0", f"strategy.name={strategy}")
    options += (FEW,) if strategy == "fed3r" else ()
    plain = run_in_process(quick(*options, name="plain"))
    runs = [quick(*options, f"codec.up={codec}", name="together")]
    runs.append(quick(*options, f"codec.up={codec}", "simulation.nodes=8", name="alone"))
    together, alone = map(run_in_process, runs)
    # A node with one client sends that client's own reply.
    assert together["uplink_bytes"] == pytest.approx(alone["uplink_bytes"], rel=1e-3)
    assert alone["valid_updates"] == 8
    assert alone["uplink_bytes"] < plain["uplink_bytes"] / (2.5 if codec != "drive" else 15)
    assert alone["accuracy"] == pytest.approx(plain["accuracy"], abs=0.1)
    a, b = map(matrix, runs)
    assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b)  # a flipped bit here and there


def test_a_codec_of_floats_leaves_a_first_round_of_statistics_exact(quick: Make) -> None:
    options = (*SHORT, "strategy.init=fed3r", "strategy.precondition=gram")
    plain, coded = quick(*options, name="plain"), quick(*options, "codec.up=drive", name="drive")
    run_in_process(plain)
    run_in_process(coded)
    first, second = zip(lines(plain), lines(coded), strict=True)
    assert first[0]["uplink-bytes"] == first[1]["uplink-bytes"]
    assert first[0]["loss"] == first[1]["loss"]
    assert second[1]["uplink-bytes"] < second[0]["uplink-bytes"] / 15


@pytest.mark.parametrize("kind", ["sign-flip", "gaussian"])
def test_attackers_change_what_has_been_decoded(quick: Make, kind: str) -> None:
    options = (*SHORT, f"attack.kind={kind}", "attack.fraction=0.25", "train.clients-per-round=0")
    run = quick(*options, "codec.up=drive")
    summary = run_in_process(run)
    assert (summary["valid_updates"], summary["rejected_updates"]) == (16, 0)
    honest = run_in_process(quick(*SHORT, "train.clients-per-round=0", "codec.up=drive", name="b"))
    assert summary["head_sha256"] != honest["head_sha256"]
    assert summary["uplink_bytes"] == honest["uplink_bytes"]


def test_inflated_statistics_pass_as_they_would_without_a_codec(quick: Make) -> None:
    options = (*CLOSED, "attack.kind=inflate", "attack.fraction=0.25", "train.rounds=1")
    plain = run_in_process(quick(*options, name="plain"))
    coded = run_in_process(quick(*options, "codec.up=gram-int8", name="coded"))
    assert coded["valid_updates"] == plain["valid_updates"]
    assert coded["accuracy"] == pytest.approx(plain["accuracy"], abs=0.1)


@pytest.mark.parametrize(
    ("codec", "field"),
    [("drive", "delta"), ("int8-shared", "delta"), ("gram-int8", "gram"), ("gram-int8", "moments")],
)
@pytest.mark.parametrize("spoil", ["cut", "foreign", "long"])
def test_a_payload_that_is_not_the_codecs_costs_its_client_its_round_and_nobody_else(
    quick: Make, codec: str, field: str, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 2:
            report: Any = reply.content["report"]
            (payload,) = report[f"field.{field}"]
            spoiled = {"cut": payload[:-3], "foreign": b"\x80\x04K" * 99, "long": payload * 2}
            report[f"field.{field}"] = [spoiled[spoil]]
        return reply

    strategy = "fed3r" if codec == "gram-int8" else "fedavg"
    run = quick(
        "train.rounds=1", "train.clients-per-round=0", "simulation.nodes=8", f"codec.up={codec}",
        f"strategy.name={strategy}", *((FEW,) if strategy == "fed3r" else ()),
    )  # fmt: skip
    values, app = {"experiment": str(run / "config.toml"), "overrides": ""}, answer
    with caplog.at_level(logging.INFO, logger="fedhead"):
        run_experiment(InProcessGrid(app, 8, values), run_config(values))  # type: ignore[arg-type]
    summary = read_summary(run)
    assert (summary["valid_updates"], summary["rejected_updates"]) == (7, 1)
    assert f"round 1: client 2: {field} " in caplog.text


def test_the_shared_step_follows_the_rounds(quick: Make) -> None:
    ordered: list[str] = []

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            ordered.append(str(message.content["config"]["uplink"]))  # type: ignore[index]
        return client_app(message, context)

    run = quick("train.rounds=3", "codec.up=int8-shared")
    values, app = {"experiment": str(run / "config.toml"), "overrides": ""}, answer
    run_experiment(InProcessGrid(app, 1, values), run_config(values))  # type: ignore[arg-type]
    folders, steps = sorted((run / "checkpoint").glob("[0-9]*")), []
    assert len(folders) == len(ordered) == 3
    before = np.zeros((10, 673), np.float32)
    for folder in folders:
        kept = load_file(folder / "head.safetensors")
        head = Head(kept["weight"], kept["bias"]).matrix
        # What FedAvg adds to the head is the mean update; its root mean square counts.
        size, before = np.sqrt(np.square(head - before, dtype=np.float64).mean()), head
        steps.append(json.loads((folder / "meta.json").read_text())["scalars"]["codec_step"])
        assert math.frexp(steps[-1])[0] == 0.5  # a power of two
        assert steps[-1] <= size / 2 < 2 * steps[-1]
    first = first_step(read_summary(run)["lr"], FrozenBackbone.load(run).affine)
    assert ordered == [f"int8-shared:{step!r}" for step in (first, *steps[:2])]
