"""The phones of a deployment: their folders, their processes, and what an operator sees of them."""

from __future__ import annotations

import io
import json
import os
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from client.gateway.figures import _FLEET
from client.gateway.place import Place, Settings, read_settings
from client.phone.settings import read_phone
from common.delivery.tokens import device_of, issue_token, token_state
from common.errors import ConfigError, DeliveryError
from simulations.deploy import changes, gateway, phone_files
from simulations.deploy.authority import follow
from simulations.deploy.fleet import lagging, look
from simulations.deploy.fleet_table import fleet_json, fleet_lines
from simulations.deploy.folder import Ports, write_deployment
from simulations.deploy.gateway import Kept, gateway_commands, register_gateway
from simulations.deploy.phones_table import phones_lines, phones_table, rounds_table
from simulations.deploy.settings import ServerSettings
from simulations.deploy.trust import trusted_of

Cli = Callable[..., tuple[int, str, str]]


def quiet(_: str) -> None:
    pass


@pytest.fixture
def town(tmp_path: Path) -> Path:
    folder = tmp_path / "town"
    write_deployment(
        folder, addresses=["fed.example.org"], phones=["anna", "ben"], ports=Ports(gateway=7096)
    )
    return folder


def test_a_phone_gets_a_folder_with_all_that_its_app_needs(town: Path) -> None:
    phone = read_phone(town / "phones" / "anna")
    assert phone.settings.gateway == "fed.example.org:7096"
    assert phone.settings.delivery == "fed.example.org:9095"
    assert device_of(town / "server" / "delivery", phone.token.read_text().strip()) == "anna"
    assert phone.authority.read_bytes() == (town / "server" / "ca.crt").read_bytes()
    assert phone.token.stat().st_mode & 0o777 == 0o600
    # A program in another language reads it line by line: no sections, no lists.
    text = (phone.path / "phone.toml").read_text()
    assert {type(value) for value in tomllib.loads(text).values()} <= {str, int}
    assert "[" not in text
    assert not list((town / "server" / "devices").iterdir())


def test_the_readme_is_for_the_phones_and_devices_that_there_are(town: Path) -> None:
    readme = (town / "README.md").read_text()
    assert readme.count("[server,executorch]'") == 3
    assert "\n## Each device" not in readme
    assert "\n## Each phone" in readme
    write_deployment(town, devices=["hall"])
    assert "\n## Each device (" in (town / "README.md").read_text()
    # Nobody needs it for devices alone.
    write_deployment(town.parent / "farm", addresses=["localhost"], devices=["hall"])
    assert (town.parent / "farm" / "README.md").read_text().count("[server]'") == 3


def test_known_phones_stay_and_a_revoked_one_gets_a_new_token(town: Path) -> None:
    token = town / "phones" / "anna" / "phone.token"
    before = token.read_text()
    write_deployment(town, phones=["anna", "carla"])
    assert token.read_text() == before
    changes.revoke(town / "server", "anna", quiet)
    delivery = town / "server" / "delivery"
    assert device_of(delivery, before.strip()) is None
    write_deployment(town, phones=["anna"])
    assert token.read_text() != before
    assert device_of(delivery, token.read_text().strip()) == "anna"
    token.unlink()
    with pytest.raises(DeliveryError, match="anna has a token already"):
        write_deployment(town, phones=["anna"])


def test_names_that_cannot_be_used_are_told_all_at_once(town: Path) -> None:
    write_deployment(town, devices=["hall"])
    with pytest.raises(ConfigError) as error:
        write_deployment(town, devices=["anna", "gateway"], phones=["hall", "gateway"])
    assert list(error.value.problems) == [
        "device 'gateway': the gateway has this name",
        "phone 'gateway': the gateway has this name",
        "phone 'hall' is a device here",
        "device 'anna' is a phone here",
    ]
    with pytest.raises(
        ConfigError, match=r"phone 'a\.b' must be letters.*phone 'x' is named twice"
    ):
        write_deployment(town, phones=["a.b", "x", "x"])
    with pytest.raises(ConfigError, match="gateway-port=7096, not 7097: .* in each phone.toml"):
        write_deployment(town, ports=Ports(gateway=7097))


def test_many_phones_come_from_a_file(fedhead: Cli, town: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("dora  # of the attic\n\n# nobody\nemil\n")
    code, said, _ = fedhead("deploy", town, "--phones", names, "--phone", "fritz")
    assert code == 0, said
    for name in ("dora", "emil", "fritz"):
        assert token_state(town / "server" / "delivery", name) == "valid"
    code, _, said = fedhead("deploy", town, "--phones", tmp_path / "none.txt")
    assert (code, "none.txt" in said, "cannot be read" in said) == (1, True, True)


def test_phones_trust_what_devices_trust(town: Path, tmp_path: Path) -> None:
    from simulations.deploy.signing_key import new_key

    public = new_key(tmp_path / "signing.key", "a long passphrase")
    write_deployment(town, trust=[tmp_path / "signing.key.pub"])
    assert [path.name for path in trusted_of(town / "phones" / "ben").iterdir()] == [
        f"{public}.pub"
    ]
    write_deployment(town, phones=["carla"])
    assert [path.name for path in trusted_of(town / "phones" / "carla").iterdir()]
    follow(town, 30)
    for place in (town / "server", town / "phones" / "anna"):
        assert (place / "ca.crt").read_text().count("BEGIN CERTIFICATE") == 2


def test_the_gateways_settings_are_the_servers(town: Path) -> None:
    there = ServerSettings()
    assert read_settings(Place(town / "server")).gateway_port == 7096
    (town / "server" / "server.toml").unlink()
    found = read_settings(Place(town / "server"))
    assert found == Settings(
        host=there.host,
        gateway_port=there.gateway_port,
        check_ins_per_second=there.check_ins_per_second,
        max_phone_calls=there.max_phone_calls,
        max_held_calls=there.max_held_calls,
    )


def test_a_gateway_has_a_key_of_its_own_and_a_revoked_one_is_replaced(town: Path) -> None:
    server = town / "server"
    register_gateway(server, quiet)
    public = (server / "devices" / "gateway.pub").read_bytes()
    register_gateway(server, quiet)
    assert (server / "devices" / "gateway.pub").read_bytes() == public
    assert (server / "gateway").stat().st_mode & 0o777 == 0o700
    changes.revoke(server, "gateway", quiet)
    assert not (server / "devices" / "gateway.pub").exists()
    register_gateway(server, quiet)
    assert (server / "devices" / "gateway.pub").read_bytes() != public


def test_a_gateways_processes_find_each_other(town: Path, tmp_path: Path) -> None:
    server = town / "server"
    register_gateway(server, quiet)
    commands = gateway_commands(server, tmp_path)
    assert commands["service"][3:] == [
        "client.gateway.service",
        str(server),
        str(tmp_path / "phones"),
    ]
    node = commands["SuperNode"]
    assert node[node.index("--node-config") + 1] == f'gateway="{tmp_path / "phones"}"'
    assert node[node.index("--superlink") + 1] == "127.0.0.1:9092"
    assert commands["bridge"][3:] == [
        "client.fork_server", str(tmp_path / "node"), "--app", "client.gateway.bridge",
    ]  # fmt: skip
    assert node[4] == str(tmp_path / "node")


def test_a_process_that_ends_is_started_again_each_time_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "_FIRST_PAUSE_SECONDS", 0.05)
    said: list[str] = []
    began = tmp_path / "began"
    code = f"import sys; open({str(began)!r}, 'a').write('x'); sys.exit(3)"
    with Kept("stand-in", [sys.executable, "-c", code], os.environ, said.append) as kept:
        deadline = time.monotonic() + 60
        while not began.exists() or began.stat().st_size < 3:
            assert time.monotonic() < deadline
            kept.look()
            time.sleep(0.01)
    ends = [line for line in said if not line.startswith("$")]
    assert ends[:2] == [
        "the stand-in ended with 3. Again in 0.05 s.", "the stand-in ended with 3. Again in 0.1 s.",
    ]  # fmt: skip


def test_a_process_ends_with_its_keeper(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    code = f"import os, time; open({str(alive)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with Kept("stand-in", [sys.executable, "-c", code], os.environ, quiet) as kept:
        deadline = time.monotonic() + 60
        while not (alive.exists() and alive.read_text()):
            assert time.monotonic() < deadline
            kept.look()
            time.sleep(0.01)
        process = int(alive.read_text())
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


# What an operator sees.


def figures(town: Path, names: list[str], **changed: Any) -> None:
    """A gateway's figures, in which phone i lost i of 50 tasks."""
    phones = {
        name: {
            "last_seen": 1.8e9, "ready": i % 2 == 0, "formats": ["lite"], "abilities": ["sgd"],
            "problem": "unsigned-backbone: no key" if i == 3 else "",
            "holdings": {}, "counts": {"tasks": 50, "accepted": 50 - i, "late": i},
        }
        for i, name in enumerate(names)
    }  # fmt: skip
    row = {
        "run": "r", "name": "pets", "round": 7, "kind": "sgd", "asked": 130, "accepted": 100,
        "late": 20, "declined": 4, "failed": 1, "silent": 3, "refused": {"above-norm": 2},
        "seconds": {"waiting": [3.0, 9.5], "fetching": [0.25, 1.0], "training": [2.0, 8.0],
                    "uploading": []},
    }  # fmt: skip
    content = {
        "time": 1.8e9, "counters": {"accepted": 100, "wrong-token": 2}, "rounds": [row],
        "phones": phones, "checked_in_lately": len(names), "window": [250.0, 750.0], **changed,
    }  # fmt: skip
    path = town / "server" / "gateway" / "state" / "fleet.json"
    path.parent.mkdir(parents=True)
    _FLEET.write(path, content)


def shown(town: Path) -> str:
    view = look(town / "server").phones
    assert view is not None
    console = Console(width=80, record=True, file=io.StringIO(), markup=False)
    for table in (phones_table(view), rounds_table(view)):
        if table:
            console.print(table)
    for line in phones_lines(view):
        console.print(line, soft_wrap=False)
    return console.export_text()


def test_an_operator_sees_phones_rounds_and_phases(town: Path) -> None:
    write_deployment(town, devices=["hall"])
    register_gateway(town / "server", quiet)
    figures(town, ["anna", "ben"])
    text = shown(town)
    assert max(map(len, text.splitlines())) <= 80
    table = {row.split()[0]: row.split() for row in text.splitlines() if row}
    assert table["anna"][:2] == ["anna", "ready"]
    assert table["ben"][-7:] == ["50", "49", "1", "0", "0", "0", "0"]
    assert table["pets"][1:4] == ["7", "130", "100"]
    assert "of 130 tasks in 1 rounds 76.9% were accepted" in text
    assert "waiting 3 9.5, fetching 0.25 1, training 2 8" in text
    assert "a phone comes again within 250 to 750 s" in text
    assert "no gateway runs here" in text
    fleet = look(town / "server")
    assert [row.name for row in fleet.devices] == ["gateway", "hall"]
    told = json.loads(json.dumps(fleet_json(fleet)))["phones"]
    assert told["rounds"][0]["dropouts"] == {
        "late": 20, "declined": 4, "failed": 1, "refused": 2, "silent": 3,
    }  # fmt: skip
    assert told["counters"]["wrong-token"] == 2
    assert told["phones"][1]["dropouts"] == {"late": 1}


def test_of_many_phones_the_worst_are_shown(town: Path) -> None:
    names = [f"phone{i:02d}" for i in range(48)]
    write_deployment(town, phones=names)
    figures(town, names)
    text = shown(town)
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("phone")]
    assert rows[1:21] == [f"phone{i}" for i in range(47, 27, -1)]
    assert "phones: 50 (24 not ready, 23 ready, 2 never seen, 1 problem)" not in text
    assert "1 say: unsigned-backbone" in text
    assert "shown are the 20 that lost the most tasks or have a problem" in text
    assert max(map(len, text.splitlines())) <= 80


def test_damaged_figures_are_left_out(town: Path, caplog: pytest.LogCaptureFixture) -> None:
    figures(town, ["anna"])
    path = town / "server" / "gateway" / "state" / "fleet.json"
    path.write_bytes(path.read_bytes().replace(b"pets", b"pest"))
    assert "never seen" in shown(town)
    assert "fleet.json" in caplog.text


def test_without_a_gateway_an_apps_token_is_no_phone(town: Path, tmp_path: Path) -> None:
    issue_token(town / "server" / "delivery", "app", tmp_path / "app.token")
    fleet = look(town / "server")
    assert [row.name for row in fleet.devices] == ["app"]
    register_gateway(town / "server", quiet)
    view = look(town / "server").phones
    assert view is not None
    assert [row.name for row in view.rows] == ["anna", "app", "ben"]


def test_phones_must_learn_a_new_authority_too_and_the_gateway_reads_it(town: Path) -> None:
    register_gateway(town / "server", quiet)
    assert [*lagging(town / "server")] == ["anna", "ben"]
    write_deployment(town, phones=[f"p{i}" for i in range(40)])
    follow(town, 30)
    (line,) = [line for line in fleet_lines(look(town / "server")) if "new authority" in line]
    assert line.endswith(" and 22 more")


def test_a_phone_is_revoked_by_its_name(fedhead: Cli, town: Path) -> None:
    code, said, _ = fedhead("fleet", town, "revoke", "anna")
    assert (code, said) == (0, "anna is shut out: its token is revoked\n")
    code, _, said = fedhead("fleet", town, "revoke", "zoe")
    assert (code, "no device or phone is called zoe; there are: anna, ben" in said) == (1, True)


# Files for phones.


def test_a_deployment_without_phones_or_gateway_gets_no_files(town: Path) -> None:
    none: Any = None
    assert phone_files.phone_files(none, town / "server", None, none) is None
    changes.revoke(town / "server", "anna", quiet)
    changes.revoke(town / "server", "ben", quiet)
    register_gateway(town / "server", quiet)
    assert phone_files.phone_files(none, town / "server", None, none) is None
