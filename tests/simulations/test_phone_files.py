"""What a run writes for phones before it starts, of a real backbone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.gateway.backbones import backbones_in
from common.backbone.frozen import FrozenBackbone
from common.config import load_config
from common.files import sha256_file
from common.signing.statement import Signed
from common.signing.trust import TrustedKeys
from simulations.deploy.folder import write_deployment
from simulations.deploy.gateway import register_gateway
from simulations.deploy.phone_files import FORMATS, phone_files
from simulations.deploy.signing import signer
from simulations.deploy.signing_key import new_key
from simulations.deploy.trust import trusted_of

Make = Callable[..., Path]


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.iterdir() if not path.name.endswith(".json")
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_phones_get_each_format_once_and_signed_where_the_deployment_signs(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    town = tmp_path / "town"
    write_deployment(town, addresses=["localhost"], phones=["anna"])
    server = town / "server"
    register_gateway(server, print)
    path = tiny("train.rounds=1")
    config = load_config(path / "config.toml")

    def write(key: Path | None = None) -> Any:
        return phone_files(config, server, signer(server, key=key) if key else None, path)

    folder = write()
    found = {backbone.format: backbone for backbone in backbones_in(folder)}
    assert list(found) == list(FORMATS)
    payload = FrozenBackbone.from_bytes((folder / "backbone.bin").read_bytes())
    assert payload.fingerprint == folder.name
    assert not any(backbone.signature for backbone in found.values())
    before = stamps(folder)
    assert write() == folder
    assert stamps(folder) == before

    key, passphrase = tmp_path / "signing.key", "a passphrase for tests"
    new_key(key, passphrase)
    write_deployment(town, trust=[tmp_path / "signing.key.pub"])
    write()
    assert "phones will not take device.pte: it is not signed: give --key FILE" in caplog.text
    monkeypatch.setenv("FEDHEAD_PASSPHRASE", passphrase)
    write(key)
    signed = {backbone.format: backbone for backbone in backbones_in(folder)}
    trusted = TrustedKeys.read(trusted_of(server))
    for kind, backbone in signed.items():
        statement = trusted.verify(Signed(backbone.statement, backbone.signature), kind)
        assert (statement.kind, statement.name) == ("backbone", f"{config.name}.{kind}")
        assert (statement.fingerprint, statement.sha256) == (folder.name, backbone.file.sha256)
    assert {name: both for name, both in stamps(folder).items() if name in before} == before
    after = stamps(folder)
    write()
    assert stamps(folder) == after

    # A damaged file is written again, and needs a signature again.
    data = bytearray((folder / "device.ptl").read_bytes())
    data[100] ^= 1
    (folder / "device.ptl").write_bytes(data)
    damaged = sha256_file(folder / "device.ptl")
    monkeypatch.setenv("FEDHEAD_PASSPHRASE", passphrase)
    write(key)
    assert sha256_file(folder / "device.ptl") != damaged

    # Old folders go, but for a few.
    for number in range(8):
        old = folder.parent / f"{number}".zfill(64)
        old.mkdir()
        os.utime(old, (number + 1, number + 1))
    write()
    assert folder.is_dir()
    assert len(list(folder.parent.iterdir())) == 5
