"""What is published is whole, numbered, kept; secrets are their owner's."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from common.delivery import delivery_pb2 as pb
from common.delivery.identity import Identity
from common.delivery.tokens import issue_token, revoke_token
from common.delivery.versions import known_versions
from common.errors import DamagedError, DeliveryError, ExportError
from common.files import read_private, write_private
from common.readback import seal
from server.delivery.publish import exported
from server.delivery.reports import survey
from server.delivery.service import Limits, start
from server.export.card import Card, card_path

ROOT = Path(__file__).parent.parent.parent


def test_the_generated_messages_are_those_of_the_proto(tmp_path: Path) -> None:
    out = tmp_path / "set.bin"
    proto = "common/delivery/delivery.proto"
    assert protoc.main(["", f"-I{ROOT}", f"--descriptor_set_out={out}", str(ROOT / proto)]) == 0
    (compiled,) = FileDescriptorSet.FromString(out.read_bytes()).file
    # json_name is derived, and only some versions of protoc write it.
    for message in compiled.message_type:
        nested = [field for inner in message.nested_type for field in inner.field]
        for field in (*message.field, *nested):
            field.ClearField("json_name")
    assert compiled.SerializeToString() == pb.DESCRIPTOR.serialized_pb


def test_a_stub_that_protoc_makes_talks_to_the_server(
    deployment, serve, tmp_path, monkeypatch
) -> None:
    data = deployment.publish(1)
    options = [f"-I{ROOT}", f"--grpc_python_out={tmp_path}"]
    assert protoc.main(["", *options, str(ROOT / "common/delivery/delivery.proto")]) == 0
    path = tmp_path / "common/delivery/delivery_pb2_grpc.py"
    spec = importlib.util.spec_from_file_location("delivery_pb2_grpc", path)
    stock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stock)
    metadata = [("authorization", f"Bearer {deployment.token.read_text().strip()}")]
    trust = grpc.ssl_channel_credentials((deployment.pki / "ca.crt").read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{serve()}", trust) as channel:
        stub = stock.DeliveryStub(channel)
        latest = stub.Latest(pb.LatestRequest(name="model.bin"), metadata=metadata)
        assert (latest.version, latest.size) == (1, len(data))
        assert Card.model_validate_json(latest.card).classes == ("cat", "dog")
        request = pb.DownloadRequest(name="model.bin", version=1, offset=1000)
        chunks = stub.Download(request, metadata=metadata)
        assert b"".join(chunk.data for chunk in chunks) == data[1000:]
        figures = pb.ReportRequest(
            name="model.bin", version=1, num_examples=8, accuracy=0.75, held_out=True
        )
        stub.Report(figures, metadata=metadata)
    assert survey(deployment.folder)[0].accuracy == 0.75


def test_fetching_needs_nothing_heavy() -> None:
    heavy = {"torch", "flwr", "pydantic", "numpy", "server", "torchvision"}
    code = f"import sys, client.delivery.fetch; print(sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_versions_are_numbered_and_kept(deployment) -> None:
    first, second = deployment.publish(1), deployment.publish(2)
    assert deployment.file(1).read_bytes() == first
    assert deployment.file(2).read_bytes() == second
    assert [entry.artifact.version for entry in survey(deployment.folder)] == [1, 2]


def test_publishes_at_once_get_a_version_each(deployment) -> None:
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(deployment.publish, range(24)))
    shelf = deployment.file().parent.parent
    assert known_versions(shelf) == list(range(1, 25))
    assert {deployment.file(v).read_bytes() for v in range(1, 25)} == set(contents)
    assert len(list(shelf.iterdir())) == 24


@pytest.mark.parametrize(
    ("file", "card", "words"),
    [
        ("model.pt", None, "not a model file"),
        ("model.bin", None, "has no card, expected"),
        ("model.bin", "{}", "it has no checksum"),
        ("model.bin", seal("{}").decode(), "not a card"),
    ],
)
def test_what_is_no_export_is_not_published(deployment, tmp_path, file, card, words) -> None:
    source = tmp_path / file
    source.write_bytes(b"no model")
    if card is not None:
        card_path(source).write_text(card)
    with pytest.raises((DamagedError, DeliveryError, ExportError), match=words):
        exported(source, deployment.folder, name=file)
    assert not (deployment.folder / "artifacts").exists()


def test_the_card_of_another_file_is_noticed(deployment, tmp_path) -> None:
    deployment.publish(1)
    source = tmp_path / "source-1.bin"
    source.write_bytes(b"other")
    with pytest.raises(ExportError, match="card of another file"):
        exported(source, deployment.folder, name="model.bin")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x" * 101, "a\n"])
def test_a_name_leads_nowhere_else(deployment, tmp_path, name) -> None:
    with pytest.raises(DeliveryError, match="cannot name"):
        exported(tmp_path / "model.bin", deployment.folder, name=name)
    with pytest.raises(DeliveryError, match="cannot name"):
        issue_token(deployment.folder, name, tmp_path / "out.token")


@pytest.mark.parametrize("name", ["artifact.json", "signed", "card.json"])
def test_a_name_is_none_of_a_versions_own_files(deployment, tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"a model")
    with pytest.raises(DeliveryError, match="each version has such a file"):
        exported(tmp_path / name, deployment.folder, name=name)


def test_a_disk_that_fills_up_leaves_nothing_half_written(deployment, monkeypatch) -> None:
    deployment.publish(1)

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            deployment.publish(2)
    assert [path.name for path in deployment.file().parent.parent.iterdir()] == ["1"]


def test_a_source_that_changes_under_way_is_not_published(deployment, monkeypatch) -> None:
    copy = shutil.copyfile

    def change(source: Path, target: Path) -> None:
        source.write_bytes(b"another export")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", change)
    with pytest.raises(DeliveryError, match="changed while it was being published"):
        deployment.publish(1)
    assert not deployment.file().exists()


def test_a_token_is_its_owners_and_the_server_keeps_only_a_hash(deployment, tmp_path) -> None:
    secret = deployment.token.read_text().strip()
    (stored,) = (deployment.folder / "tokens").iterdir()
    for path in (deployment.token, stored):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in files(deployment.folder):
        assert secret.encode() not in path.read_bytes()
    with pytest.raises(DeliveryError, match="phone-1 has a token already"):
        issue_token(deployment.folder, "phone-1", tmp_path / "second.token")
    with pytest.raises(FileExistsError):
        issue_token(deployment.folder, "phone-2", deployment.token)
    assert deployment.token.read_text().strip() == secret
    revoke_token(deployment.folder, "phone-1")
    with pytest.raises(DeliveryError, match="phone-1 has no token"):
        revoke_token(deployment.folder, "phone-1")


def files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_a_secret_is_private_from_its_first_moment(tmp_path) -> None:
    path = tmp_path / "key"
    write_private(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_private(path) == b"secret"
    with pytest.raises(FileExistsError):
        write_private(path, b"other")


def begin(deployment, **changes):
    values = {
        "address": "127.0.0.1:0",
        "certificate": deployment.pki / "server.crt",
        "key": deployment.pki / "server.key",
        "limits": Limits(1, 1e6),
    } | changes
    files = values.pop("certificate"), values.pop("key")
    identity = Identity(*files, authorities=deployment.pki / "ca.crt")
    return start(deployment.folder, identity=identity, **values)


def test_a_port_has_one_server(deployment, serve) -> None:
    port = serve()
    where = f"127.0.0.1:{port}"
    with pytest.raises(DeliveryError, match=f"cannot listen on {where}: Address already in use$"):
        begin(deployment, address=where)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("[2001:db8::1]:0", "(Cannot assign requested address|Address family .*)"),
    ],
)
def test_why_a_server_cannot_listen_is_said(deployment, address: str, why: str) -> None:
    with pytest.raises(DeliveryError, match=f"^cannot listen on {re.escape(address)}: {why}$"):
        begin(deployment, address=address)


def half_published(deployment, shelf: str) -> Path:
    """What a publish leaves that is killed while it copies; its folder."""
    half = deployment.folder / "artifacts" / shelf / ".2.killed.tmp"
    half.mkdir(parents=True)
    (half / "model.bin").write_bytes(b"half")
    return half


def test_what_a_killed_publish_left_goes_with_the_next_of_any_name(deployment) -> None:
    halves = [half_published(deployment, shelf) for shelf in ("model.bin", "other.bin")]
    deployment.publish(1)
    renewal = deployment.file().with_name(".signed.killed.tmp")
    renewal.write_bytes(b"half")
    deployment.publish(2)
    assert not [path for path in (*halves, renewal) if path.exists()]
    assert [entry.artifact.version for entry in survey(deployment.folder)] == [1, 2]


def test_what_was_killed_goes_when_the_server_starts(deployment, serve) -> None:
    deployment.publish(1)
    kept = {*files(deployment.folder)}
    half_published(deployment, "other.bin")
    for place in ("check-ins", "reports/model.bin/1"):
        (deployment.folder / place).mkdir(parents=True)
        (deployment.folder / place / ".phone-1.json.killed.tmp").write_bytes(b"half")
    serve()
    assert {*files(deployment.folder)} == kept


def test_a_publish_at_work_is_left_alone(deployment, serve) -> None:
    half = half_published(deployment, "other.bin")
    descriptor = os.open(half.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        deployment.publish(1)
        serve()
        assert half.exists()
    finally:
        os.close(descriptor)
    deployment.publish(2)
    assert not half.exists()


@pytest.mark.parametrize("wrong", ["certificate", "key", "pair"])
def test_a_server_without_a_certificate_and_its_key_does_not_start(
    deployment, tmp_path, wrong
) -> None:
    junk = tmp_path / "junk"
    write_private(junk, b"junk")
    changes = {
        "certificate": {"certificate": junk},
        "key": {"key": junk},
        "pair": {"key": deployment.pki / "ca.key"},
    }[wrong]
    with pytest.raises(DeliveryError, match="certificate"):
        begin(deployment, **changes)


def test_a_server_key_that_others_can_read_is_refused(deployment, tmp_path) -> None:
    key = tmp_path / "open.key"
    key.write_bytes((deployment.pki / "server.key").read_bytes())
    key.chmod(0o640)
    with pytest.raises(PermissionError, match="mode 640 lets others read a secret"):
        begin(deployment, key=key)
