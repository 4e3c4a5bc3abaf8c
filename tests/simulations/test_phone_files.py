"""What a run writes for phones before it starts, of a real backbone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.gateway.backbones import backbones_in
from common.backbone.frozen import FrozenBackbone
from common.config import load_config
from common.errors import ExportError, SignatureError
from common.experiment import experiment_dataset
from common.files import sha256_file
from common.phones import FORMATS, file_name
from common.signing.statement import Signed
from common.signing.trust import TrustedKeys
from simulations.deploy import phone_files as module
from simulations.deploy.folder import write_deployment
from simulations.deploy.gateway import register_gateway
from simulations.deploy.phone_files import phone_files
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

    classes = experiment_dataset(config).classes
    assert module.lacking(tmp_path, {"classes": list(classes)}) == ["torch", "executorch", "lite"]

    # What fails, or has no runtime here, is tried again.
    export = module.export

    def fails(model: Any, target: str, path: Path) -> Any:
        if target == "device-pte":
            raise ExportError("other features")
        return export(model, target, path)

    monkeypatch.setattr(module, "export", fails)
    folder = write()
    assert [backbone.format for backbone in backbones_in(folder, classes)] == ["lite", "torch"]
    lite = stamps(folder)
    monkeypatch.setattr(module, "export", export)
    write()
    assert {name: both for name, both in stamps(folder).items() if name in lite} == lite
    found = {backbone.format: backbone for backbone in backbones_in(folder, classes)}
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
    with pytest.raises(SignatureError, match=r"is validly signed .* --key FILE signs them"):
        write()
    monkeypatch.setenv("FEDHEAD_PASSPHRASE", passphrase)
    write(key)
    signed = {backbone.format: backbone for backbone in backbones_in(folder, classes)}
    trusted = TrustedKeys.read(trusted_of(server))
    for kind, backbone in signed.items():
        statement = trusted.verify(Signed(backbone.statement, backbone.signature), kind)
        assert (statement.kind, statement.name) == ("backbone", f"{config.name}.{kind}")
        assert (statement.fingerprint, statement.sha256) == (folder.name, backbone.file.sha256)
    assert {name: both for name, both in stamps(folder).items() if name in before} == before
    after = stamps(folder)
    write()
    assert stamps(folder) == after
    caplog.clear()

    # A damaged file is written again: the same bytes, so that their signature still counts.
    lite_file = folder / file_name("lite", classes)
    data = bytearray(lite_file.read_bytes())
    data[100] ^= 1
    lite_file.write_bytes(data)
    damaged = sha256_file(lite_file)
    lite_file.with_name(f"{lite_file.name}.signature").unlink()
    write()
    assert sha256_file(lite_file) != damaged
    again = {backbone.format: backbone for backbone in backbones_in(folder, classes)}
    assert again == signed
    assert not caplog.text
    # Without a signature of these bytes on the server, other formats are left.
    shutil.rmtree(server / "backbones" / f"{config.name}.lite")
    write()
    told = f"{lite_file.name} is not signed: phones will not take it; give --key FILE"
    assert told in caplog.text
    monkeypatch.setenv("FEDHEAD_PASSPHRASE", passphrase)
    write(key)

    # Another class list has its own files beside these, and the same backbone.
    fewer = replace(experiment_dataset(config), classes=tuple("0123456789"[::-1]))
    monkeypatch.setattr(module, "experiment_dataset", lambda _: fewer)
    before = stamps(folder)
    monkeypatch.setenv("FEDHEAD_PASSPHRASE", passphrase)
    write(key)
    assert {name: both for name, both in stamps(folder).items() if name in before} == before
    assert [b.format for b in backbones_in(folder, fewer.classes)] == [*FORMATS]
    assert (folder / file_name("lite", fewer.classes)).exists()

    # Old folders go, but for a few.
    for number in range(8):
        old = folder.parent / f"{number}".zfill(64)
        old.mkdir()
        os.utime(old, (number + 1, number + 1))
    write()
    assert folder.is_dir()
    assert len(list(folder.parent.iterdir())) == 5
