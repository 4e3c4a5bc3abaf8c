"""Runs whose clients are sent the head's changes: simulated ones, and real devices."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from client.app import app as client_app
from common.experiment import run_config
from common.messages import TrainReply, payload_bytes
from server.app import run_experiment
from simulations.engines.in_process import InProcessGrid
from simulations.run import read_summary, run_in_process

pytestmark = pytest.mark.wide

Make = Callable[..., Path]
CutAfter = Callable[[int], AbstractContextManager[None]]
Fedhead = Callable[..., tuple[int, str, str]]
Grid = type[InProcessGrid]
Meddle = Callable[[Message, Path, int], object]

DRIVE = "codec.down=drive"
WHOLE = 4 * 10 * 673  # bytes of this backbone's head


class Devices:
    """Three phones, and all messages to them that ask them to train."""

    def __init__(self, grid: Grid, meddle: Meddle = lambda *_: None) -> None:
        self._grid, self._meddle = grid, meddle
        self.sent: list[tuple[int, int, int, bool]] = []  # round, client, bytes, whether whole
        self.kinds: list[str] = []  # of all messages

    def __call__(self, message: Message, context: Context) -> Message:
        self.kinds.append(message.metadata.message_type)
        if message.metadata.message_type == "train":
            config, shared = message.content["config"], message.content["shared"]
            number, size = int(config["round-number"]), payload_bytes(message.content)  # type: ignore[arg-type, index]
            client = int(str(context.node_config["client-id"]))
            self.sent.append((number, client, size, "head" in shared))  # type: ignore[operator]
            self._meddle(message, Path(str(context.node_config["state"])), number)
        return client_app(message, context)

    def run(self, folder: Path) -> dict[str, Any]:
        values = {"experiment": str(folder / "config.toml"), "overrides": ""}
        app: Any = self
        run_experiment(self._grid(app, 1, values), run_config(values))
        return dict(read_summary(folder))

    @property
    def wholes(self) -> list[tuple[int, int]]:
        return [(number, client) for number, client, _, whole in self.sent if whole]


def known_head(state: Path, message: Message) -> Path:
    """The file in which a device keeps its last known head."""
    run_id = str(message.content["config"]["run-id"])  # type: ignore[index]
    return state / "clients" / run_id / "known-head.safetensors"


EVERYONE = ("train.rounds=4", "train.clients-per-round=0", DRIVE)


@pytest.mark.slow
def test_simulated_clients_learn_as_much_of_fewer_bytes(quick: Make) -> None:
    plain = run_in_process(quick("train.rounds=6", name="plain"))
    found = {}
    for trainer, nodes in (("cohort", 1), ("cohort", 8), ("reference", 3)):
        options = (f"simulation.trainer={trainer}", f"simulation.nodes={nodes}")
        folder = quick("train.rounds=6", DRIVE, *options, name=f"{trainer}{nodes}")
        found[trainer, nodes] = run_in_process(folder)
    for summary in found.values():
        assert summary["uplink_bytes"] == plain["uplink_bytes"]
        assert summary["downlink_bytes"] < plain["downlink_bytes"] / 4
        assert summary["accuracy"] == pytest.approx(plain["accuracy"], abs=0.03)
        # As if each client were a device of its own, however many a node hosts.
        assert summary["downlink_bytes"] == found["cohort", 1]["downlink_bytes"]
    assert found["cohort", 1]["head_sha256"] != plain["head_sha256"]


def test_no_codec_is_the_head_as_it_was(quick: Make) -> None:
    unsaid, none = (
        run_in_process(quick("train.rounds=2", *more, name=name))
        for name, more in (("unsaid", ()), ("none", ("codec.down=none",)))
    )
    for key in ("head_sha256", "downlink_bytes", "uplink_bytes"):
        assert unsaid[key] == none[key]
    assert none["downlink_bytes"] > 2 * 4 * WHOLE


def test_personal_heads_are_made_of_the_exact_head(quick: Make) -> None:
    options = ("strategy.name=ditto", "train.rounds=2", "train.clients-per-round=4")
    whole = run_in_process(quick(*options, name="whole"))
    changes = run_in_process(quick(*options, DRIVE, name="changes"))
    for key in ("head_sha256", "accuracy", "personal_accuracy_mean"):
        assert changes[key] == whole[key]
    assert changes["downlink_bytes"] < whole["downlink_bytes"] / 4


@pytest.mark.parametrize("strategy", ["fedavg", pytest.param("scaffold", marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_same_bytes(
    quick: Make, fedhead: Fedhead, strategy: str
) -> None:
    options = (f"strategy.name={strategy}", DRIVE)
    straight = run_in_process(quick(*options, "train.rounds=5", name="straight"))
    folder = quick(*options, "train.rounds=3", name="in-two")
    run_in_process(folder)
    code, out, err = fedhead("resume", folder, "--set", "train.rounds=5", "--json")
    assert code == 0, err
    for key in ("head_sha256", "downlink_bytes", "uplink_bytes"):
        assert json.loads(out)[key] == straight[key]


@pytest.mark.slow
def test_devices_are_counted_what_they_are_sent(quick: Make, device_grid: Grid) -> None:
    folder = quick("train.rounds=6", "train.clients-per-round=2", "round.quorum=1.0", DRIVE)
    devices = Devices(device_grid)
    devices.run(folder)
    assert not devices.wholes  # their first head is zero, and the changes of six rounds are few
    rows = csv.DictReader((folder / "devices.csv").read_text().splitlines())
    counted = {int(row["client"]): int(row["downlink_bytes"]) for row in rows}
    missed = set()
    for client in (101, 102, 103):
        mine = [(number, size) for number, who, size, _ in devices.sent if who == client]
        # A client's own number may take a byte more than that of the measured message.
        assert counted[client] == pytest.approx(sum(size for _, size in mine), abs=len(mine))
        missed |= {b - a for (a, _), (b, _) in pairwise(mine)}
    assert missed > {1}  # some have missed rounds


def test_a_devices_projection_is_counted_with_its_backbone_and_not_again(
    quick: Make, device_grid: Grid
) -> None:
    folder = quick("train.rounds=1", "train.clients-per-round=0", "backbone.projection=20")
    devices = Devices(device_grid)
    summary = devices.run(folder)
    payload = len((folder / "backbone.safetensors").read_bytes())
    assert summary["backbone_bytes_sent"] == 3 * payload
    sizes = [size for _, _, size, _ in devices.sent]
    assert summary["downlink_bytes"] == pytest.approx(sum(sizes), abs=len(sizes))


def test_a_lost_spoilt_or_foreign_head_costs_a_message_and_not_the_round(
    quick: Make, device_grid: Grid
) -> None:
    def meddle(message: Message, state: Path, number: int) -> None:
        shared, phone = message.content["shared"], state.parent.name
        if "changes" not in shared:  # type: ignore[operator]
            return
        if (phone, number) == ("phone0", 3):
            known_head(state, message).unlink()
        if (phone, number) == ("phone1", 3):
            shared["changes"] = [shared["changes"][-1][:-1]]  # type: ignore[index]
        if (phone, number) == ("phone2", 4):
            known_head(state, message).write_bytes(b"half of it")
            shared["head-id"] = "0" * 16  # type: ignore[index]

    calm, troubled = Devices(device_grid), Devices(device_grid, meddle)
    expected = calm.run(quick(*EVERYONE, name="calm"))
    got = troubled.run(quick(*EVERYONE, name="troubled"))
    assert not calm.wholes
    assert troubled.wholes == [(3, 101), (3, 102), (4, 103)]
    assert got["head_sha256"] == expected["head_sha256"]
    assert (got["valid_updates"], got["failed_updates"]) == (12, 0)
    more = got["downlink_bytes"] - expected["downlink_bytes"]
    assert more == pytest.approx(3 * WHOLE, rel=0.05)
    # Who lacks a head is not asked about the backbone.
    assert "query.backbone" not in troubled.kinds[troubled.kinds.index("train") :]


@pytest.mark.slow
def test_a_device_that_never_finds_the_head_loses_its_round_alone(
    quick: Make, device_grid: Grid
) -> None:
    class Obstinate(Devices):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = super().__call__(message, context)
            is_first = context.node_config["client-id"] == 101
            if message.metadata.message_type == "train" and is_first:
                fingerprint = str(message.content["config"]["fingerprint"])  # type: ignore[index]
                content = TrainReply(fingerprint, missing_head=True).write()
                return Message(content, reply_to=message)
            return reply

    devices = Obstinate(device_grid)
    summary = devices.run(quick("train.rounds=2", *EVERYONE[1:]))
    assert (summary["valid_updates"], summary["failed_updates"]) == (4, 0)
    assert summary["rejected_updates"] == 2  # as it was sent the whole one at last
    assert devices.wholes == [(1, 101), (2, 101)]  # once in a round


@pytest.mark.slow
def test_a_server_that_lost_its_last_rounds_and_its_devices_agree_again(
    quick: Make, device_grid: Grid, cut_after: CutAfter
) -> None:
    expected = Devices(device_grid).run(quick(*EVERYONE, name="calm"))
    folder, devices = quick(*EVERYONE, name="cut"), Devices(device_grid)
    with cut_after(3), pytest.raises(KeyboardInterrupt):
        devices.run(folder)
    for lost in (2, 3):
        shutil.rmtree(folder / "checkpoint" / f"{lost:06d}")
    devices.sent.clear()
    got = devices.run(folder)
    # In round 2 they are ahead of the server and cannot go back.
    assert devices.wholes == [(2, 101), (2, 102), (2, 103)]
    assert got["head_sha256"] == expected["head_sha256"]
