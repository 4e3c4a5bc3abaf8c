"""Numbers that no honest client sends: refused by name, and the others' head is as without them.

A client that is refused and one that is away leave the same bytes behind.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

import server.app
from client.app import app as client_app
from common.errors import RunError
from common.experiment import run_config
from server.app import run_experiment
from server.export.runtime_cards import ExportReport
from server.round.norms import no_norms, oversized, remembered, row_norms
from simulations.engines.in_process import InProcessGrid
from simulations.run import read_summary, run_in_process

Make = Callable[..., Path]
Arrays = dict[str, np.ndarray]
Change = Callable[[Message, RecordDict], None]

OPTIONS = ("train.rounds=2", "train.clients-per-round=0", "simulation.nodes=8")


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fedhead")


class Hostile:
    """The real ClientApp, but the replies of some clients' nodes are changed on their way."""

    def __init__(self, changes: Mapping[int, Change]) -> None:
        self._changes = changes

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        client = int(context.node_config["partition-id"])
        if message.metadata.message_type == "train" and client in self._changes:
            self._changes[client](message, reply.content)
        return reply


def run(folder: Path, changes: Mapping[int, Change]) -> Any:
    values = {"experiment": str(folder / "config.toml"), "overrides": ""}
    app: Any = Hostile(changes)
    run_experiment(InProcessGrid(app, 8, values), run_config(values))
    return read_summary(folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def arrays(change: Callable[[Arrays], None], needs: str = "") -> Change:
    """Change the arrays of each reply, or of those alone that have one of this name."""

    def changed(_message: Message, content: RecordDict) -> None:
        report: Any = content["report"]
        # As a client alone sends them, with its row for an axis.
        fields = {
            key.removeprefix("field."): _read(key, rows)
            for key, rows in report.items()
            if key.startswith("field.")
        }
        if not needs or needs in fields:
            change(fields)
            for name, array in fields.items():
                report[f"field.{name}"] = [row.tobytes() for row in array]

    return changed


def _read(key: str, rows: list[bytes]) -> np.ndarray:
    dtype = "<u4" if key in ("field.gram", "field.moments") else "<f4"
    arrays = np.stack([np.frombuffer(row, dtype) for row in rows])
    is_flat = key == "field.gram" or arrays.shape[1] == 1
    return arrays if is_flat else arrays.reshape(len(rows), 10, -1)


def gone(_fields: Arrays) -> None:
    raise ValueError("away")


def away(*clients: int, needs: str = "") -> Mapping[int, Change]:
    return dict.fromkeys(clients, arrays(gone, needs))


def squares(fields: Arrays) -> np.ndarray:
    """Where the triangle holds the sums of squares."""
    return np.cumsum([0, *range(fields["moments"].shape[-1], 1, -1)])


def huge(fields: Arrays) -> None:
    fields["gram"] = np.full(fields["gram"].shape, 2**60, np.uint64)


def wrapping(fields: Arrays) -> None:
    moments = fields["moments"].astype(np.uint64)
    moments[0, :2, -1] += np.uint64(2**63)
    fields["moments"] = moments


def too_bright(fields: Arrays) -> None:
    sums = fields["moments"]
    sums[0, :, 7] = 256 * sums[0, :, -1]


def indefinite(fields: Arrays) -> None:
    # Two features as if each were the other, so that every third tells them apart.
    first, width = squares(fields), fields["moments"].shape[-1]
    gram = fields["gram"][0]
    gram[first[0] + 1] = int(np.sqrt(float(gram[first[0]]) * float(gram[first[1]])))
    gram[first[0] + 2 : first[0] + width - 1] = 0


def another_count(fields: Arrays) -> None:
    fields["moments"][0, 0, -1] += 1


STATISTICS: dict[str, tuple[Callable[[Arrays], None], str]] = {
    "gram of 2^60": (huge, f"gram holds {2**60}, expected at most"),
    "counts that wrap": (wrapping, "moments holds 92233720368547"),
    "bright": (too_bright, "above 255 times its examples"),
    "indefinite": (indefinite, "gram cannot come from features"),
}


def some(first: Sequence[str], others: Sequence[str]) -> list[Any]:
    """Parameters of which only the first are fast enough for each change."""
    return [*first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


@pytest.mark.parametrize(
    "plan",
    some(
        ["strategy.name=fed3r", "strategy.name=fedncm"],
        ["strategy.precondition=gram", "strategy.name=lda", "strategy.name=afl",
         "strategy.name=fedcof"],
    ),
)  # fmt: skip
def test_forged_statistics_are_refused_by_name_and_change_nothing(
    tiny: Make, caplog: pytest.LogCaptureFixture, plan: str
) -> None:
    sends_gram = "fedncm" not in plan and "fedcof" not in plan
    cases = dict(STATISTICS) if sends_gram else {k: STATISTICS[k] for k in list(STATISTICS)[1:3]}
    folder = tiny(*OPTIONS, plan, name="forged")
    changes = {i: arrays(change, "moments") for i, (change, _) in enumerate(cases.values())}
    summary = run(folder, changes)
    for client, (_, words) in enumerate(cases.values()):
        (line, *_) = [e for e in caplog.messages if e.startswith(f"round 1: client {client}: ")]
        assert words in line
    assert metrics(folder)[0]["rejected"] == len(cases)
    honest = run(tiny(*OPTIONS, plan, name="honest"), away(*range(len(cases)), needs="moments"))
    assert summary["head_sha256"] == honest["head_sha256"]
    assert summary["accuracy"] > 0.5


def filled(value: float) -> Callable[[Arrays], None]:
    """The same number everywhere, up for the first class and down for the others."""

    def fill(fields: Arrays) -> None:
        for name, array in fields.items():
            if array.ndim == 3:
                fields[name] = np.full(array.shape, -value, np.float32)
                fields[name][:, 0] = value

    return fill


OTHERS = ["fedavgm", "fedadam", "feddyn", "fednova", "qfedavg", "norm_clipping", "median"]


@pytest.mark.parametrize("name", some(["fedavg", "scaffold"], OTHERS))
def test_an_update_beyond_all_numbers_is_refused_by_name(
    tiny: Make, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    options = (*OPTIONS, f"strategy.name={name}")
    summary = run(tiny(*options, name="forged"), {2: arrays(filled(3e38))})
    named = [line for line in caplog.messages if line.startswith("round 1: client 2: ")]
    assert "holds numbers above" in named[0]
    honest = run(tiny(*options, name="honest"), away(2))
    assert summary["head_sha256"] == honest["head_sha256"]
    assert summary["accuracy"] > 0.5


WILD = """
import dataclasses
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvgM
from common.types import Head
from server.strategies.adaptive import MomentumState, fedavgm

calls = []

def once(spoil):
    plain = fedavgm()
    def aggregate(state, head, updates, context):
        calls.append(state.velocity.any())
        state, head = plain.aggregate(state, head, updates, context)
        return spoil(state, head) if len(calls) == 1 else (state, head)
    return dataclasses.replace(plain, name="wild", aggregate=aggregate)

def nan():
    return once(lambda state, head: (state, Head.from_matrix(np.nan * head.matrix)))

def far():
    return once(lambda state, head: (state, Head.from_matrix(np.full_like(head.matrix, 3e38))))

def no_loss():
    return once(lambda state, head: (state, Head.from_matrix(1e34 * head.matrix)))

def state():
    return once(lambda state, head: (MomentumState(state.velocity + np.inf), head))

class Stock(FedAvgM):
    def aggregate_train(self, server_round, replies):
        calls.append(self.momentum_vector is not None)
        arrays, metrics = super().aggregate_train(server_round, replies)
        if len(calls) == 1:
            spoilt = {k: np.float32(1e34) * a.numpy() for k, a in arrays.items()}
            arrays = ArrayRecord({k: Array(a) for k, a in spoilt.items()})
        return arrays, metrics
"""
SAID = {
    "nan": "the new head is not finite", "far": "the loss of the new head is nan",
    "no_loss": "the loss of the new head is ", "state": "the state of wild is not finite",
    "Stock": "the loss of the new head is ",
}  # fmt: skip


@pytest.mark.parametrize("name", some(["no_loss", "state", "Stock"], ["nan", "far"]))
def test_a_head_without_a_loss_is_not_kept_nor_is_what_the_strategy_remembers(
    tiny: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:  # fmt: skip
    module = f"wild_{name.lower()}"
    (tmp_path / f"{module}.py").write_text(WILD)
    monkeypatch.syspath_prepend(tmp_path)
    args = ("strategy.args.server-momentum=0.9",) if name == "Stock" else ()
    options = ("train.clients-per-round=0", "simulation.nodes=8", *args)
    folder = tiny("train.rounds=3", *options, f"strategy.name={module}:{name}")
    summary = run(folder, {})
    (lost,) = [line for line in caplog.messages if "head unchanged" in line]
    assert lost.startswith(f"round 1: {SAID[name]}")
    first, *later = metrics(folder)
    assert (first["accepted"], [line["accepted"] for line in later]) == (False, [True, True])
    assert first["loss"] == pytest.approx(np.log(10))  # of the head as it was
    assert first["valid"] == 8
    # The second round finds the strategy as the first one did.
    assert sys.modules[module].calls == [False, False, True]
    assert summary["accuracy"] > 0.5


def at_random(shape: tuple[int, ...], value: float) -> np.ndarray:
    return np.random.default_rng(0).choice(np.array([-value, value], np.float32), shape)


def stock_head(value: float) -> Change:
    def change(_message: Message, content: RecordDict) -> None:
        record: Any = content["arrays"]
        record["head.weight"] = Array(at_random(record["head.weight"].numpy().shape, value))

    return change


def test_a_stock_strategy_sees_nothing_that_was_not_checked(tiny: Make) -> None:
    # Flower's strategies end the run where a reply has another record of arrays.
    def add(_message: Message, content: RecordDict) -> None:
        content["more"] = ArrayRecord({"x": Array(np.full(3, np.nan))})

    options = (*OPTIONS, "strategy.name=flwr.serverapp.strategy:FedAvg")
    plain = run(tiny(*options, name="plain"), {})
    assert run(tiny(*options, name="more"), {2: add})["head_sha256"] == plain["head_sha256"]


AUTO = 'round.max-update-norm="auto"'


@pytest.mark.parametrize(
    "name",
    some(
        ["fedavg", "flwr.serverapp.strategy:FedAvg"],
        [*OTHERS, "scaffold", "flwr.serverapp.strategy:FedAdam"],
    ),
)
def test_an_update_far_larger_than_the_rounds_others_is_refused_by_name(
    tiny: Make, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    options = (*OPTIONS, AUTO, f"strategy.name={name}")
    change = stock_head(1e3) if ":" in name else arrays(filled(1e3))
    summary = run(tiny(*options, name="forged"), {2: change})
    named = [line for line in caplog.messages if line.startswith("round 1: client 2: the norm of")]
    assert len(named) == 1
    assert ", over 10 times the median of " in named[0]
    assert (summary["valid_updates"], summary["rejected_updates"]) == (14, 2)
    honest = run(tiny(*options, name="honest"), away(2) if ":" not in name else {2: refuse})
    assert summary["head_sha256"] == honest["head_sha256"]


def refuse(_message: Message, _content: RecordDict) -> None:
    raise ValueError("away")


def test_a_second_field_is_bounded_as_the_delta_is(
    tiny: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def control(fields: Arrays) -> None:
        fields["control_delta"] *= 1000

    run(tiny(*OPTIONS, AUTO, "strategy.name=scaffold"), {2: arrays(control)})
    assert "round 1: client 2: the norm of control_delta is " in caplog.text


@pytest.mark.parametrize("nodes", [1, 3])
def test_clients_that_share_a_node_are_bounded_each_by_itself(tiny: Make, nodes: int) -> None:
    options = ("train.clients-per-round=0", f"simulation.nodes={nodes}", AUTO)
    attack = ("attack.kind=sign-flip", "attack.scale=1000", "attack.fraction=0.25")
    summary = run_in_process(tiny(*options, *attack, name="attacked"))
    assert summary["rejected_updates"] == 2 * 5
    assert summary["accuracy"] > 0.5


def sizes(*norms: float) -> np.ndarray:
    table = np.zeros((len(norms), no_norms().shape[1]))
    table[:, 0] = norms
    return table


def test_the_bound_follows_the_round_and_the_first_updates_of_the_run() -> None:
    assert list(oversized(sizes(1, 2, 3, 19), no_norms())) == []
    assert list(oversized(sizes(1, 2, 3, 26), no_norms())) == [3]
    # Of two nobody can tell who lies; of those before them one can.
    assert oversized(sizes(1, 1e9), no_norms()) == {}
    assert list(oversized(sizes(1, 1e9), sizes(1.5, 2.0))) == [1]
    assert list(oversized(sizes(1e9), sizes(1.5, 2.0))) == [0]
    # Late in a run most have little to add: who still has is not refused for it.
    assert oversized(sizes(0.1, 0.1, 0.1, 3), sizes(1, 1, 1)) == {}
    assert list(oversized(sizes(0.1, 0.1, 0.1, 11), sizes(1, 1, 1))) == [3]
    # Who sends nothing is no yardstick.
    assert oversized(sizes(0, 0, 0, 1), no_norms()) == {}
    kept = remembered(sizes(*range(31)), sizes(99.0, 98.0))
    assert kept[:, 0].tolist() == [*range(31), 99.0]


def test_norms_are_those_of_each_field_that_is_sent() -> None:
    fields = {
        "delta": np.full((2, 2), 1e20, np.float32), "fair_scale": np.array([9.0], np.float32),
        "effective_steps": np.array([7.0], np.float32),
    }  # fmt: skip
    np.testing.assert_allclose(row_norms(fields), [2e20, 0, 0, 0, 3])


def test_a_client_with_whom_sums_would_leave_their_numbers_is_left_out_by_name(
    tiny: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.round.admission._MOST_TOGETHER", 1236)  # of 1237
    with pytest.raises(RunError, match=r"no node hosts the clients \[7\]"):
        run(tiny(*OPTIONS), {})
    assert "which makes 1237 of all clients, expected at most 1236: refused" in caplog.text
