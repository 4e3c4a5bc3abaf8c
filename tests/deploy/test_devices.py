"""A deployment gives the head that one process gives."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from numpy.linalg import norm
from safetensors.numpy import load_file

from common.errors import SignatureError
from simulations.deploy.launch import run_deployed
from simulations.deploy.operator import control
from simulations.deploy.signing_key import new_key, public_file
from simulations.deploy.trust import read_keys, write_trusted

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_devices_behind_a_crowd_give_the_head_of_the_in_process_engine(
    deployment: Callable[..., Deployment],
    head_in_process: Callable[..., dict],
    tiny: Callable[..., Path],
) -> None:
    names = ["a", "b", "c", "d", "e"]
    deployed = deployment(*names)
    key = deployed.folder.parent / "signing.key"
    new_key(key, "")
    write_trusted(deployed.folder, read_keys([public_file(key)]))
    deployed.start_server()
    assert "signed: devices take only files signed by key " in deployed.said("server")
    crowd = start_crowd(deployed)
    for number, name in enumerate(names):
        deployed.give_images(name, number)
        deployed.start_device(name)
    options = ("train.rounds=5", f"train.clients-per-round={len(names)}")
    run = tiny(*options, name="deployed")
    with pytest.raises(SignatureError, match="backbone tiny .* is not signed: give --key"):
        deployed.run(run)
    summary = run_deployed(run, deployed.folder, key=key)
    for name in names:
        (signed,) = (deployed.device(name) / "state" / "backbones").glob("*/signed")
        assert b"\nkind backbone\nname tiny\nversion 1\n" in signed.read_bytes()
    assert (summary["clients"], summary["valid_updates"]) == (5, 25)
    assert (summary["rejected_updates"], summary["failed_updates"]) == (0, 0)
    head = load_file(run / "head.safetensors")
    for key, expected in head_in_process(deployed, *options).items():
        assert norm(head[key] - expected) <= 1e-5 * norm(expected), key

    # The crowd was there all the time, and the server still counts it.
    assert crowd.poll() is None, deployed.said("crowd")
    server = psutil.Process(deployed.processes["server"].pid)
    found = [c for p in server.children(recursive=True) for c in p.net_connections()]
    ours = [c for c in found if c.laddr and c.laddr.port == deployed.port]
    assert 100 < len(ours) <= 502, "of one address, the listener, and one that is on its way out"
    assert crowd.stdin is not None
    crowd.stdin.close()
    assert crowd.wait(60) == 0

    device = deployed.processes["a"]
    parts = psutil.Process(device.pid).children(recursive=True)
    assert len(parts) >= 3, "SuperNode, SuperExec and the process that has imported torch"
    device.terminate()
    device.wait(60)
    _, left = psutil.wait_procs(parts, timeout=10)
    assert not left


def start_crowd(deployed: Deployment) -> subprocess.Popen[bytes]:
    """A thousand connections that say nothing, and a hundred that say it slowly."""
    authority = deployed.folder / "server" / "ca.crt"
    script = Path(__file__).with_name("crowd.py")
    command = [sys.executable, str(script), str(deployed.port), str(authority), "1000", "100"]
    return deployed.start("crowd", command, stdin=subprocess.PIPE)


@pytest.mark.slow
def test_a_bad_key_is_named_before_anything_starts_and_ids_outlive_a_restart(
    deployment: Callable[..., Deployment],
) -> None:
    deployed = deployment("a", "b", "c")
    keys = deployed.folder / "server" / "devices"
    good = (keys / "b.pub").read_bytes()
    (keys / "b.pub").write_text("no key")
    deployed.start_server(waits=False)
    assert deployed.processes["server"].wait(120) == 1
    said = " ".join(deployed.said("server").split())
    assert re.fullmatch("fedhead: .*/devices/b.pub: cannot be registered: .*", said)
    assert not list(keys.glob("*.client"))
    (keys / "b.pub").write_bytes(good)
    deployed.start_server()
    before = [deployed.client(name) for name in "abc"]
    assert len(set(before)) == 3
    deployed.processes["server"].terminate()
    assert deployed.processes["server"].wait(60) == 0
    (keys / "c.pub").unlink()
    deployed.start_server()
    said = deployed.said("server")
    assert [deployed.client(name) for name in "ab"] == before[:2]
    assert "already in use" not in said
    assert "c is shut out: its key is no longer in" in said
    assert not (keys / "c.client").exists()
    with control(deployed.folder / "server") as api:
        assert {n.name: n.status for n in api.nodes()} == {
            "a": "registered", "b": "registered", "c": "unregistered",
        }  # fmt: skip
