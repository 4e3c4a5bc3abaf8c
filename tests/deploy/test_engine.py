"""A deployment gives the head that one process gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from numpy.linalg import norm
from safetensors.numpy import load_file

from common.errors import SignatureError
from simulations.deploy.launch import run_deployed
from simulations.deploy.trust import read_keys, write_trusted
from simulations.signing_key import new_key, public_file

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment


@pytest.mark.slow
def test_five_devices_over_tls_and_a_signed_backbone_give_the_head_of_the_in_process_engine(
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
    assert "signed: devices take only what key " in deployed.said("server")
    for number, name in enumerate(names):
        deployed.give_pictures(name, number)
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

    device = deployed.processes["a"]
    parts = psutil.Process(device.pid).children(recursive=True)
    assert len(parts) >= 3, "SuperNode, SuperExec and the process that has imported torch"
    device.terminate()
    device.wait(60)
    _, left = psutil.wait_procs(parts, timeout=10)
    assert not left


@pytest.mark.slow
def test_a_bad_key_is_named_and_those_before_it_are_let_in(
    deployment: Callable[..., Deployment],
) -> None:
    deployed = deployment("a", "b", "c")
    keys = deployed.folder / "server" / "devices"
    good = (keys / "b.pub").read_bytes()
    (keys / "b.pub").write_text("no key")
    deployed.start_server(waits=False)
    assert deployed.processes["server"].wait(120) == 1
    said = " ".join(deployed.said("server").split())
    assert re.search("devices/b.pub: cannot be registered: .*valid elliptic curve public key", said)
    assert [path.stem for path in keys.glob("*.client")] == ["a"]
    (keys / "b.pub").write_bytes(good)
    before = deployed.client("a")
    deployed.start_server()
    assert len({deployed.client(name) for name in "abc"}) == 3
    assert deployed.client("a") == before
    assert f"device a is client {before}" in deployed.said("server")
