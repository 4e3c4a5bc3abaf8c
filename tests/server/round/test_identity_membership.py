"""Which devices belong to a run: latecomers, listed ones, revoked ones, and who is refused."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from flwr.app import Message

from common.config import load_config, parse_overrides
from common.errors import ConfigError, RunError
from common.identity import client_of_node
from common.messages import DescribeRequest
from server.record.progress import Progress
from server.round.admission import Admission
from server.round.backbone_offer import Offer
from server.round.join import join, make_registry
from server.round.registry import Registry
from server.round.roster import Roster, read_roster
from simulations.resume import change_run
from simulations.run import open_run
from tests.server.round.deployed import OPTIONS, Make, accounts, events, run
from tests.server.round.garden import CLIENTS, NODES, Garden, describes, register, revoke

pytestmark = pytest.mark.usefixtures("no_export", "logged")


@pytest.fixture
def devices(kept_devices: list[Path]) -> list[Path]:
    return kept_devices


class Late(Garden):
    """Only kitchen is there when it is asked for the first few times."""

    asked, few = 0, 4

    def get_node_ids(self) -> Iterable[int]:
        self.asked += 1
        return super().get_node_ids() if self.asked > self.few else [NODES["kitchen"]]


class Endless(Late):
    few = 10**6


@pytest.mark.parametrize(("grid", "resumes", "clients"), [
    (Late, True, 3), (Endless, True, 1), (Late, False, 1),
])  # fmt: skip
def test_a_run_of_all_clients_goes_on_with_a_quorum_of_the_registered_if_they_come(
    tiny: Make, devices: list[Path], garden: Path, monkeypatch: pytest.MonkeyPatch,
    grid: type[Late], resumes: bool, clients: int,
) -> None:  # fmt: skip
    monkeypatch.setattr("server.round.join._JOIN_SECONDS", 60.0 if grid is Late else 2.0)
    config = load_config(tiny(*OPTIONS) / "config.toml")
    data: Any = SimpleNamespace(classes=tuple("0123456789"), content_key="")
    registry = make_registry(
        grid(devices), config, "run", data, Offer("f" * 64, bytes), Progress(),
        Roster(garden),
    )  # fmt: skip
    join(registry, config, data, devices=True, resumes=resumes)
    assert len(registry.clients) == clients


def test_a_latecomer_that_says_nothing_of_the_backbone_is_not_waited_for(
    tiny: Make, devices: list[Path], garden: Path
) -> None:
    class Mute(Garden):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = super().pull_messages(message_ids)
            return [r for r in replies if r.metadata.message_type != "query.backbone"]

    registry = Registry(
        Mute(devices), DescribeRequest("run", tuple("0123456789"), 0.1, 3), Offer("f" * 64, bytes),
        admission=Admission(Roster(garden)), deadline_seconds=60, progress=Progress(),
    )  # fmt: skip
    started = time.monotonic()
    registry.refresh(1.0)
    assert sorted(registry.clients) == sorted(CLIENTS.values())
    assert time.monotonic() - started < 60  # ten minutes, where it was waited for


def test_devices_are_added_and_revoked_while_a_run_is_on(
    tiny: Make, devices: list[Path], garden: Path
) -> None:
    class Changing(Garden):
        trained = 0

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if messages and messages[0].metadata.message_type == "train":
                self.trained += 1
            ids = super().push_messages(messages)
            if self.trained == 1:
                register(garden, "attic")
            if self.trained == 2:
                revoke(garden, "hall")
            return ids

    revoke(garden, "attic")
    (garden / "devices" / "attic.client").unlink()
    folder = tiny("train.rounds=4", "train.clients-per-round=0")
    run(folder, Changing(devices), garden)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["cohort"] for line in lines] == [2, 3, 2, 2]
    said = [e["message"] for e in events(folder, "refused")]
    assert said == [
        "a node with an unknown key is connected, but not registered in this deployment: refused",
        "hall is connected, but not registered in this deployment: refused",
    ]
    (gone,) = events(folder, "gone")
    assert (gone["name"], gone["message"]) == ("hall", "hall was revoked")


@pytest.mark.parametrize("strategy", ["fedavg", "flwr.serverapp.strategy:FedAvg"])
def test_a_device_that_is_revoked_within_a_round_is_said_to_be(
    tiny: Make, devices: list[Path], garden: Path, strategy: str
) -> None:
    class Revoking(Garden):
        """One device is revoked, and another dies, before they answer."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            ids = dict(zip(super().push_messages(messages), messages, strict=True))
            if messages and messages[0].metadata.message_type == "train":
                revoke(garden, "hall")
                silent = {CLIENTS["hall"], CLIENTS["attic"]}
                for name, message in ids.items():
                    if client_of_node(message.metadata.dst_node_id) in silent:
                        self.lost.add(name)
            return list(ids)

        lost: ClassVar[set[str]] = set()

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return super().pull_messages([name for name in message_ids if name not in self.lost])

    folder = tiny(
        "train.rounds=1", "train.clients-per-round=0", "round.quorum=0.3",
        "round.deadline-seconds=2", f"strategy.name={strategy}",
    )  # fmt: skip
    run(folder, Revoking(devices), garden)
    said = {e["name"]: e["reason"] for e in events(folder, "failed")}
    assert said == {"hall": "it was revoked", "attic": "no answer"}


def test_with_nobody_let_in_the_run_says_why_by_name(
    tiny: Make, devices: list[Path], garden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.round.join._JOIN_SECONDS", 0.1)
    grid = Garden(devices, describes(clients=[CLIENTS["hall"]]), away=["hall", "kitchen"])
    with pytest.raises(RunError, match="1 are needed; attic speaks for hall, which it is not$"):
        run(tiny(*OPTIONS), grid, garden)


def test_the_roster_holds_those_whose_registration_is_whole(
    garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (garden / "devices" / "new.pub").write_text("not registered yet")
    (garden / "devices" / "torn.pub").write_text("its id is no number")
    (garden / "devices" / "torn.client").write_text("12\x00")
    roster = read_roster(garden)
    assert {name: device.client for name, device in roster.items()} == CLIENTS
    assert "torn is left out: " in caplog.text
    with pytest.raises(RunError, match="devices is missing: fedhead deploy writes it"):
        read_roster(garden / "elsewhere")


def test_only_the_listed_devices_train_and_by_the_optimizer_that_is_asked_for(
    tiny: Make, devices: list[Path], garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = 'train.clients=["attic","hall"]'
    every = ("train.clients-per-round=0", "train.lr=0.003")
    folder = tiny(*OPTIONS, *every, listed, "train.optimizer=adam")
    summary = run(folder, Garden(devices), garden)
    assert summary["clients"] == 2
    rows = accounts(folder)
    assert {name for name in rows if int(rows[name]["valid"])} == {"attic", "hall"}
    assert "kitchen is not in train.clients: left out" in caplog.text
    plain = run(tiny(*OPTIONS, *every, listed, name="sgd"), Garden(devices), garden)
    assert plain["head_sha256"] != summary["head_sha256"]


def test_a_run_continues_without_a_listed_device_that_was_revoked(
    tiny: Make, devices: list[Path], garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("train.rounds=1", "train.clients-per-round=0", 'train.clients=["attic","hall"]')
    run(folder, Garden(devices), garden)
    change_run(folder, open_run(folder), parse_overrides(["train.rounds=2"]))
    revoke(garden, "attic")
    assert run(folder, Garden(devices), garden)["rounds"] == 2
    assert "train.clients lists 'attic', expected names of the devices here: hall" in caplog.text
    change_run(folder, open_run(folder), parse_overrides(["train.rounds=3"]))
    revoke(garden, "hall")
    with pytest.raises(ConfigError, match="train.clients lists 'attic'"):
        run(folder, Garden(devices), garden)


def test_what_a_deployment_cannot_do_ends_it_before_the_first_round(
    tiny: Make, devices: list[Path], garden: Path, tmp_path: Path
) -> None:
    (tmp_path / "losses_for_devices.py").write_text("def own(logits, labels): return logits.sum()")
    before = [*sys.path]
    try:
        for option, message in (
            ("train.loss=losses_for_devices:own", "train.loss='losses_for_devices:own' is for sim"),
            ('train.clients=["attic","kim"]', "lists 'kim', expected names of the devices here: a"),
            ("train.clients=[0,1]", "lists 0, expected names of the devices here: attic, "),
        ):
            folder = tiny(*OPTIONS, "train.clients-per-round=1", option, name=option[6:10] + "x")
            with pytest.raises(ConfigError, match=message):
                run(folder, Garden(devices), garden)
            assert not (folder / "metrics.jsonl").exists()
            shutil.rmtree(folder)
    finally:
        sys.path[:] = before
