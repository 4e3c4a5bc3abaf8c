"""A device that trusts keys loads a backbone only after the signature over its bytes has held."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import client.backbones
import client.trust
from client.backbones import Backbones
from client.trust import Trust
from common.backbone.frozen import backbone_file
from common.backbone.payload import pack, unpack
from common.delivery.versions import Artifact
from common.errors import BackboneError, SignatureError
from common.messages import BackboneRequest
from common.signing.statement import Signed, Statement
from common.signing.trust import TrustedKeys, key_id
from simulations.deploy.signing_key import sign

KEY, FOREIGN = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


@pytest.fixture(scope="module")
def payload(trained) -> bytes:
    return trained.backbone.to_bytes()


class Node:
    """A device, and messages to it that are signed or not.

    Attributes:
        loads: how often TorchScript was loaded.
    """

    def __init__(self, cache: Path, fingerprint: str, payload: bytes) -> None:
        keys = {key_id(KEY.public_key()): KEY.public_key()}
        self.cache, self.fingerprint, self.payload = cache, fingerprint, payload
        self.backbones = Backbones(cache, Trust(TrustedKeys(keys), cache / "accepted"))
        self.loads = 0

    def statement(self, data: bytes | None = None, **changes: Any) -> Statement:
        data = self.payload if data is None else data
        artifact = Artifact("mine", 2, len(data), hashlib.sha256(data).hexdigest(), "")
        now = int(time.time())
        made = artifact.statement("backbone", self.fingerprint, now, now + 9999)
        return replace(made, **changes)

    def request(self, signed: Signed | None = None, data: bytes = b"") -> BackboneRequest:
        signed = signed or sign(KEY, self.statement())
        return BackboneRequest(self.fingerprint, data, signed.statement, signed.signature)

    def bring(self) -> None:
        assert not self.backbones.receive(self.request())
        assert self.backbones.receive(self.request(data=self.payload))

    def refuses(self, request: BackboneRequest, words: str) -> None:
        """In one line, with nothing loaded, and nothing changed on the disk."""
        before, loads = self.files(), self.loads
        with pytest.raises(SignatureError, match=words) as caught:
            self.backbones.receive(request)
        assert "\n" not in str(caught.value)
        assert (self.files(), self.loads) == (before, loads)

    def files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.cache.rglob("*") if path.is_file()}


@pytest.fixture
def node(tmp_path, trained, payload, monkeypatch) -> Node:
    made = Node(tmp_path / "state", trained.backbone.fingerprint, payload)
    load = torch.jit.load

    def counted(*args: Any, **options: Any) -> Any:
        made.loads += 1
        return load(*args, **options)

    monkeypatch.setattr(torch.jit, "load", counted)
    return made


def test_a_signed_backbone_is_taken_kept_and_renewed(node, trained) -> None:
    node.bring()
    assert node.backbones.receive(node.request())
    backbone = node.backbones.get(node.fingerprint)
    assert (backbone.features(trained.images) == trained.features[:60]).all()
    later = node.statement(expires=int(time.time()) + 10**6)
    assert node.backbones.receive(node.request(sign(KEY, later)))
    assert any(later.to_bytes() in content for content in node.files().values())


WRONG = [
    ("unsigned", "backbone [0-9a-f]{12} is refused: it is not signed"),
    ("foreign", "is refused: it is not signed by"),
    ("expired", "is refused: its signature expired on"),
    ("early", "is refused: it was signed on .*: set it"),
    ("model", "is refused: it was signed as a model"),
    ("other", "is refused: backbone 000000000000 was signed"),
    ("older", "is refused: backbone mine version 1 is older than version 2"),
    ("bytes", "is refused: another file was accepted as version 2 here before"),
]


def wrong(node: Node, kind: str) -> Signed:
    now = int(time.time())
    changes: dict[str, dict[str, Any]] = {
        "expired": {"created": now - 99999, "expires": now - 9999},
        "early": {"created": now + 9999},
        "model": {"kind": "model"},
        "other": {"fingerprint": "0" * 64},
        "older": {"version": 1},
        "bytes": {"sha256": "0" * 64},
    }
    if kind == "unsigned":
        return Signed(b"", b"")
    return sign(FOREIGN if kind == "foreign" else KEY, node.statement(**changes.get(kind, {})))


@pytest.mark.parametrize(("kind", "words"), WRONG)
def test_what_is_not_signed_as_it_must_be_is_refused_and_what_was_in_use_stays(
    node, kind, words
) -> None:
    node.bring()
    signed = wrong(node, kind)
    node.refuses(replace(node.request(), statement=signed.statement, signature=signed.signature),
                 words)  # fmt: skip
    node.refuses(
        BackboneRequest(node.fingerprint, node.payload, signed.statement, signed.signature), words
    )
    assert node.backbones.get(node.fingerprint) is not None


@given(index=st.integers(0, 2), number=st.integers(0, 10**9))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_of_statement_signature_or_payload_is_refused(node, index, number) -> None:
    signed = sign(KEY, node.statement())
    parts = [signed.statement, signed.signature, node.payload]
    part = bytearray(parts[index])
    bit = number % (8 * len(part))
    part[bit // 8] ^= 1 << bit % 8
    parts[index] = bytes(part)
    node.refuses(BackboneRequest(node.fingerprint, parts[2], *parts[:2]), "is refused")
    assert (node.files(), node.loads) == ({}, 0)


def test_another_network_that_states_the_fingerprint_is_not_even_loaded(node) -> None:
    tensors, spec, fingerprint = unpack(node.payload)
    forged = pack({**tensors, "module": tensors["module"][:-1]}, spec, fingerprint)
    assert unpack(forged)[2] == node.fingerprint
    node.refuses(
        node.request(data=forged), r"its [\d,]+ bytes are not those of the signed backbone mine"
    )
    assert node.loads == 0


def test_the_cache_is_no_way_around(node, trained) -> None:
    """What lies there without a signature, or beside one for other bytes, is never loaded."""
    file = backbone_file(node.cache, node.fingerprint)
    trained.backbone.save(file.parent)
    assert node.backbones.get(node.fingerprint) is None
    file.unlink()  # where its bytes are the signed ones, the signature alone is missing
    node.bring()
    tensors, spec, fingerprint = unpack(node.payload)
    module = tensors["module"].copy()
    module[100] ^= 1
    forged = pack({**tensors, "module": module}, spec, fingerprint)
    assert len(forged) == len(node.payload)
    loads = node.loads
    file.write_bytes(forged)
    assert node.backbones.get(node.fingerprint) is None
    assert not node.backbones.receive(node.request())  # so that the server brings it
    assert node.loads == loads
    assert node.backbones.receive(node.request(data=node.payload))


@pytest.mark.parametrize(
    ("kind", "words"), [pair for pair in WRONG if pair[0] not in ("unsigned", "bytes")]
)
def test_what_is_cached_is_checked_each_time_it_is_used(node, kind, words) -> None:
    node.bring()
    statement = backbone_file(node.cache, node.fingerprint).with_name("signed")
    statement.write_bytes(wrong(node, kind).to_file())
    loads = node.loads
    with pytest.raises(SignatureError, match=words):
        node.backbones.get(node.fingerprint)
    assert node.loads == loads


def test_an_older_backbone_that_is_still_cached_is_not_used_again(node) -> None:
    """The operator has signed another one for the experiment: the server cannot go back."""
    node.bring()
    node.backbones.trust.accept(node.statement(version=3, sha256="0" * 64))
    with pytest.raises(SignatureError, match="backbone mine version 2 is older than version 3"):
        node.backbones.get(node.fingerprint)
    again = sign(KEY, node.statement(version=4))
    assert node.backbones.receive(node.request(again))
    assert node.backbones.get(node.fingerprint) is not None


def test_other_experiments_have_versions_of_their_own(node) -> None:
    node.bring()
    node.backbones.trust.accept(node.statement(name="other", version=9))
    node.backbones.trust.accept(node.statement(kind="model", version=9))
    assert node.backbones.get(node.fingerprint) is not None


def test_a_signed_backbone_that_is_damaged_all_the_same_is_not_kept(node) -> None:
    data = node.payload[:-1]
    signed = sign(KEY, node.statement(data))
    with pytest.raises(BackboneError, match="damaged"):
        node.backbones.receive(node.request(signed, data))
    assert node.files() == {}


@pytest.mark.parametrize("last", ["backbone.safetensors", "signed", "mine"])
def test_a_device_that_dies_between_two_files_goes_on_and_never_back(
    node, monkeypatch, last
) -> None:
    node.bring()
    write = client.backbones.write_atomic

    def dies(path: Path, data: bytes, **options: bool) -> None:
        if path.name == last:
            raise KeyboardInterrupt
        write(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client.backbones, "write_atomic", dies)
        patch.setattr("common.readback.write_atomic", dies)
        request = node.request(sign(KEY, node.statement(version=3)), node.payload)
        with pytest.raises(KeyboardInterrupt):
            node.backbones.receive(request)
    assert node.backbones.get(node.fingerprint) is not None
    if last == "mine":  # what it has used it has accepted
        node.refuses(node.request(), "version 2 is older than version 3")
    assert node.backbones.receive(request)
    node.refuses(node.request(), "version 2 is older than version 3")


def test_what_was_accepted_last_cannot_be_read_is_an_error(node) -> None:
    node.bring()
    (node.cache / "accepted" / "backbone" / "mine").write_text("2")
    with pytest.raises(SignatureError, match="backbone/mine is damaged"):
        node.backbones.get(node.fingerprint)


def test_without_keys_what_is_not_signed_is_taken(tmp_path, node, payload) -> None:
    backbones = Backbones(tmp_path / "open", None)
    assert not backbones.receive(BackboneRequest(node.fingerprint))
    assert backbones.receive(BackboneRequest(node.fingerprint, payload))
    assert backbones.get(node.fingerprint) is not None
