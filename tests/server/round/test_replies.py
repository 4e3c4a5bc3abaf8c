"""Replies that must not count: each is named, counted and left out, and the run goes on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Context, Message, RecordDict

import server.app
from client.app import app as client_app
from common.errors import ReplyError, RunError
from common.experiment import run_config
from common.messages import ClientReport, Rejection, TrainReply
from common.records import table_row
from server.app import run_experiment
from server.export.runtime_cards import ExportReport
from server.record.checkpoint import load_latest
from server.round.replies import check_reply
from simulations.engines.in_process import InProcessGrid
from simulations.run import read_summary

Make = Callable[..., Path]
Change = Callable[[RecordDict], None]
Grid = type[InProcessGrid]
BAD_NODE = 2  # node 3, which hosts client 2


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ExportReport("model", Path(), 0, "")
    monkeypatch.setattr(server.app, "export", lambda *_: report)


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fedhead")


class _Faulty:
    """The real ClientApp, but one node's training replies are changed on their way."""

    def __init__(self, change: Change) -> None:
        self._change = change

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        is_bad = context.node_config["partition-id"] == BAD_NODE
        if is_bad and message.metadata.message_type == "train":
            self._change(reply.content)
        return reply


def run(folder: Path, change: Change, grid_class: type[InProcessGrid] = InProcessGrid) -> Any:
    values = {"experiment": str(folder / "config.toml"), "overrides": ""}
    app: Any = _Faulty(change)
    run_experiment(grid_class(app, 8, values), run_config(values))
    return read_summary(folder)


def report(key: str, value: Any) -> Change:
    def change(content: RecordDict) -> None:
        content["report"][key] = value  # type: ignore[index]

    return change


def figure(name: str, value: float) -> Change:
    """One figure of the client's report."""

    def change(content: RecordDict) -> None:
        record: Any = content["report"]
        rows = np.frombuffer(record["reports"], table_row(ClientReport)).copy()
        rows[name] = value
        record["reports"] = rows.tobytes()

    return change


def delta(*rows: np.ndarray) -> Change:
    return report("field.delta", [row.tobytes() for row in rows])


def refuse(_content: RecordDict) -> None:
    raise ValueError("out of battery")


def drop(content: RecordDict) -> None:
    del content["report"]


SHAPE = (10, 673)
OPTIONS = ("train.rounds=2", "train.clients-per-round=0", "simulation.nodes=8")
CASES: dict[str, tuple[Change, str]] = {
    "NaN": (delta(np.full(SHAPE, np.nan, np.float32)), "delta is not finite"),
    "infinite": (delta(np.full(SHAPE, np.inf, np.float32)), "delta is not finite"),
    "cut short": (delta(np.zeros((9, 673), np.float32)), "delta takes 24228 bytes, expected"),
    "more rows": (delta(*np.zeros((2, *SHAPE), np.float32)), "lists 2 field.delta, expected"),
    "no rows": (delta(), "delta has 0 rows, expected 1"),
    "too precise": (delta(np.zeros(SHAPE)), "delta takes 53840 bytes, expected 26920"),
    "another field": (report("field.gram", [b""]), "sent the fields ['delta', 'gram'], expected"),
    "foreign fingerprint": (report("fingerprint", bytes(32)), "features are of backbone 0000000"),
    "another client's name": (figure("client", 5), "speaks for client 5"),
    "more examples than described": (figure("num_examples", 10**9), "reports 1000000000"),
    "a loss of NaN": (figure("loss_before", float("nan")), "a loss is not finite"),
    "a loss beyond numbers": (figure("loss_after", 1e300), "a loss is 1e+300"),
    "a loss below nothing": (figure("loss_before", -1.0), "which is impossible"),
    "2^62 examples": (figure("num_examples", 2**62), f"reports {2**62} examples, but described"),
    "a payload of 2^62 bytes": (figure("payload_bytes", 2**62), f"reports a payload of {2**62}"),
    "a million clients": (report("reports", bytes(4 * 10**7)), "its content takes 400269"),
    "a missing key": (lambda c: c["report"].pop("reports"), "reports is missing"),  # type: ignore[union-attr]
    "a report cut short": (report("reports", bytes(39)), "reports is 39 bytes, expected rows"),
    "reports in words": (report("reports", "2"), "reports is str, expected rows of 40 bytes"),
    "unreadable bytes": (report("field.delta", [b"pickle"]), "delta takes 6 bytes, expected"),
    "no bytes": (report("field.delta", [1.0]), "field.delta is no list of payloads"),
    "no head, though it was sent": (report("missing-head", True), "has not got the head, but was"),
    "no arrays, though there are none": (report("missing-constant", True), "the plan's arrays"),
    "a missing record": (drop, "record 'report' is missing"),
    "far too much": (delta(np.zeros((30, 673), np.float32)), "its content takes 808"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_reply_is_named_counted_and_left_out(
    tiny: Make, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    change, message = CASES[case]
    summary = run(tiny(*OPTIONS, name="bad"), change)
    assert (summary["valid_updates"], summary["rejected_updates"]) == (14, 2)
    named = [line for line in caplog.text.splitlines() if "round 1: client 2: " in line]
    assert len(named) == 1
    assert message in named[0]
    # The others' head, as if the client had been away.
    away = run(tiny(*OPTIONS, name="away"), refuse)
    assert (away["valid_updates"], away["failed_updates"]) == (14, 2)
    assert summary["head_sha256"] == away["head_sha256"]


def test_an_exception_on_a_node_does_not_end_the_run(
    tiny: Make, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run(tiny(*OPTIONS), refuse)
    assert summary["failed_updates"] == 2
    assert "round 2: client 2: ValueError: out of battery" in caplog.text


def test_who_says_that_the_backbone_is_missing_speaks_for_nobody(
    tiny: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def smear(content: RecordDict) -> None:
        said = {"missing-backbone": True, "rejected-client": [5], "rejected-reason": ["cheats"]}
        content["report"].update(said)  # type: ignore[union-attr]

    summary = run(tiny(*OPTIONS), smear)
    assert (summary["valid_updates"], summary["failed_updates"]) == (14, 2)
    assert summary["rejected_updates"] == 0
    assert "cheats" not in caplog.text


def test_a_node_of_several_clients_refuses_none_of_them_twice() -> None:
    registry = SimpleNamespace(name=lambda client: f"client {client}", clients={})
    told: Any = SimpleNamespace(registry=registry)
    reply = TrainReply("f", rejected=(Rejection(2, "no"), Rejection(2, "no")))
    with pytest.raises(ReplyError, match="names client 2 twice"):
        check_reply(reply, told, {2, 3}, "f")


def test_a_reply_that_arrives_twice_counts_once(tiny: Make) -> None:
    class Twice(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [reply for reply in super().pull_messages(message_ids) for _ in range(2)]

    once = run(tiny(*OPTIONS, name="once"), lambda _: None)
    twice = run(tiny(*OPTIONS, name="twice"), lambda _: None, Twice)
    assert twice["valid_updates"] == once["valid_updates"] == 16
    assert twice["head_sha256"] == once["head_sha256"]


def test_an_error_reply_that_does_not_name_its_node_costs_that_client_alone(tiny: Make) -> None:
    # As the SuperLink answers for a node that is gone, or a message that has expired.
    class Gone(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                if reply.has_error():
                    reply.metadata.__dict__["_src_node_id"] = 1
                yield reply

    summary = run(tiny(*OPTIONS), refuse, Gone)
    assert (summary["valid_updates"], summary["failed_updates"]) == (14, 2)


def test_a_client_named_twice_in_one_reply_is_refused(
    tiny: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def twice(content: RecordDict) -> None:
        record: Any = content["report"]
        record["reports"] *= 2

    summary = run(tiny(*OPTIONS), twice)
    assert summary["rejected_updates"] == 2
    assert "client 2: names client 2 twice" in caplog.text


def test_an_update_above_the_norm_bound_is_refused_on_the_node(
    tiny: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RunError, match="no round of 2 gave a new head"):
        run(tiny(*OPTIONS, "round.max-update-norm=1e-6"), lambda _: None)
    assert caplog.text.count("above the bound 1e-06") >= 16


def test_below_the_quorum_the_head_stays_as_it_was(
    tiny: Make, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny(*OPTIONS, "round.quorum=0.9")
    with pytest.raises(RunError, match="no round of 2 gave a new head"):
        run(folder, refuse)
    assert "7 of 8 updates are valid, the quorum is 0.9: head unchanged" in caplog.text
    checkpoint = load_latest(folder / "checkpoint")
    assert checkpoint is not None
    assert not checkpoint.head.matrix.any()


@pytest.mark.parametrize("case", ["NaN", "foreign fingerprint", "away"])
def test_stock_strategies_get_only_replies_that_passed(
    tiny: Make, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    def nan_head(content: RecordDict) -> None:
        content["arrays"]["head.weight"] = Array(np.full((10, 672), np.nan, np.float32))  # type: ignore[index]

    change = {"NaN": nan_head, "foreign fingerprint": CASES["foreign fingerprint"][0],
              "away": refuse}[case]  # fmt: skip
    folder = tiny(*OPTIONS, "strategy.name=flwr.serverapp.strategy:FedAvg")
    summary = run(folder, change)
    assert summary["valid_updates"] == 14
    assert np.isfinite(summary["loss"])
    assert summary["accuracy"] > 0.5
    assert "client 2: " in caplog.text


def test_devices_get_the_backbone_once_and_train_on_their_own_folders(
    tiny: Make, devices: list[Path], device_grid: Grid, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("train.rounds=3", "train.clients-per-round=0", "train.local-epochs=5")
    summary = run(folder, lambda _: None, device_grid)
    assert (summary["clients"], summary["valid_updates"]) == (3, 9)
    assert summary["centralized_accuracy"] is None  # nobody has the data in one place
    assert summary["accuracy"] > 0.6
    assert caplog.text.count("sending the backbone to 3 nodes") == 1
    for device in devices:
        assert list((device / "state" / "backbones").iterdir())
        assert list((device / "state" / "features").iterdir())


def test_a_devices_bytes_are_those_that_arrive_and_not_those_that_it_claims(
    tiny: Make, device_grid: Grid
) -> None:
    options = ("train.rounds=1", "train.clients-per-round=0", "codec.up=drive")
    honest = run(tiny(*options, name="honest"), lambda _: None, device_grid)
    lying = run(tiny(*options, name="lying"), figure("payload_bytes", 0), device_grid)
    assert honest["valid_updates"] == lying["valid_updates"] == 3
    assert honest["uplink_bytes"] == lying["uplink_bytes"] > 3 * 6730 / 8


def test_a_device_whose_owner_declines_counts_as_failed_with_the_reason(
    tiny: Make, devices: list[Path], device_grid: Grid, caplog: pytest.LogCaptureFixture
) -> None:
    class OneDeclines(device_grid):  # type: ignore[valid-type,misc]
        def __init__(self, app: Any, nodes: int, values: dict[str, Any]) -> None:
            super().__init__(app, nodes, values)
            self._contexts[1].node_config["allow"] = "exit 3"

    folder = tiny("train.rounds=2", "train.clients-per-round=0")
    summary = run(folder, lambda _: None, OneDeclines)
    assert (summary["valid_updates"], summary["failed_updates"]) == (4, 2)
    assert "client 101 declines: its owner's command says no" in caplog.text
    assert "exited with 3" in caplog.text  # in the device's own log


@pytest.mark.slow
def test_a_device_that_lost_its_backbone_gets_it_again(
    tiny: Make, devices: list[Path], device_grid: Grid, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("train.rounds=2", "train.clients-per-round=0")

    def lose(_content: RecordDict) -> None:
        from client.backbones import _load

        shutil.rmtree(devices[BAD_NODE] / "state" / "backbones", ignore_errors=True)
        _load.cache_clear()

    summary = run(folder, lose, device_grid)
    assert summary["valid_updates"] == 6
    assert "sending the backbone to 1 nodes" in caplog.text


def test_a_device_with_a_class_that_the_task_does_not_have_is_named(
    tiny: Make, devices: list[Path], device_grid: Grid, caplog: pytest.LogCaptureFixture
) -> None:
    (devices[0] / "images" / "3").rename(devices[0] / "images" / "three")
    summary = run(tiny("train.rounds=1", "train.clients-per-round=2"), lambda _: None, device_grid)
    assert summary["clients"] == 2
    words = "its images cannot be used; see its own log"
    assert f"node 1 cannot take part: {words}" in caplog.text
    assert "three" in caplog.text  # in the device's own log


def test_no_client_at_all_is_one_clear_line(
    tiny: Make, devices: list[Path], device_grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.round.join._JOIN_SECONDS", 0.1)
    for device in devices:
        shutil.rmtree(device / "images")
    with pytest.raises(RunError, match="0 clients .* are needed; node 1: its images"):
        run(tiny("train.rounds=1", "train.clients-per-round=0"), lambda _: None, device_grid)
