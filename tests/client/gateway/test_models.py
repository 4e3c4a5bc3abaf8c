"""Finished models on their way through a real gateway."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from client.phone.models import GatewayModels, fetch_model
from client.phone.settings import PhoneFolder, read_phone
from common.delivery.tokens import revoke_token
from common.errors import DeliveryError, SignatureError
from common.files import sha256_file
from common.phones import phones_pb2 as pb
from common.phones.wire import PART
from server.delivery.publish import Sign, artifacts_of
from tests.client.gateway.actors import FINGERPRINT, Deployment
from tests.delivery.test_signed import CURRENT, FOREIGN, by

NAME = "model.pte"
Publish = Callable[..., bytes]


@pytest.fixture
def publish(deployment: Deployment) -> Publish:
    """Publishes a model of these bytes; gives them."""

    def make(content: bytes, *, sign: Sign | None = None, note: str = "") -> bytes:
        card = json.dumps({"fingerprint": FINGERPRINT, "note": note})
        deployment.put_up(NAME, content, card, sign)
        return content

    return make


@pytest.fixture
def folder(deployment: Deployment, tmp_path: Path) -> PhoneFolder:
    """A phone's folder, as an operator gives it."""
    deployment.add("anna")
    path = tmp_path / "phone"
    path.mkdir()
    shutil.copy(deployment.path / "anna.token", path / "phone.token")
    shutil.copy(deployment.place.server / "ca.crt", path / "ca.crt")
    address = f"127.0.0.1:{deployment.port}"
    (path / "phone.toml").write_text(f'gateway = "{address}"\ndelivery = "{address}"\n')
    return read_phone(path)


def test_a_phone_gets_the_newest_model_and_keeps_it(
    publish: Publish, folder: PhoneFolder, deployment: Deployment
) -> None:
    with pytest.raises(DeliveryError, match=f"nothing is published as {NAME}"):
        fetch_model(folder, NAME)
    first = publish(bytes(range(256)) * 3000)
    assert len(first) > 2 * PART
    found = fetch_model(folder, NAME)
    assert (found.version, found.received_bytes) == (1, len(first))
    assert found.model == folder.state / "models" / NAME / "current" / NAME
    assert found.model.read_bytes() == first
    again = fetch_model(folder, NAME)
    assert (again.version, again.received_bytes, again.note) == (1, 0, "up to date")
    second = publish(b"another", note="x" * 70_000)  # its card is no part of the message
    found = fetch_model(folder, NAME)
    assert (found.version, found.model.read_bytes()) == (2, second)
    card = json.loads((found.model.parent / "artifact.json").read_text())["card"]
    assert json.loads(card)["note"] == "x" * 70_000
    # The card of a version that is not the newest any more is not held in memory.
    publish(b"a third one")
    fetch_model(folder, NAME)
    assert deployment.running
    assert not deployment.running.gateway._blobs._made


def test_an_interrupted_fetch_goes_on_also_with_a_gateway_that_was_started_again(
    publish: Publish, folder: PhoneFolder, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = publish(bytes(range(256)) * 5000)
    asked, original = [], GatewayModels._part

    def part(self: GatewayModels, request: pb.FetchRequest) -> pb.Part:
        asked.append(request.offset)
        if len(asked) == 3:
            raise KeyboardInterrupt  # the phone's owner ends it
        return original(self, request)

    monkeypatch.setattr(GatewayModels, "_part", part)
    with pytest.raises(KeyboardInterrupt):
        fetch_model(folder, NAME)
    deployment.stop()
    deployment.start()
    address = f'"127.0.0.1:{deployment.port}"'
    (folder.path / "phone.toml").write_text(f"gateway = {address}\ndelivery = {address}\n")
    found = fetch_model(read_phone(folder.path), NAME)
    assert found.model.read_bytes() == content
    assert asked == [0, PART, 2 * PART, 2 * PART, 3 * PART, 4 * PART]
    assert found.received_bytes == len(content) - 2 * PART


def test_a_gateway_that_has_forgotten_an_offer_is_asked_again(
    publish: Publish, folder: PhoneFolder, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, asked = publish(bytes(range(256)) * 3000), []
    original = GatewayModels._part

    def part(self: GatewayModels, request: pb.FetchRequest) -> pb.Part:
        asked.append(request.offset)
        if len(asked) == 2:  # as if it had been started again just now
            assert deployment.running
            deployment.running.gateway._blobs._files.clear()
        return original(self, request)

    monkeypatch.setattr(GatewayModels, "_part", part)
    monkeypatch.setattr("time.sleep", lambda _: None)
    found = fetch_model(folder, NAME)
    assert found.model.read_bytes() == content
    assert asked == [0, PART, PART, 2 * PART]


def test_only_signed_models_reach_a_phone_that_trusts_keys(
    publish: Publish, folder: PhoneFolder
) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = CURRENT.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder.path / "trusted").mkdir()
    (folder.path / "trusted" / "key.pub").write_bytes(public)
    for sign in (None, by(FOREIGN), by(CURRENT, kind="backbone"), by(CURRENT, expires=10)):
        publish(b"bytes that nobody may load" + repr(sign).encode(), sign=sign)
        with pytest.raises(SignatureError):
            fetch_model(folder, NAME)
        assert not [*folder.state.rglob(NAME + "/*/*")]
    content = publish(b"signed", sign=by(CURRENT))
    found = fetch_model(folder, NAME)
    assert (found.version, found.model.read_bytes()) == (5, content)


def test_what_is_damaged_on_the_server_is_not_sent(
    publish: Publish, folder: PhoneFolder, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    publish(b"the right bytes")
    file = artifacts_of(deployment.place.delivery) / NAME / "1" / NAME
    file.write_bytes(b"the wrong bytes")
    with pytest.raises(DeliveryError, match="is damaged on the server") as caught:
        fetch_model(folder, NAME)
    assert str(deployment.path) not in str(caught.value)
    assert str(file) in caplog.text
    with pytest.raises(DeliveryError):
        fetch_model(folder, NAME)
    assert caplog.text.count(str(file)) == 1  # a fleet does not fill the log


def test_a_model_that_phones_do_not_take_is_said_to_be_too_large(
    publish: Publish, folder: PhoneFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.gateway.models.LARGEST_MODEL", 10)
    publish(b"12345678901")
    with pytest.raises(DeliveryError, match="has 11 bytes, but phones take at most 10"):
        fetch_model(folder, NAME)


def test_many_phones_at_once_have_a_file_read_once(
    publish: Publish, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.gateway import backbones

    content, read = publish(b"read once"), []

    def slowly(path: Path) -> str:
        read.append(path)
        time.sleep(0.2)
        return hashlib.sha256(content).hexdigest()

    monkeypatch.setattr(backbones, "sha256_file", slowly)
    (anna,) = deployment.add("anna")
    calls = [anna.stub.latest.future(pb.LatestRequest(name=NAME)) for _ in range(4)]
    assert {call.result().file.sha256 for call in calls} == {hashlib.sha256(content).hexdigest()}
    assert len(read) == 1


def test_only_phones_ask_only_for_names_and_not_without_end(
    publish: Publish, folder: PhoneFolder, deployment: Deployment
) -> None:
    content = publish(b"a model")
    (anna,) = deployment.phones.values()
    for name in ("", "../../server.key", "a/b", "x" * 101, "\0"):
        with pytest.raises(grpc.RpcError) as caught:
            anna.stub.latest(pb.LatestRequest(name=name))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    calls = [anna.stub.latest.future(pb.LatestRequest(name=NAME)) for _ in range(300)]
    codes = {call.code() for call in calls}
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    # What is not published now cannot be fetched, whatever its SHA-256.
    (ben,) = deployment.add("ben")
    secret = sha256_file(deployment.place.server / "server.key")
    with pytest.raises(grpc.RpcError) as caught:
        ben.stub.fetch(pb.FetchRequest(sha256=secret))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    found = ben.stub.latest(pb.LatestRequest(name=NAME))
    assert ben.stub.fetch(pb.FetchRequest(sha256=found.file.sha256)).data == content
    revoke_token(deployment.place.delivery, "ben")
    with pytest.raises(grpc.RpcError) as caught:
        ben.stub.latest(pb.LatestRequest(name=NAME))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
