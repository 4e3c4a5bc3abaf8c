"""What the server of a private run does not tell of devices, whatever they say."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message

import server.app
from client.app import app as client_app
from common.config import PrivacyConfig
from common.errors import RunError
from common.experiment import run_config
from common.messages import DescribeReply, DescribeRequest, TrainReply
from server.app import run_experiment
from server.export.runtime_cards import ExportReport
from server.record.untold import UNTOLD_REASON, untold_figures
from simulations.deploy.last_run import _said
from simulations.engines.in_process import InProcessGrid
from tests.unnoised import Planted, of_folder

pytestmark = pytest.mark.wide

Make = Callable[..., Path]
Grid = type[InProcessGrid]

PRIVATE = ("privacy.epsilon=20", "train.rounds=3", "round.quorum=0.3", "train.clients-per-round=0")
TOLD = "it holds 4211 images of cats, mean loss 0.432198"
PLANTED = Planted({"examples": 4211, "loss": 0.432198})


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))


def run(folder: Path, grid_class: Grid, app: Any = client_app) -> list[dict[str, Any]]:
    """Run it; the lines of its log."""
    values = {"experiment": str(folder / "config.toml"), "overrides": ""}
    run_experiment(grid_class(app, 1, values), run_config(values))
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def accounts(folder: Path) -> list[dict[str, str]]:
    with (folder / "devices.csv").open() as file:
        return list(csv.DictReader(file))


def test_devices_join_without_their_numbers_and_their_words_are_not_repeated(
    tiny: Make, device_grid: Grid
) -> None:
    def talkative(message: Message, context: Context) -> Message:
        if (message.metadata.message_type, context.node_id) == ("train", 2):
            return Message(Error(2, TOLD), reply_to=message)
        answer = client_app(message, context)
        if (message.metadata.message_type, context.node_id) == ("train", 3):
            reply = TrainReply.read(answer.content)
            reports = [dataclasses.replace(one, num_examples=4211) for one in reply.reports]
            content = dataclasses.replace(reply, reports=tuple(reports)).write()
            return Message(content, reply_to=message)
        return answer

    folder = tiny(*PRIVATE)
    log = run(folder, device_grid, talkative)
    joined = [line for line in log if line["event"] == "joined"]
    assert [line["message"] for line in joined] == [
        f"client {101 + i} has joined" for i in range(3)
    ]
    assert all("num_examples" not in line for line in joined)
    problems = {(line["event"], line["client"], line["reason"]) for line in log if "reason" in line}
    assert problems == {("failed", 102, UNTOLD_REASON), ("rejected", 103, UNTOLD_REASON)}
    assert PLANTED.found(of_folder(folder)) == {}
    assert [(row["valid"], row["failed"], row["rejected"]) for row in accounts(folder)] == [
        ("3", "0", "0"), ("0", "3", "0"), ("0", "0", "3"),
    ]  # fmt: skip
    assert _said(folder / "events.jsonl")[0] == {}, "the operator's table has a dash"


def test_without_privacy_they_are(tiny: Make, device_grid: Grid) -> None:
    def talkative(message: Message, context: Context) -> Message:
        if (message.metadata.message_type, context.node_id) == ("train", 2):
            return Message(Error(2, TOLD), reply_to=message)
        return client_app(message, context)

    folder = tiny(*PRIVATE[1:])
    run(folder, device_grid, talkative)
    assert {*PLANTED.found(of_folder(folder))} == {"examples", "loss"}


def test_a_device_sends_its_clipped_integers_and_blanks(tiny: Make, device_grid: Grid) -> None:
    described, trained = list[DescribeReply](), list[TrainReply]()

    def heard(message: Message, context: Context) -> Message:
        answer = client_app(message, context)
        kind = message.metadata.message_type
        assert kind in ("query.describe", "query.backbone", "train"), "nothing else is asked"
        if kind == "query.describe":
            described.append(DescribeReply.read(answer.content))
        elif kind == "train" and not TrainReply.read(answer.content).lacks:
            assert {*answer.content["report"]} == {"fingerprint", "reports", "field.clipped_delta"}
            trained.append(TrainReply.read(answer.content))
        return answer

    run(tiny(*PRIVATE, "partition.test-fraction=0.5"), device_grid, heard)
    expected = [DescribeReply((client,), (1,), simulated=False) for client in (101, 102, 103)]
    assert sorted(described, key=lambda reply: reply.clients) == expected
    assert len(trained) == 9
    for reply in trained:
        (report,) = reply.reports
        assert (report.num_examples, report.loss_before, report.loss_after) == (1, 0, 0)


def test_a_device_that_tells_its_number_all_the_same_is_left_out_without_it(
    tiny: Make, device_grid: Grid
) -> None:
    def older(message: Message, context: Context) -> Message:
        if (message.metadata.message_type, context.node_id) == ("query.describe", 2):
            request = DescribeRequest.read(message.content)
            assert request.private
            return Message(DescribeReply((102,), (4211,), False).write(), reply_to=message)
        return client_app(message, context)

    folder = tiny(*PRIVATE)
    log = run(folder, device_grid, older)
    (refused,) = [line for line in log if line["event"] == "refused"]
    assert refused["reason"] == "tells how many examples it has, but the run is private"
    assert [line["client"] for line in log if line["event"] == "joined"] == [101, 103]
    assert PLANTED.found(of_folder(folder)) == {}


def test_with_secret_cohorts_the_accounts_have_only_when_devices_were_there(
    tiny: Make, device_grid: Grid
) -> None:
    def failing(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and context.node_id == 2:
            return Message(Error(2, TOLD), reply_to=message)
        return client_app(message, context)

    keys = ("privacy.mechanism=poisson", "train.clients-per-round=2")
    folder = tiny(*PRIVATE[:-1], *keys)
    log = run(folder, device_grid, failing)
    for row in accounts(folder):
        assert row.pop("client") in ("101", "102", "103")
        assert row.pop("last_seen")
        assert row.pop("name")
        assert not any(row.values())
    assert {line["event"] for line in log if "client" in line} == {"joined"}
    assert PLANTED.found(of_folder(folder)) == {}


@pytest.mark.parametrize("mechanism", ["everyone", "poisson"])
def test_with_secret_cohorts_nobody_is_told_who_owes_an_answer(
    mechanism: str, tiny: Make, device_grid: Grid
) -> None:
    class Silent(device_grid):  # type: ignore[misc, valid-type]
        """Node 2 does not answer requests to train."""

        def push_messages(self, messages: Any) -> Any:
            sent = list(messages)
            names = list(super().push_messages(sent))
            pairs = zip(sent, names, strict=True)
            self.lost = getattr(self, "lost", set()) | {
                name
                for one, name in pairs
                if (one.metadata.message_type, one.metadata.dst_node_id) == ("train", 2)
            }
            return names

        def pull_messages(self, names: Any) -> Any:
            return super().pull_messages([name for name in names if name not in self.lost])

    # All coins come up heads, so that it is the same who is asked.
    asked = {"everyone": 0, "poisson": 3}[mechanism]
    keys = (f"privacy.mechanism={mechanism}", f"train.clients-per-round={asked}")
    folder = tiny(
        *PRIVATE[:2], "round.quorum=1.0", "round.deadline-seconds=1", "train.lr=auto", *keys
    )
    with suppress(RunError):  # where everyone is asked, no round has its quorum
        run(folder, Silent)
    log = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    waiting = [line["message"] for line in log if line["event"] == "waiting"]
    told = [line["event"] for line in log if line.get("client") == 102]
    if mechanism == "everyone":
        assert "2 of 3 clients are ready, waiting" in waiting
        assert "failed" in told
    else:
        assert not waiting
        assert told == ["joined"]


@pytest.mark.parametrize("keys", [(), PRIVATE])
def test_the_last_words_of_a_run_on_devices_say_that_it_is_not_private(
    keys: tuple[str, ...], tiny: Make, device_grid: Grid
) -> None:
    log = run(tiny("train.rounds=1", "train.clients-per-round=3", *keys), device_grid)
    said = [line["message"] for line in log if "docs/privacy.md" in line["message"]]
    words = "not private: single images may show in updates and model; see docs/privacy.md"
    assert said == ([] if keys else [words])


def test_those_of_a_simulation_say_nothing_of_it(tiny: Make) -> None:
    log = run(tiny("train.rounds=1"), InProcessGrid)
    assert not [line for line in log if "not private" in line["message"]]


def test_what_is_not_told_depends_on_the_mechanism() -> None:
    public, everyone, poisson = (
        untold_figures(PrivacyConfig.model_validate(keys))
        for keys in ({}, {"epsilon": 4.0}, {"epsilon": 4.0, "mechanism": "poisson"})
    )
    assert public == set()
    assert everyone == {"train-loss-before", "train-loss-after", "num-examples"}
    assert everyone < poisson
    assert {"cohort", "valid", "failed", "uplink-bytes", "downlink-bytes"} <= poisson
