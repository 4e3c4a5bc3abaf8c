"""What an operator sees and changes of a deployment, with its server down or stood in for."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.delivery.tokens import device_of, issue_token, token_states
from common.errors import RunError
from common.types import Head, IntArray
from server.delivery.checkins import CheckIn, save_check_in
from server.record.checkpoint import save_checkpoint
from server.record.events import EVENTS
from server.round.roster import CLIENT, read_roster
from simulations.deploy import changes, device_keys, fleet, operator
from simulations.deploy.device_keys import admitted_keys, key_id, put_out, read_key, revoked_keys
from simulations.deploy.folder import Ports, write_deployment
from simulations.deploy.last_run import remember_run
from simulations.deploy.operator import Node, register_folder
from simulations.deploy.processes import alone
from simulations.deploy.settings import read_server

Fedhead = Callable[..., tuple[int, str, str]]
NOW = datetime.now(UTC)


def quiet(_: str) -> None:
    """Nobody reads what it says."""


class FakeSuperLink:
    """Flower's rules: a key is taken once, and never again when it was put out."""

    def __init__(self) -> None:
        self.known: dict[bytes, Node] = {}

    def nodes(self) -> list[Node]:
        return [*self.known.values()]

    def register(self, name: str, public_key: bytes) -> int:
        if public_key in self.known:
            raise RunError("Public key already in use")
        self.put(name, public_key, "registered")
        return self.known[public_key].node_id

    def put(self, name: str, key: bytes, status: str, **values: Any) -> None:
        times = {"activated": None, "deactivated": None, "unregistered": None}
        node_id = self.known[key].node_id if key in self.known else 2**63 + len(self.known)
        self.known[key] = Node(name, node_id, key, status, **{**times, **values})

    def unregister(self, node_id: int) -> None:
        (key,) = (k for k, node in self.known.items() if node.node_id == node_id)
        self.put(self.known[key].name, key, "unregistered", unregistered=NOW)


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    folder = tmp_path / "garden"
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    write_deployment(
        folder,
        addresses=["fed.example.org"],
        devices=["kitchen", "hall", "cellar"],
        ports=Ports(operators=port),
    )
    return folder


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> FakeSuperLink:
    """A SuperLink that runs."""
    there = FakeSuperLink()

    @contextmanager
    def control(_: Path) -> Iterator[FakeSuperLink]:
        yield there

    for module in (changes, fleet):
        monkeypatch.setattr(module, "control", control)
        monkeypatch.setattr(module, "is_served", lambda _: True)
    return there


@dataclass(frozen=True, eq=False)
class State:
    accounts: IntArray


@pytest.fixture
def lived_in(garden: Path, superlink: FakeSuperLink, tmp_path: Path) -> Path:
    """A deployment that has had a run, with devices in all states."""
    server = garden / "server"
    changes.let_in(server, quiet)
    keys = admitted_keys(server)
    superlink.put("kitchen", keys["kitchen"], "online", activated=NOW - timedelta(hours=2))
    superlink.put("hall", keys["hall"], "offline", deactivated=NOW - timedelta(days=3))
    for name, device in (("attic", "attic"), ("a" * 32, "long")):
        write_deployment(garden, devices=[name])
        if device == "attic":
            changes.let_in(server, quiet)
            changes.revoke(server, name, quiet)
    issue_token(server / "delivery", "phone", tmp_path / "phone.token")
    save_check_in(
        server / "delivery", "kitchen", CheckIn("fedhead 0.1.0", "0" * 64, {"model_1.pt": 3})
    )
    run = tmp_path / "run"
    run.mkdir()
    clients = {
        n: device.client for n, device in read_roster(server).items() if n in ("kitchen", "hall")
    }
    seen = int(datetime(2026, 11, 20, 10, tzinfo=UTC).timestamp() * 1000)
    rows = [
        [clients["kitchen"], 9, 0, 1, 0, 0, 1, 1, 1, seen],
        [clients["hall"], 5, 1, 2, 1, 1, 1, 1, 1, 0],
    ]
    head, state = Head.zeros(2, 3), State(np.array(sorted(rows), np.int64))
    save_checkpoint(run / "checkpoint", round_number=1, head=head, state=state, counters={}, keep=1)
    events = [
        {"event": "joined", "client": clients["kitchen"], "num_examples": 54},
        {"event": "joined", "client": clients["hall"], "num_examples": 1234},
        {"event": "rejected", "client": clients["hall"], "reason": "not finite"},
        {"event": "declined", "client": clients["hall"], "reason": "on battery"},
        {"event": "refused", "node": clients["kitchen"] + 2**63, "reason": "answers twice"},
    ]
    at = {"time": "2026-11-20T10:02:00.000Z"}
    text = "".join(EVENTS.line(at | event) + "\n" for event in events)
    (run / "events.jsonl").write_text(text + '{"event": "jo')
    remember_run(server, run)
    return garden


def test_the_fleet_is_a_table_of_80_columns(fedhead: Fedhead, lived_in: Path) -> None:
    code, out, err = fedhead("fleet", lived_in)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in out
    when = f"{datetime(2026, 11, 20, 10, 2, tzinfo=UTC).astimezone():%d %b %H:%M}"
    end = lines.index(f"hall last failed on {when}: on battery")
    table = {line.split()[0]: line.split() for line in lines[:end]}
    long = lines[1].split()
    assert long[0] == "a" * len(long[0])
    assert long[2:] == ["waiting", "never", "-", "-", "-", "-", "valid"]
    since = (NOW - timedelta(hours=2)).astimezone()
    today = since.date() == NOW.astimezone().date()
    shown = [f"{since:%H:%M}"] if today else f"{since:%d %b}".split()
    assert table["kitchen"][2:] == ["online", *shown, "0.1.0", "3", "54", "1", "valid"]
    day = f"{(NOW - timedelta(days=3)).astimezone():%d %b}".split()
    assert table["hall"][2:] == ["offline", *day, "-", "-", "1234", "4", "valid"]
    assert table["cellar"][2:] == ["registered", "never", "-", "-", "-", "-", "valid"]
    assert table["attic"][2:] == ["revoked", table["attic"][3], "-", "-", "-", "-", "revoked"]
    assert table["phone"] == ["phone", "-", "token", "only", "-", "-", "-", "-", "-", "valid"]
    assert f"kitchen last failed on {when}: answers twice" in lines
    assert "unsigned: devices take any file from this server" in out


def test_programs_get_all_of_it_as_json(fedhead: Fedhead, lived_in: Path) -> None:
    code, out, _ = fedhead("fleet", lived_in / "server", "--json")
    assert code == 0
    found = json.loads(out)
    rows = {row["name"]: row for row in found["devices"]}
    kitchen = rows["kitchen"]
    key = admitted_keys(lived_in / "server")["kitchen"]
    assert (kitchen["key"], kitchen["state"]) == (key_id(key), "online")
    assert kitchen["in-use"] == {"model_1.pt": 3}
    assert kitchen["trusts-all"] is False
    assert kitchen["since"] == (NOW - timedelta(hours=2)).isoformat(timespec="seconds")
    part = {"examples": 1234, "valid": 5, "failed": 2, "rejected": 2, "reason": "on battery"}
    part["reason-time"] = "2026-11-20T10:02:00+00:00"
    assert {**rows["hall"]["last-run"], "seen": None} == {**part, "seen": None}
    assert found["superlink"] == {"asked": True, "problem": None}
    assert [door["name"] for door in found["doors"]] == ["devices", "operators", "models"]
    assert found["doors"][1]["is_open"] is False
    assert rows["cellar"]["seen"] is None


def test_a_server_that_is_down_is_said_and_its_files_are_told(
    fedhead: Fedhead, garden: Path
) -> None:
    CLIENT.write(garden / "server" / "devices" / "hall.client", {"client": 7})
    code, out, _ = fedhead("fleet", garden)
    assert code == 0
    assert "fedhead serve does not run" in out
    states = {line.split()[0]: line.split()[2] for line in out.splitlines()[1:4]}
    assert states == {"cellar": "waiting", "hall": "registered", "kitchen": "waiting"}
    code, _, err = fedhead("fleet", garden / "devices")
    assert code == 1
    devices = garden / "devices"
    problem = "is not a folder of fedhead deploy, and not its server's folder"
    assert err == f"fedhead: {devices} {problem}\n"


def test_another_program_at_the_operators_port_is_no_server(fedhead: Fedhead, garden: Path) -> None:
    server = garden / "server"
    with socket.create_server(("127.0.0.1", read_server(server).operator_port)):
        code, out, err = fedhead("deploy", garden, "--device", "attic")
        assert (code, err) == (0, "")
        assert f"fedhead serve {server} lets them in when it starts" in out
        with alone(server, "fedhead serve"):
            assert fleet.is_served(server)
    with alone(server, "fedhead serve"):  # it starts, and reads the folder later
        assert not fleet.is_served(server)


def test_a_damaged_file_costs_no_more_than_what_it_says(
    fedhead: Fedhead, lived_in: Path, tmp_path: Path
) -> None:
    (lived_in / "server" / "delivery" / "check-ins" / "hall.json").touch()  # power was lost
    with (tmp_path / "run" / "events.jsonl").open("ab") as log:
        log.write(b'\n7\n{"node": "\xff"}\n{"event": "joined", "client": 1}\n')
    code, out, _ = fedhead("fleet", lived_in, "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["devices"]}
    assert rows["hall"]["app"] is None
    assert (rows["kitchen"]["app"], rows["hall"]["last-run"]["examples"]) == ("fedhead 0.1.0", 1234)
    logging.getLogger("fedhead").handlers.clear()


def test_a_damaged_account_of_devices_is_named_in_a_line(
    fedhead: Fedhead, lived_in: Path, tmp_path: Path
) -> None:
    (tmp_path / "run" / "checkpoint" / "000001" / "state.safetensors").write_bytes(b"")
    code, _, err = fedhead("fleet", lived_in)
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith(f"fedhead: {tmp_path / 'run' / 'checkpoint'}: all 1 checkpoints are")


def test_a_revoked_device_is_out_at_both_doors_and_its_key_never_returns(
    fedhead: Fedhead, garden: Path, superlink: FakeSuperLink
) -> None:
    server, device = garden / "server", garden / "devices" / "kitchen"
    changes.let_in(server, quiet)
    public = (server / "devices" / "kitchen.pub").read_bytes()
    pem = read_key(server / "devices" / "kitchen.pub")
    token = (device / "delivery.token").read_text().strip()
    code, out, _ = fedhead("fleet", garden, "revoke", "kitchen")
    assert code == 0
    assert superlink.known[pem].status == "unregistered"
    assert device_of(server / "delivery", token) is None
    # Not by a file that is put back, not under another name, not by a new SuperLink.
    (server / "devices" / "kitchen.pub").write_bytes(public)
    (server / "devices" / "parlour.pub").write_bytes(public)
    for there in (superlink, FakeSuperLink()):
        register_folder(there, server, quiet)  # type: ignore[arg-type]
        assert not [n for n in there.nodes() if n.public_key == pem and n.status == "registered"]
    # A second time changes nothing.
    code, _, _ = fedhead("fleet", garden, "revoke", "kitchen")
    assert code == 0
    # Its name gets a new key and a new token.
    (server / "devices" / "parlour.pub").unlink()
    code, out, _ = fedhead("deploy", garden, "--device", "kitchen")
    assert code == 0
    assert "kitchen is registered" in out
    assert read_key(server / "devices" / "kitchen.pub") != pem
    new = (device / "delivery.token").read_text().strip()
    assert device_of(server / "delivery", new) == "kitchen"
    assert device_of(server / "delivery", token) is None


def test_a_device_that_was_revoked_twice_shows_its_newest_key_and_the_part_of_that(
    lived_in: Path, superlink: FakeSuperLink
) -> None:
    server = lived_in / "server"
    first = admitted_keys(server)["hall"]
    changes.revoke(server, "hall", quiet)
    write_deployment(lived_in, devices=["hall"])
    changes.let_in(server, quiet)
    second = admitted_keys(server)["hall"]
    changes.revoke(server, "hall", quiet)
    # Whichever is the newest, so that it is not by the order of their names.
    for hours, key, examples in ((1, first, 1234), (2, second, None)):
        moment = NOW + timedelta(hours=hours)
        file = server / "revoked" / f"hall.{key_id(key)}.pub"
        os.utime(file, (moment.timestamp(), moment.timestamp()))
        (row,) = (row for row in fleet.look(server).devices if row.name == "hall")
        assert (row.key, row.state) == (key_id(key), "revoked")
        assert row.since is not None
        assert abs(row.since - moment) < timedelta(seconds=1)
        assert (row.last_run.examples if row.last_run else None) == examples


def test_a_device_that_could_not_join_the_run_shows_why(
    fedhead: Fedhead, lived_in: Path, tmp_path: Path
) -> None:
    node = read_roster(lived_in / "server")["cellar"].client + 2**63
    event = {"event": "node", "node": node, "reason": "its images cannot be used"}
    with (tmp_path / "run" / "events.jsonl").open("a") as log:
        log.write("\n" + EVENTS.line({"time": "2026-11-20T10:02:00.000Z"} | event) + "\n")
    assert ": its images cannot be used" in fedhead("fleet", lived_in)[1]
    rows = {
        row["name"]: row for row in json.loads(fedhead("fleet", lived_in, "--json")[1])["devices"]
    }
    last = rows["cellar"]["last-run"]
    assert (last["examples"], last["reason"]) == (None, "its images cannot be used")


def test_keys_with_one_short_id_are_two_keys(
    garden: Path, superlink: FakeSuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = garden / "server"
    for module in (device_keys, fleet):
        monkeypatch.setattr(module, "key_id", lambda _: "c0111de5")
    changes.let_in(server, quiet)
    changes.revoke(server, "kitchen", quiet)
    states = {node.name: node.status for node in superlink.nodes()}
    assert states == {"cellar": "registered", "hall": "registered", "kitchen": "unregistered"}
    rows = {row.name: row.state for row in fleet.look(server).devices}
    assert rows == {"cellar": "registered", "hall": "registered", "kitchen": "revoked"}


def test_a_phone_that_can_only_fetch_is_revoked_by_the_same_command(
    fedhead: Fedhead, garden: Path, tmp_path: Path
) -> None:
    delivery = garden / "server" / "delivery"
    issue_token(delivery, "phone", tmp_path / "phone.token")
    for said in (
        "phone is shut out: its token is revoked\n",
        "phone was revoked before\n",
    ):
        assert fedhead("fleet", garden, "revoke", "phone")[:2] == (0, said)
        assert device_of(delivery, (tmp_path / "phone.token").read_text().strip()) is None


def test_revoking_names_those_that_are_there(fedhead: Fedhead, garden: Path) -> None:
    code, _, err = fedhead("fleet", garden, "revoke", "attic")
    assert code == 1
    assert err == "fedhead: no device or phone is called attic; there are: cellar, hall, kitchen\n"


@pytest.mark.parametrize("number", range(6))
def test_a_revocation_that_is_killed_is_completed_by_the_next(
    garden: Path, superlink: FakeSuperLink, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    server = garden / "server"
    changes.let_in(server, quiet)
    pem = read_key(server / "devices" / "kitchen.pub")
    steps = ["put_out", "revoke_token", "forget", "_unregister"]

    class Killed(BaseException):
        pass

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        for name in steps[number:][:1]:
            patch.setattr(changes, name, dies)
        if number < len(steps):
            with pytest.raises(Killed):
                changes.revoke(server, "kitchen", quiet)
    changes.revoke(server, "kitchen", quiet)
    assert superlink.known[pem].status == "unregistered"
    assert "kitchen" not in admitted_keys(server)
    assert token_states(server / "delivery")["kitchen"] == "revoked"


def test_a_key_that_is_taken_out_of_the_folder_is_put_out_when_the_server_starts(
    garden: Path, superlink: FakeSuperLink
) -> None:
    server = garden / "server"
    changes.let_in(server, quiet)
    pem = read_key(server / "devices" / "kitchen.pub")
    (server / "devices" / "kitchen.pub").unlink()
    said: list[str] = []
    register_folder(superlink, server, said.append)  # type: ignore[arg-type]
    assert said == [f"kitchen is shut out: its key is no longer in {server / 'devices'}"]
    assert superlink.known[pem].status == "unregistered"
    assert len(revoked_keys(server)) == 1
    assert not (server / "devices" / "kitchen.client").exists()
    # deploy used to refuse it a new key.
    write_deployment(garden, devices=["kitchen"])
    assert read_key(server / "devices" / "kitchen.pub") != pem
    changes.let_in(server, said.append)
    assert said[-1] == "kitchen is registered"


def test_a_device_that_is_revoked_while_a_server_starts_stays_out(
    garden: Path, superlink: FakeSuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = garden / "server"
    pem = read_key(server / "devices" / "kitchen.pub")
    monkeypatch.setattr(changes, "is_served", lambda _: False)
    register = superlink.register

    def late(name: str, key: bytes) -> int:
        if key == pem:
            changes.revoke(server, "kitchen", quiet)  # its files have been read by now
        return register(name, key)

    monkeypatch.setattr(superlink, "register", late)
    register_folder(superlink, server, quiet)  # type: ignore[arg-type]
    assert superlink.known[pem].status == "unregistered"


def test_words_that_flower_was_given_as_a_name_lead_to_no_other_folder(garden: Path) -> None:
    server = garden / "server"
    put_out(server, "../../x", admitted_keys(server)["hall"])
    assert [path.parent for path in (garden.parent).rglob("*.pub") if "x" in path.stem] == [
        server / "revoked"
    ]


def test_a_device_that_another_process_lets_in_meanwhile_stays_in(
    garden: Path, superlink: FakeSuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process registers a device between two looks of this one."""
    server = garden / "server"
    changes.let_in(server, quiet)
    listed = operator.admitted_keys

    def late(folder: Path) -> dict[str, bytes]:
        keys = listed(folder)
        if "attic" not in keys:
            write_deployment(garden, devices=["attic"])
            new = listed(folder)
            superlink.register("attic", new["attic"])
        return keys

    monkeypatch.setattr(operator, "admitted_keys", late)
    changes.let_in(server, quiet)
    changes.let_in(server, quiet)
    assert {node.status for node in superlink.nodes()} == {"registered"}
    assert len(superlink.nodes()) == 4


def test_renewing_says_what_comes_next_and_who_is_not_ready(fedhead: Fedhead, garden: Path) -> None:
    before = (garden / "server" / "server.crt").read_bytes()
    code, out, _ = fedhead("fleet", garden, "renew", "--days", "20")
    assert code == 0
    assert (garden / "server" / "server.crt").read_bytes() != before
    _, out, _ = fedhead("fleet", garden)
    assert "warning: the server's certificate ends on" in " ".join(out.split())
    assert fedhead("fleet", garden, "renew", "--authority")[0] == 0
    code, _, err = fedhead("fleet", garden, "renew", "--authority")
    assert code == 1
    assert "still needed by cellar (never seen), hall (never seen), kitchen (never seen)" in err
    assert err.count("\n") == 1
    changes.revoke(garden / "server", "hall", quiet)
    _, _, err = fedhead("fleet", garden, "renew", "--authority")
    assert "hall" not in err
    assert fedhead("fleet", garden, "renew", "--authority", "--anyway")[0] == 0
    logging.getLogger("fedhead").handlers.clear()
