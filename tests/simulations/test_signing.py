"""The signing key and the commands that use it, as an operator types them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.app import host_of
from client.delivery.shelf import Shelf
from client.gateway.backbones import backbones_in
from client.trust import Trust
from common.config import Config, load_config
from common.delivery.versions import read_artifact
from common.errors import DeliveryError, ExportError, SignatureError
from common.experiment import experiment_dataset
from common.messages import DescribeRequest
from common.phones import FORMATS
from common.signing.statement import Signed, Statement
from common.signing.trust import TrustedKeys, key_id, read_public_key
from fedhead.cli.main import main
from fedhead.cli.publish import PhoneFormat
from server.delivery.publish import artifacts_of
from simulations.deploy import phone_files
from simulations.deploy.folder import write_deployment
from simulations.deploy.gateway import register_gateway
from simulations.deploy.grade import grade
from simulations.deploy.launch import device_command
from simulations.deploy.phone_signing import sign_formats
from simulations.deploy.settings import delivery_of
from simulations.deploy.signing import signed_backbones, signer
from simulations.deploy.signing_key import new_key, read_key
from simulations.deploy.trust import signing_state, trusted_of

Say = Callable[..., str]


@pytest.fixture
def fedhead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> Say:
    """Runs a command in the test's folder; what it prints, or its one line of error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["fedhead", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        if caught.value.code:
            assert err.startswith("fedhead: ")
            assert err.count("\n") == 1
            return err
        return out

    return command


@pytest.fixture
def garden(fedhead: Say, tmp_path: Path) -> Path:
    """An unsigned deployment, and the operator's key."""
    fedhead("deploy", "garden", "--address", "localhost", "--device", "hall", "--device", "kitchen")
    fedhead("keys", "new", "signing.key")
    return tmp_path / "garden"


def trust(fedhead: Say, *files: str) -> str:
    options = [part for file in files for part in ("--trust", file)]
    return fedhead("deploy", "garden", *options)


@pytest.fixture
def run(exported, tmp_path: Path) -> str:
    """A run folder with a real model.pt."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").write_bytes(exported.path.read_bytes())
    return "run"


def published(garden: Path, version: int = 1):
    return read_artifact(artifacts_of(delivery_of(garden / "server")) / "model.pt", version)


def test_a_key_is_its_owners_alone_and_never_replaced(fedhead, tmp_path) -> None:
    said = fedhead("keys", "new", "signing.key")
    key = tmp_path / "signing.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    name = key_id(read_public_key(tmp_path / "signing.key.pub"))
    assert f"signing key {name}" in said
    assert f"private signing key {name}, ECDSA on P-256" in fedhead("keys", "show", "signing.key")
    assert f"public signing key {name}" in fedhead("keys", "show", "signing.key.pub")
    before = key.read_bytes()
    assert "signing.key exists already: keys are never replaced" in fedhead(
        "keys", "new", "signing.key"
    )
    (tmp_path / "signing.key.pub").unlink()
    fedhead("keys", "new", "signing.key")
    assert key_id(read_public_key(tmp_path / "signing.key.pub")) == name
    assert key.read_bytes() == before
    key.rename(tmp_path / "elsewhere")
    assert "signing.key is missing, but signing.key.pub exists" in fedhead(
        "keys", "new", "signing.key"
    )
    (tmp_path / "elsewhere").chmod(0o640)
    assert "mode 640 lets others read a secret; chmod 600" in fedhead("keys", "show", "elsewhere")
    (tmp_path / "junk").write_text("junk")
    assert "junk: not a public key in PEM" in fedhead("keys", "show", "junk")


def test_a_passphrase_comes_from_the_environment_or_a_file_and_stays_in_this_process(
    fedhead, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("FEDHEAD_PASSPHRASE", "correct horse")
    fedhead("keys", "new", "signing.key")
    # Flower's processes inherit the environment.
    assert "FEDHEAD_PASSPHRASE" not in os.environ
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in (tmp_path / "signing.key").read_bytes()
    assert "signing.key has a passphrase: set FEDHEAD_PASSPHRASE_FILE" in fedhead(
        "keys", "show", "signing.key"
    )
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text("correct horse\n")
    monkeypatch.setenv("FEDHEAD_PASSPHRASE_FILE", str(secret))
    assert "private signing key" in fedhead("keys", "show", "signing.key")
    monkeypatch.setenv("FEDHEAD_PASSPHRASE", "wrong")
    assert "or the wrong passphrase" in fedhead("keys", "show", "signing.key")
    secret.chmod(0o644)
    monkeypatch.setenv("FEDHEAD_PASSPHRASE_FILE", str(secret))
    assert "mode 644 lets others read a secret" in fedhead("keys", "show", "signing.key")


def test_a_passphrase_is_asked_for_at_the_prompt(tmp_path, monkeypatch) -> None:
    from simulations.deploy.signing_key import new_passphrase

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    typed = iter(["horse", "hose", "horse", "horse", "horse"])
    monkeypatch.setattr("getpass.getpass", lambda _prompt: next(typed))
    with pytest.raises(SignatureError, match="the passphrases differ"):
        new_passphrase()
    new_key(tmp_path / "signing.key", new_passphrase())
    assert read_key(tmp_path / "signing.key").curve.name == "secp256r1"


def test_deploy_gives_all_devices_the_keys_and_newcomers_too(fedhead, garden, tmp_path) -> None:
    assert str(signing_state(garden / "server")).startswith("unsigned: devices take any file")
    assert "trusted=" not in device_command(garden / "devices" / "hall", garden)[-1]
    trust(fedhead, "signing.key.pub")
    name = key_id(read_public_key(tmp_path / "signing.key.pub"))
    assert str(signing_state(garden / "server")) == (
        f"signed: devices take only files signed by key {name}, once they have got trusted/ from "
        "their folder here"
    )
    fedhead("deploy", "garden", "--address", "localhost", "--device", "new")
    for device in ("hall", "kitchen", "new"):
        folder = garden / "devices" / device
        assert list(TrustedKeys.read(folder / "trusted").keys) == [name]
        assert f'trusted="{folder}/trusted"' in device_command(folder, garden)[-1]
    for number in ("next", "third"):
        fedhead("keys", "new", f"{number}.key")
    assert "\ngarden: read its README" in trust(fedhead, "signing.key.pub", "next.key.pub")
    assert len(signing_state(garden / "server").keys) == 2
    assert "--trust names 3 keys" in trust(
        fedhead, "signing.key.pub", "next.key.pub", "third.key.pub"
    )
    assert "but a private one" in trust(fedhead, "signing.key")
    assert len(signing_state(garden / "server").keys) == 2
    trust(fedhead, "next.key.pub")
    assert len(TrustedKeys.read(garden / "devices" / "new" / "trusted").keys) == 1
    everything = [file.read_bytes() for file in garden.rglob("*") if file.is_file()]
    assert (tmp_path / "signing.key").read_bytes() not in everything


def test_a_key_that_is_not_the_deployments_is_said_before_anything_else(
    fedhead, garden, tmp_path, monkeypatch
) -> None:
    trust(fedhead, "signing.key.pub")
    fedhead("keys", "new", "other.key")
    monkeypatch.setattr("simulations.deploy.signing.backbone_candidate", None)  # never asked for
    for name, words in (("other.key", "other.key is key"), ("none.key", "none.key")):
        with pytest.raises((SignatureError, OSError), match=words):
            signed_backbones(Config(), garden / "server", tmp_path / name)


def test_a_key_without_a_passphrase_says_so(fedhead, tmp_path, monkeypatch) -> None:
    assert "(no passphrase: anyone who has the file can sign)" in fedhead("keys", "new", "open.key")
    monkeypatch.setenv("FEDHEAD_PASSPHRASE", "correct horse")
    assert "passphrase" not in fedhead("keys", "new", "locked.key")


def test_the_same_model_again_is_no_new_version(fedhead, garden, run) -> None:
    assert "model.pt version 1: " in fedhead("publish", run, "--to", "garden/server")
    again = fedhead("publish", run, "--to", "garden/server")
    assert "model.pt version 1: published already, the same bytes" in again
    assert json.loads(fedhead("publish", run, "--to", "garden/server", "--json"))["new"] is False
    assert published(garden).signed is None
    signed = fedhead("publish", run, "--to", "garden/server", "--key", "signing.key")
    assert "version 1: published already" in signed
    assert "signed until 20" in signed
    before = published(garden)
    fedhead(
        "publish", run, "--to", "garden/server", "--key", "signing.key", "--expires", "9"
    )  # fmt: skip
    assert published(garden) != before
    assert not (garden / "server/delivery/artifacts/model.pt/2").exists()
    table = fedhead("delivery", "status", "garden/server")
    assert "signed until" in table


def test_a_deployment_that_signs_publishes_nothing_unsigned_or_of_another_key(
    fedhead, garden, run
) -> None:
    trust(fedhead, "signing.key.pub")
    assert "give --key FILE; if the key is on another machine, give --statement FILE" in fedhead(
        "publish", run, "--to", "garden/server"
    )
    fedhead("keys", "new", "foreign.key")
    foreign = fedhead("publish", run, "--to", "garden/server", "--key", "foreign.key")
    assert "foreign.key is key " in foreign
    assert not (garden / "server/delivery/artifacts").exists()
    fedhead("publish", run, "--to", "garden/server", "--key", "signing.key")
    keys = TrustedKeys.read(garden / "devices" / "hall" / "trusted")
    published(garden).check(
        statement := keys.verify(published(garden).signed, "it"), "model", statement.fingerprint
    )


def test_a_key_on_another_machine_signs_a_statement(fedhead, garden, run, tmp_path) -> None:
    trust(fedhead, "signing.key.pub")
    to = ("--to", "garden/server")
    said = fedhead("publish", run, *to, "--statement", "s", "--expires", "30")
    assert "s: model.pt version 1, to be signed by fedhead keys sign" in said
    assert not (garden / "server/delivery/artifacts").exists()
    statement = Statement.from_bytes((tmp_path / "s").read_bytes())
    assert statement.expires - statement.created == 30 * 86400
    shown = fedhead("keys", "sign", "s", "--key", "signing.key")
    assert f"sha256 {statement.sha256}" in shown
    assert "s.signed: model.pt version 1, " in shown
    assert "signed until" in fedhead("publish", run, *to, "--signed", "s.signed")
    assert published(garden).signed.statement == (tmp_path / "s").read_bytes()

    # Signed by another key, or for another file.
    fedhead("keys", "new", "foreign.key")
    fedhead("keys", "sign", "s", "--key", "foreign.key", "--out", "foreign.signed")
    assert "foreign.signed is refused: it is not signed by" in fedhead(
        "publish", run, *to, "--signed", "foreign.signed"
    )
    other = (tmp_path / "s").read_bytes().replace(b"size ", b"size 1")
    (tmp_path / "other").write_bytes(other)
    fedhead("keys", "sign", "other", "--key", "signing.key")
    assert "model.pt version 1 is refused: its size is " in fedhead(
        "publish", run, *to, "--signed", "other.signed"
    )
    (tmp_path / "other").write_bytes(other + b"x")
    assert "other: not a statement" in fedhead("keys", "sign", "other", "--key", "signing.key")
    assert "--key, --statement and --signed exclude each other" in fedhead(
        "publish", run, *to, "--signed", "s.signed", "--key", "signing.key"
    )


def test_an_earlier_model_comes_back_as_a_new_version(
    fedhead, garden, run, tmp_path, monkeypatch
) -> None:
    fedhead("publish", run, "--to", "garden/server")
    shelf = garden / "server/delivery/artifacts/model.pt"
    first = (shelf / "1" / "model.pt").read_bytes()
    artifact = published(garden)
    # Another version, of other bytes.
    (shelf / "2").mkdir()
    (shelf / "2" / "model.pt").write_bytes(first + b"2")
    replace(
        artifact, version=2, size=len(first) + 1, sha256=hashlib.sha256(first + b"2").hexdigest()
    ).describe(shelf / "2")
    assert "model.pt version 3: " in fedhead("delivery", "restore", "garden/server", "1")
    assert (shelf / "3" / "model.pt").read_bytes() == first
    assert published(garden, 3).card == artifact.card
    assert "published already" in fedhead("delivery", "restore", "garden/server", "1")
    assert "there is no version 7" in fedhead("delivery", "restore", "garden/server", "7")


def test_a_backbone_is_put_up_to_be_signed(fedhead, garden, tiny_toml, tmp_path) -> None:
    trust(fedhead, "signing.key.pub")
    (tmp_path / "tiny.toml").write_text(tiny_toml)
    to = ("--to", "garden/server")
    assert "a backbone can only be published signed" in fedhead("publish", "tiny.toml", *to)
    assert "s: backbone tiny version 1" in fedhead("publish", "tiny.toml", *to, "--statement", "s")
    fedhead("keys", "sign", "s", "--key", "signing.key")
    assert "signed until" in fedhead("publish", "tiny.toml", *to, "--signed", "s.signed")
    config = load_config(tmp_path / "tiny.toml", {})
    server = garden / "server"
    assert signed_backbones(config, server, None) == server / "backbones"


def test_the_commands_that_sign_a_backbone_elsewhere_are_said_in_full(
    fedhead, garden, tiny_toml, tmp_path
) -> None:
    trust(fedhead, "signing.key.pub")
    (tmp_path / "EXPERIMENT.toml").write_text(tiny_toml)
    config, server = load_config(tmp_path / "EXPERIMENT.toml"), garden / "server"
    with pytest.raises(SignatureError) as caught:
        signed_backbones(config, server, None)
    commands = re.findall(r"(?:here|there): fedhead (.*?)(?=;|$)", str(caught.value))
    assert len(commands) == 3
    for command in commands:  # each as it stands, but for the key's name
        fedhead(*shlex.split(command.replace("KEY", "signing.key")))
    assert signed_backbones(config, server, None) == server / "backbones"


def test_the_commands_that_sign_a_phones_file_elsewhere_are_said_in_full(
    fedhead, garden, tiny, tmp_path, monkeypatch
) -> None:
    def fails(*_: object) -> None:
        raise ExportError("not in this test")

    monkeypatch.setattr(phone_files, "export", fails)  # but for PyTorch, which needs none
    fedhead("deploy", "garden", "--phone", "anna")
    register_gateway(garden / "server", print)
    trust(fedhead, "signing.key.pub")
    path = tiny()
    config = load_config(path / "config.toml")
    shutil.copy(path / "config.toml", "EXPERIMENT.toml")
    with pytest.raises(SignatureError) as caught:
        phone_files.phone_files(config, garden / "server", None, path)
    commands = re.findall(r"(?:here|there): fedhead (.*?)(?=;|$)", str(caught.value))
    assert len(commands) == 3
    for command in commands:  # each as it stands, but for the key's name
        fedhead(*shlex.split(command.replace("KEY", "signing.key")))
    folder = phone_files.phone_files(config, garden / "server", None, path)
    assert folder
    (file,) = backbones_in(folder, experiment_dataset(config).classes)
    trusted = TrustedKeys.read(trusted_of(garden / "server"))
    statement = trusted.verify(Signed(file.statement, file.signature), "the file")
    assert (statement.name, statement.sha256) == (f"{config.name}.torch", file.file.sha256)
    # Of what was written for the signature alone, the rest is written for the run.
    about = {"classes": [*experiment_dataset(config).classes], "version": version("fedhead")}
    assert phone_files.lacking(folder, about) == ["executorch", "lite"]
    # Without a signature that a phone would take, the run does not begin.
    (folder / "backbone.bin.signature").write_bytes(bytes(64))
    (garden / "server" / "backbones" / f"{config.name}.torch").rename(tmp_path / "gone")
    with pytest.raises(SignatureError, match="phones take signed files only"):
        phone_files.phone_files(config, garden / "server", None, path)


def test_a_backbone_that_comes_back_is_signed_anew_for_phones(fedhead, garden, tmp_path) -> None:
    """Phones refuse a version below the last that they accepted."""
    server = garden / "server"
    trust(fedhead, "signing.key.pub")
    by_key = signer(server, key=tmp_path / "signing.key")
    folders = [tmp_path / "backbones" / (letter * 64) for letter in "ab"]
    for i, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "backbone.bin").write_bytes(bytes([i]) * 99)
    trusted = TrustedKeys.read(trusted_of(server))

    def version(folder: Path) -> int:
        names = [f"backbone.bin.{what}" for what in ("statement", "signature")]
        return trusted.verify(Signed(*((folder / n).read_bytes() for n in names)), "it").version

    for number, folder in enumerate((folders[0], folders[1], folders[0]), 1):
        sign_formats(folder, "three", (), server, by_key)
        assert version(folder) == number
    with pytest.raises(SignatureError, match="is not signed"):
        sign_formats(folders[1], "three", (), server, None)
    # What was beside a file stays until there is something that phones take.
    assert version(folders[1]) == 2


def test_a_phones_file_is_of_an_experiment_and_must_be_there(
    fedhead, garden, run, tiny_toml, tmp_path, monkeypatch
) -> None:
    def fails(*_: object) -> None:
        raise ExportError("not in this test")

    monkeypatch.setattr(phone_files, "export", fails)
    (tmp_path / "tiny.toml").write_text(tiny_toml)
    options = ("--to", "garden", "--format", "lite", "--statement", "s")
    assert "--format is of an experiment's backbone" in fedhead("publish", run, *options)
    assert "not in this test" in fedhead("publish", "tiny.toml", *options)
    assert not (tmp_path / "s").exists()
    assert [*PhoneFormat] == [*FORMATS]


@pytest.mark.parametrize("command", ["run", "resume"])
def test_a_key_is_for_deployments(fedhead, tiny, tmp_path, command) -> None:
    run = tiny()
    what = [tmp_path / "tiny.toml", "--set", "name=x"] if command == "run" else [run]
    said = fedhead(command, *what, "--key", "signing.key")
    assert "--key is for --deployment" in said
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


class Hall:
    """A device with images of the classes of a model, which it has fetched."""

    def __init__(self, folder: Path, exported) -> None:
        self.folder = folder
        random = np.random.default_rng(0)
        for number in range(40):
            path = folder / "images" / str(number % 10) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        self.shelf = Shelf(folder / "models", "model.pt")
        self.model = exported.path

    def describe(self, fraction: float, classes=tuple("0123456789"), run: str = "run") -> int:
        """Take part in a run; how many images it trains on."""
        config = {"data": f"folder:{self.folder / 'images'}", "state": str(self.folder / "state")}
        host = host_of(config, {}, 12345)
        request = DescribeRequest(run, classes, fraction, seed=3)
        (count,) = host.describe(request).num_examples
        return count


@pytest.fixture
def hall(garden, exported, fedhead, run) -> Hall:
    made = Hall(garden / "devices" / "hall", exported)
    fedhead("publish", run, "--to", "garden/server")
    made.shelf.path.mkdir(parents=True)
    copy = shutil.copyfile(Path(run) / "model.pt", made.shelf.path / "copy")
    made.shelf.install(published(garden), copy)
    made.shelf.use(1)
    return made


def test_a_model_is_graded_on_the_images_that_the_device_keeps_to_test_with(
    hall, monkeypatch
) -> None:
    def graded() -> tuple[int, bool]:
        _, report = grade(hall.folder, hall.shelf, None)
        return report.num_examples, report.held_out

    assert graded() == (40, False)  # it took part in no run
    assert hall.describe(0.0) == 40
    assert graded() == (40, False)  # it kept none
    assert hall.describe(0.25) == 30
    looked_at: list[int] = []
    monkeypatch.setattr(
        "simulations.deploy.grade.measure",
        lambda _model, _data, positions: looked_at.extend(positions.tolist()) or 0.5,
    )
    assert graded() == (10, True)
    config = {"data": f"folder:{hall.folder / 'images'}", "state": str(hall.folder / "state")}
    host = host_of(config, {}, 12345)
    task = DescribeRequest("run", tuple("0123456789"), 0.25, 3)
    trained, kept = host._load(task)[1]
    assert looked_at == kept.tolist()
    assert not set(looked_at) & set(trained.tolist())
    hall.describe(0.5, classes=tuple("0123456789x"), run="later")  # of another model
    assert graded() == (10, True)
    hall.describe(0.5, run="latest")
    assert graded() == (20, True)
    Image.new("RGB", (8, 8)).save(hall.folder / "images" / "0" / "new.png")
    assert graded() == (41, False)  # nobody knows any more what was trained on


def test_a_model_that_is_not_signed_is_not_loaded_to_be_graded(
    hall, fedhead, garden, run, monkeypatch, tmp_path
) -> None:
    import torch

    trust(fedhead, "signing.key.pub")
    keys = Trust.of(hall.folder / "trusted", hall.folder / "state")
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", lambda *_: pytest.fail("loaded"))
        with pytest.raises(SignatureError, match="version 1 is refused: it is not signed"):
            grade(hall.folder, hall.shelf, keys)
        fedhead("publish", run, "--to", "garden/server", "--key", "signing.key")
        hall.shelf.keep_signature(published(garden))
        data = hall.shelf.model.read_bytes()
        hall.shelf.model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(DeliveryError, match="is damaged: sha256"):
            grade(hall.folder, hall.shelf, keys)
    hall.shelf.model.write_bytes(data)
    assert grade(hall.folder, hall.shelf, keys)[0] == published(garden)


def test_keys_that_cannot_be_used_are_noticed_before_a_device_or_server_starts(
    fedhead, garden
) -> None:
    from simulations.deploy.launch import serve

    for part in (garden / "server", garden / "devices" / "hall"):
        (part / "trusted").mkdir()
    with pytest.raises(SignatureError, match="server/trusted: 0 files, expected one public key"):
        serve(garden / "server", lambda line: pytest.fail(line))
    assert "server/trusted: 0 files" in fedhead("delivery", "serve", "garden/server")
    assert "hall/trusted: 0 files" in fedhead("delivery", "fetch", "garden/devices/hall")
    assert "hall/trusted: 0 files" in fedhead("device", "garden/devices/hall")


def test_a_new_deployment_signs_from_its_first_moment(tmp_path) -> None:
    new_key(tmp_path / "signing.key", "")
    with pytest.raises(SignatureError, match="private one"):
        write_deployment(
            tmp_path / "d", addresses=["localhost"], devices=["a"], days=1,
            trust=[tmp_path / "signing.key"],
        )  # fmt: skip
    assert not (tmp_path / "d").exists()
