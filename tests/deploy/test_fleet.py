"""One deployment whose devices come, go and are renewed while its server runs."""

from __future__ import annotations

import json
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.delivery.remote import Remote
from common.errors import DeliveryError
from simulations.cli import main
from simulations.deploy.certificates import certificates_in
from simulations.deploy.operator import control

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment

FEDHEAD = [sys.executable, "-m", "simulations"]


class Key:
    """Speaks to the devices' door with a device's key, as its SuperNode does."""

    def __init__(self, deployed: Deployment, private: Path) -> None:
        key: Any = load_ssh_private_key(private.read_bytes(), None)
        self.public = public_key_to_bytes(key.public_key())
        self.client = FleetHttpClient.from_server_address(
            f"localhost:{deployed.port}",
            insecure=False,
            root_certificates=(deployed.folder / "server" / "ca.crt").read_bytes(),
            interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
        )

    def activate(self) -> int:
        request = ActivateNodeRequest(
            public_key=self.public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        return self.client.ActivateNode(request).node_id

    def pull(self, node: int) -> None:
        self.client.PullMessages(PullMessagesRequest(node=Node(node_id=node)))

    def is_refused(self, node: int) -> bool:
        for call, codes in ((lambda: self.pull(node), {401}), (self.activate, {401, 412})):
            with pytest.raises(httpx.HTTPStatusError) as error:
                call()
            if error.value.response.status_code not in codes:
                return False
        return True


def serials(deployed: Deployment, *ports: int) -> set[int]:
    """Of the certificates that are shown at these ports."""
    import cryptography.x509 as x509

    shown = [ssl.get_server_certificate(("localhost", port)) for port in ports]
    return {x509.load_pem_x509_certificate(pem.encode()).serial_number for pem in shown}


def wait(what: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.fixture
def garden(deployment: Callable[..., Deployment]) -> Deployment:
    made = deployment("kitchen", "hall")
    made.start("delivery", [*FEDHEAD, "delivery", "serve", str(made.folder / "server")])
    made.start_server()
    for number, name in enumerate(("kitchen", "hall")):
        made.give_pictures(name, number)
        made.start_device(name)
    return made


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_devices_come_and_go_and_authorities_follow_while_the_server_runs(
    garden: Deployment,
    tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, server = garden.folder, garden.folder / "server"
    ports = garden.port, garden.operator_port, garden.delivery_port

    def fedhead(*words: object, code: int = 0) -> str:
        """In this process: each would import all anew."""
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["fedhead", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        assert (end.value.code or 0) == code, told
        return told.err if code else told.out

    def row(name: str) -> dict[str, Any]:
        found = json.loads(fedhead("fleet", folder, "--json"))["devices"]
        return next(row for row in found if row["name"] == name)

    def is_known(name: str) -> bool:
        found = row(name)
        return found["state"] == "online" and found["trusts-all"] is True

    # A third device comes.
    before = garden.said("server")
    said = fedhead("deploy", folder, "--device", "cellar")
    assert "cellar is registered" in said
    assert "kitchen" not in said
    garden.give_pictures("cellar", 2)
    garden.start_device("cellar")
    for name in ("kitchen", "hall", "cellar"):
        wait(lambda name=name: is_known(name))
    assert garden.said("server").startswith(before)
    assert row("hall")["app"].startswith("fedhead ")

    # One goes, in the middle of a run, which goes on without it.
    run = tiny("train.rounds=3", "train.clients-per-round=3", "round.quorum=0.5", name="run")
    command = [*FEDHEAD, "resume", str(run), "--deployment", str(folder)]
    running = garden.start("run", command)
    wait(lambda: any((run / "checkpoint").glob("[0-9]*")))
    with control(server) as api:
        node = next(known.node_id for known in api.nodes() if known.name == "kitchen")
    key = garden.device("kitchen") / "device.key"
    token = garden.device("kitchen") / "delivery.token"
    old = Key(garden, key)
    old.pull(node)
    said = fedhead("fleet", folder, "revoke", "kitchen")
    assert said.splitlines() == [
        "kitchen fetches no more: its token is revoked",
        "kitchen is let in no more: its SuperNode is refused from now on",
    ]
    assert old.is_refused(node)
    ca = folder / "devices" / "kitchen" / "ca.crt"
    with (
        Remote(f"localhost:{garden.delivery_port}", authority=ca, token=token) as remote,
        pytest.raises(DeliveryError, match="the token is not valid"),
    ):
        remote.latest("model.pt")
    garden.wait_for("kitchen", "Flower's SuperNode ended with")
    assert running.wait(300) == 0, garden.said("run")
    assert (row("kitchen")["state"], row("kitchen")["token"]) == ("revoked", "revoked")
    part = row("hall")["part"]
    assert (part["examples"] > 0, part["valid"]) == (True, 3)

    # Its name comes back with another key, its key does not.
    assert "kitchen is registered" in fedhead("deploy", folder, "--device", "kitchen")
    new = Key(garden, key)
    assert new.public != old.public
    assert new.activate() != node
    assert old.is_refused(node)
    fedhead("fleet", folder, "revoke", "kitchen")

    # The server's certificate is renewed, and then its authority.
    first = serials(garden, *ports)
    fedhead("fleet", folder, "renew", "--days", "20")
    wait(lambda: len(serials(garden, *ports)) == 1 and serials(garden, *ports) != first)
    assert certificates_in(server / "server.crt")[0].serial_number in serials(garden, *ports)
    assert "renew" in fedhead("fleet", folder)
    fedhead("fleet", folder, "renew", "--authority")
    wait(lambda: certificates_in(server / "server.crt")[0].serial_number in serials(garden, *ports))
    said = fedhead("fleet", folder, "renew", "--authority", code=1)
    assert "the old authority is still needed, by cellar (seen " in said
    assert "hall (seen" in said
    assert "kitchen" not in said
    for step in (1, 2):
        for name in ("hall", "cellar"):
            fedhead("delivery", "check-in", garden.device(name))
        if step == 1:
            assert "all devices trust it" in fedhead("fleet", folder)
            fedhead("fleet", folder, "renew", "--authority")
            new_only = certificates_in(server / "ca.crt")
            assert len(new_only) == 1
            wait(
                lambda: all(
                    "SuperNode starts again" in garden.said(name) for name in ("hall", "cellar")
                )
            )
    for name in ("hall", "cellar"):
        assert certificates_in(garden.device(name) / "ca.crt") == new_only
        wait(lambda name=name: garden.said(name).count("SuperNode starts again") == 2)

    # Both are there, and the server's own processes, under the new authority alone.
    run = tiny("train.rounds=1", "train.clients-per-round=2", name="after")
    assert garden.run(run)["valid_updates"] == 2
    print(fedhead("fleet", folder))
    assert 0
