"""One deployment whose devices come, go and are renewed while its server runs."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.delivery.remote import Remote
from common.errors import DeliveryError
from fedhead.cli.main import main
from simulations.deploy.certificates import certificates_in
from simulations.deploy.operator import control

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment

FEDHEAD = [sys.executable, "-m", "fedhead"]


class Key:
    """Speaks to the devices' door with a device's key, as its SuperNode does."""

    def __init__(self, deployed: Deployment, private: Path, stack: ExitStack) -> None:
        key: Any = load_ssh_private_key(private.read_bytes(), None)
        self.public = public_key_to_bytes(key.public_key())
        self.client = stack.enter_context(
            FleetHttpClient.from_server_address(
                f"localhost:{deployed.port}",
                insecure=False,
                root_certificates=(deployed.folder / "server" / "ca.crt").read_bytes(),
                interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
            )
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


def serials(*ports: int) -> set[int]:
    """Of the certificates that are shown at these ports."""
    shown = [ssl.get_server_certificate(("localhost", port)) for port in ports]
    return {x509.load_pem_x509_certificate(pem.encode()).serial_number for pem in shown}


def wait(what: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


class Garden:
    """A deployment whose devices were carried away: what deploy writes reaches them no more."""

    def __init__(self, deployed: Deployment) -> None:
        self.deployed, self.away = deployed, deployed.folder.parent / "away"
        self.device = lambda name: self.away / name
        deployed.device = self.device  # type: ignore[method-assign]

    def carry(self, name: str, number: int) -> None:
        """Bring a device its folder, and start it there."""
        shutil.copytree(self.deployed.folder / "devices" / name, self.away / name)
        self.deployed.give_images(name, number)
        self.deployed.start_device(name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_devices_come_and_go_and_authorities_follow_while_the_server_runs(
    deployment: Callable[..., Deployment],
    tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stack: ExitStack,
) -> None:
    deployed = deployment("kitchen", "hall")
    garden = Garden(deployed)
    folder, server = deployed.folder, deployed.folder / "server"
    ports = deployed.port, deployed.operator_port, deployed.delivery_port

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

    deployed.start("delivery", [*FEDHEAD, "delivery", "serve", str(server)])
    deployed.start_server()
    garden.carry("kitchen", 0)
    garden.carry("hall", 1)

    # A third device comes.
    before = deployed.said("server")
    assert "cellar is registered\n" in fedhead("deploy", folder, "--device", "cellar")
    garden.carry("cellar", 2)
    for name in ("kitchen", "hall", "cellar"):
        wait(lambda name=name: is_known(name))
    assert deployed.said("server").startswith(before)
    assert row("hall")["app"] == f"fedhead {version('fedhead')}"

    # One goes, in the middle of a run, which goes on without it.
    run = tiny("train.rounds=3", "train.clients-per-round=3", "round.quorum=0.5", name="run")
    command = [*FEDHEAD, "resume", str(run), "--deployment", str(folder)]
    running = deployed.start("run", command)
    wait(lambda: any((run / "checkpoint").glob("[0-9]*")))
    with control(server) as api:
        node = next(known.node_id for known in api.nodes() if known.name == "kitchen")
    kitchen = garden.device("kitchen")
    old = Key(deployed, kitchen / "device.key", stack)
    old.pull(node)
    assert fedhead("fleet", folder, "revoke", "kitchen").splitlines() == [
        "kitchen cannot fetch any more: its token is revoked",
        "kitchen is shut out: its SuperNode is refused from now on",
    ]
    assert old.is_refused(node)
    address, token = f"localhost:{deployed.delivery_port}", kitchen / "delivery.token"
    with (
        Remote(address, authority=kitchen / "ca.crt", token=token) as remote,
        pytest.raises(DeliveryError, match="the token is not valid"),
    ):
        remote.latest("model.pt")
    deployed.wait_for("kitchen", "is its key registered and not revoked")
    deployed.processes["kitchen"].terminate()  # it would try again and again
    assert running.wait(400) == 0, deployed.said("run")
    assert (row("kitchen")["state"], row("kitchen")["token"]) == ("revoked", "revoked")
    part = row("hall")["last-run"]
    assert (part["examples"], part["valid"]) == (54, 3)
    assert 6 < json.loads((run / "summary.json").read_text())["valid_updates"] < 9

    # Its name comes back with another key, its key does not.
    assert "kitchen is registered\n" in fedhead("deploy", folder, "--device", "kitchen")
    new = Key(deployed, folder / "devices" / "kitchen" / "device.key", stack)
    assert new.public != old.public
    new.pull(new.activate())
    assert old.is_refused(node)
    fedhead("fleet", folder, "revoke", "kitchen")

    # The server's certificate is renewed, and then its authority.
    def is_shown() -> bool:
        return serials(*ports) == {certificates_in(server / "server.crt")[0].serial_number}

    assert is_shown()
    fedhead("fleet", folder, "renew", "--days", "20")
    wait(is_shown)
    deployed.wait_for("server", "warning: the server's certificate ends on")
    fedhead("fleet", folder, "renew", "--authority")
    wait(is_shown)
    said = fedhead("fleet", folder, "renew", "--authority", code=1)
    assert re.search(r"still needed by cellar \(seen .*\), hall \(seen [^)]*\);", said)
    for name in ("hall", "cellar"):
        fedhead("delivery", "check-in", garden.device(name))
    assert "all devices trust it" in fedhead("fleet", folder)
    for name in ("hall", "cellar"):
        deployed.wait_for(name, "the trusted authorities changed: Flower's SuperNode starts again")
    fedhead("fleet", folder, "renew", "--authority")
    wait(is_shown)
    # Devices and the server's own processes are there under the new authority.
    after = tiny("train.rounds=1", "train.clients-per-round=2", name="after")
    assert deployed.run(after)["valid_updates"] == 2
    for name in ("hall", "cellar"):
        fedhead("delivery", "check-in", garden.device(name))
        trusted = certificates_in(garden.device(name) / "ca.crt")
        assert trusted == certificates_in(server / "ca.crt")
        assert len(trusted) == 1
