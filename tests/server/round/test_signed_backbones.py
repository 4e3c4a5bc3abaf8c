"""A run with devices that trust keys: the backbone is signed first, or the run says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.app import app as client_app
from common.config import Config
from common.errors import RunError, SignatureError
from common.experiment import run_config
from common.signing.trust import TrustedKeys
from server.app import run_experiment
from server.round.backbone_offer import newest_signed
from simulations.deploy.folder import write_deployment
from simulations.deploy.launch import run_deployed
from simulations.deploy.signing import signed_backbones
from simulations.deploy.signing_key import new_key
from simulations.engines.in_process import InProcessGrid
from simulations.run import open_run, run_values

Make = Callable[..., Path]


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    """A deployment that trusts signing.key, beside it."""
    for name in ("signing", "foreign"):
        new_key(tmp_path / f"{name}.key", "")
    folder = tmp_path / "garden"
    trust = [tmp_path / "signing.key.pub"]
    write_deployment(folder, addresses=["localhost"], devices=["hall"], days=1, trust=trust)
    return folder


@pytest.fixture
def strict_grid(device_grid: Any, garden: Path) -> Any:
    """The devices of ``device_grid``, with the deployment's keys."""

    class Strict(device_grid):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            for context in self._contexts.values():
                context.node_config["trusted"] = str(garden / "devices" / "hall" / "trusted")

    return Strict


def run(folder: Path, grid: type[InProcessGrid], backbones: Path | None) -> None:
    values = run_values(folder)
    run_experiment(grid(client_app, 1, values), run_config(values), backbones=backbones)


@pytest.mark.slow
def test_devices_train_on_a_signed_backbone_and_on_no_other(
    tiny: Make, tmp_path: Path, garden: Path, strict_grid: Any, devices: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server, key = garden / "server", tmp_path / "signing.key"
    options = ("train.rounds=1", "train.clients-per-round=3")
    with pytest.raises(RunError, match="no round of 1 gave a new head"):
        run(tiny(*options), strict_grid, None)
    assert caplog.text.count("is refused: it is not signed, and a signature of ") >= 3
    assert not [*devices[0].rglob("backbone.safetensors")]

    path = tiny(*options, name="signed")
    folder = signed_backbones(open_run(path), server, key)
    run(path, strict_grid, folder)
    assert (path / "model.pt").exists()
    kept = next(devices[0].rglob("backbone.safetensors"))
    (signed,) = (server / "backbones" / "tiny" / "1").glob("tiny")
    assert kept.read_bytes() == signed.read_bytes()
    # The key is nowhere but in its file.
    secret = key.read_bytes().splitlines()[1]
    others = [file for file in tmp_path.rglob("*") if file.is_file() and file != key]
    assert not [file for file in others if secret in file.read_bytes()]


def test_a_run_says_at_once_that_its_backbone_is_not_signed(
    tiny: Make, garden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.deploy.launch.run_app", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(SignatureError, match=r"backbone tiny \(\w{12}\) is not signed: give --key"):
        run_deployed(tiny(), garden)


def test_the_backbone_is_signed_once_and_again_when_it_must_be(
    tiny: Make, tmp_path: Path, garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, key = garden / "server", tmp_path / "signing.key"
    config, changed = open_run(tiny()), open_run(tiny("backbone.input-size=32", name="changed"))

    def version(of: Config = config) -> int:
        found = newest_signed(server / "backbones", "tiny")
        assert found is not None
        TrustedKeys.read(server / "trusted").verify(found[0].signed, "it")
        assert found[1].name == of.name
        return found[0].version

    with pytest.raises(SignatureError, match="foreign.key is key .*, but the devices of .* trust"):
        signed_backbones(config, server, tmp_path / "foreign.key")
    assert not (server / "backbones").exists()
    signed_backbones(config, server, key)
    file = server / "backbones" / "tiny" / "1" / "signed"
    before = file.read_bytes()
    # The key is needed no more, and signs nothing anew where it is given.
    for given in (None, key):
        assert signed_backbones(config, server, given) == server / "backbones"
    assert (version(), file.read_bytes()) == (1, before)

    with pytest.raises(SignatureError, match="is not signed: give --key"):
        signed_backbones(changed, server, None)
    signed_backbones(changed, server, key)
    assert version() == 2
    # A run that began with the first goes on: under a new number, since devices never go back.
    with pytest.raises(SignatureError, match="is not signed: give --key"):
        signed_backbones(config, server, None)
    signed_backbones(config, server, key)
    assert version() == 3
    # Tampered with on the server's disk.
    file = server / "backbones" / "tiny" / "3" / "tiny"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SignatureError, match="is not signed"):
        signed_backbones(config, server, None)
    shutil.rmtree(file.parent)
    shutil.rmtree(server / "trusted")
    assert signed_backbones(config, server, None) is None
