"""A device that trusts keys takes signed models only, from a server that may say anything."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from client.delivery.fetch import Fetched, fetch
from client.delivery.shelf import Shelf
from client.trust import Trust
from common.delivery.versions import Artifact, known_versions, read_artifact, renew
from common.errors import DeliveryError, SignatureError
from common.signing.statement import Signed
from common.signing.trust import TrustedKeys, key_id
from server.delivery.publish import Candidate, earlier, publish_version
from simulations.deploy.signing_key import sign

ROOT = Path(__file__).parent.parent.parent
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
CURRENT, FOLLOWING, FOREIGN = KEYS


def by(key: ec.EllipticCurvePrivateKey, **changes: object) -> Callable[..., Signed]:
    """Signs a candidate, or what differs from it so."""

    def make(candidate: Candidate, artifact: Artifact) -> Signed:
        now = int(time.time())
        statement = candidate.statement(artifact, now, now + 9999)
        return sign(key, replace(statement, **changes))

    return make


class Device:
    """A device that trusts two keys, and a deployment that it fetches from."""

    def __init__(self, deployment: Any, port: int, path: Path) -> None:
        self.deployment, self.port = deployment, port
        keys = {key_id(key.public_key()): key.public_key() for key in (CURRENT, FOLLOWING)}
        self.trust = Trust(TrustedKeys(keys), path / "state" / "accepted")
        self.shelf = Shelf(deployment.models, "model.bin")

    def fetch(self) -> Fetched:
        with self.deployment.remote(self.port) as remote:
            return fetch(remote, self.shelf, keep=3, trust=self.trust)

    def published(self, version: int = 1) -> Artifact:
        return read_artifact(self.deployment.file().parents[1], version)

    def offer(self, artifact: Artifact) -> None:
        """The server says this of a version, whatever it is."""
        artifact.describe(self.deployment.file(artifact.version).parent)

    def refuses(self, words: str) -> None:
        """A fetch is refused in one line; what was in use stays, and nothing else is kept."""
        before = {path: path.read_bytes() for path in self.files()}
        with pytest.raises((SignatureError, DeliveryError), match=words) as caught:
            self.fetch()
        assert "\n" not in str(caught.value)
        assert {path: path.read_bytes() for path in self.files()} == before

    def files(self) -> list[Path]:
        found = [*self.shelf.path.rglob("*"), *self.trust.accepted.rglob("*")]
        return [path for path in found if path.is_file() and path.name != ".lock"]


@pytest.fixture
def device(deployment, serve, tmp_path) -> Device:
    return Device(deployment, serve(), tmp_path)


def test_a_signed_model_is_fetched_and_renewed_without_being_fetched_again(device) -> None:
    data = device.deployment.publish(1, sign=by(CURRENT))
    assert device.fetch().model.read_bytes() == data
    kept = read_artifact(device.shelf.path, 1)
    assert kept == device.published()
    device.deployment.publish(1, sign=by(FOLLOWING))
    again = device.fetch()
    assert (again.version, again.received_bytes, again.note) == (1, 0, "up to date")
    assert read_artifact(device.shelf.path, 1) == device.published() != kept


def test_what_is_not_signed_is_refused(device) -> None:
    first = device.deployment.publish(1, sign=by(CURRENT))
    device.fetch()
    device.deployment.publish(2)
    device.refuses("model.bin version 2 is refused: it is not signed")
    assert device.shelf.model.read_bytes() == first


def test_what_a_foreign_key_has_signed_is_refused(device) -> None:
    device.deployment.publish(1, sign=by(FOREIGN))
    device.refuses("model.bin version 1 is refused: it is not signed by")


def test_what_has_expired_is_refused_and_what_was_in_use_stays(device) -> None:
    first = device.deployment.publish(1, sign=by(CURRENT))
    device.fetch()
    past = int(time.time()) - 9999
    device.deployment.publish(2, sign=by(CURRENT, created=past - 1, expires=past))
    device.refuses("model.bin version 2 is refused: its signature expired on")
    assert device.shelf.model.read_bytes() == first


def test_a_device_whose_clock_is_far_off_says_so(device) -> None:
    ahead = int(time.time()) + 9999
    device.deployment.publish(1, sign=by(CURRENT, created=ahead, expires=ahead + 1))
    device.refuses("this machine's clock it is .*: set it")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "other.bin"),
        ("version", 2),
        ("size", 299_999),
        ("sha256", "0" * 64),
        ("card", "0" * 64),
        ("fingerprint", "0" * 64),
    ],
)
def test_a_statement_about_something_else_is_refused_by_the_field_that_differs(
    device, field, value
) -> None:
    device.deployment.publish(1, sign=by(CURRENT, **{field: value}))
    device.refuses(f"model.bin version 1 is refused: its {field} is .*, but {value} was signed")


def test_a_statement_about_a_backbone_is_none_about_a_model(device) -> None:
    device.deployment.publish(1, sign=by(CURRENT, kind="backbone"))
    device.refuses("model.bin version 1 is refused: it was signed as a backbone")


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", 7), ("size", 299_999), ("sha256", "0" * 64), ("card", '{"classes": ["dog"]}')],
)
def test_a_server_that_says_something_else_than_was_signed_is_refused(device, field, value) -> None:
    device.deployment.publish(1, sign=by(CURRENT))
    said = replace(device.published(), **{field: value})
    if field == "version":
        folder = device.deployment.file().parent
        folder.rename(folder.with_name("7"))
    device.offer(said)
    device.refuses("model.bin version . is refused: its|its card has no fingerprint")


def test_other_bytes_than_were_signed_are_refused(device) -> None:
    """The server's own description agrees with the file, but the statement does not."""
    data = bytearray(device.deployment.publish(1, sign=by(CURRENT)))
    honest = device.published()
    data[1000] ^= 1
    device.deployment.file().write_bytes(data)
    device.offer(replace(honest, sha256=hashlib.sha256(data).hexdigest()))
    device.refuses(f"its sha256 is .*, but {honest.sha256} was signed")


def test_other_bytes_under_a_server_that_lies_about_them_are_refused(device, monkeypatch) -> None:
    data = bytearray(device.deployment.publish(1, sign=by(CURRENT)))
    data[-1] ^= 128
    device.deployment.file().write_bytes(data)
    monkeypatch.setattr("server.delivery.service._open", lambda artifact, shelf, _: open_(shelf))

    def open_(shelf: Path) -> Any:
        return (shelf / "1" / "model.bin").open("rb")

    device.shelf.path.mkdir(parents=True)
    with pytest.raises(DeliveryError, match="refused and removed: sha256"):
        device.fetch()
    assert device.files() == []


def test_an_older_version_is_refused_also_after_a_rollback_of_the_devices_own(device) -> None:
    device.deployment.publish(1, sign=by(CURRENT))
    device.fetch()
    second = device.deployment.publish(2, sign=by(CURRENT))
    device.fetch()
    newest = device.deployment.file(2).parent
    aside = newest.rename(newest.with_name("aside"))
    device.refuses("model.bin version 1 is older than version 2, which was accepted here before")
    assert device.shelf.roll_back().version == 1
    device.refuses("model.bin version 1 is older than version 2")
    aside.rename(newest)
    assert "was rolled back" in device.fetch().note
    device.deployment.publish(3, sign=by(CURRENT))
    assert device.fetch().version == 3
    assert device.shelf.roll_back().version == 2
    assert device.shelf.model.read_bytes() == second


def test_a_rollback_passes_over_what_the_keys_have_not_signed(device, caplog) -> None:
    first = device.deployment.publish(1, sign=by(CURRENT))
    device.fetch()
    device.deployment.publish(2)  # fetched by a device without keys
    with device.deployment.remote(device.port) as remote:
        fetch(remote, device.shelf, keep=3)
    device.deployment.publish(3, sign=by(FOLLOWING))
    device.fetch()
    assert device.shelf.roll_back(device.trust).version == 1
    assert device.shelf.model.read_bytes() == first
    assert "version 2 is skipped: model.bin version 2 is refused: it is not signed" in caplog.text


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        (None, "is refused: it is not signed"),
        (by(FOREIGN), "is refused: it is not signed by"),
        (by(CURRENT, sha256="0" * 64), "is refused: its sha256 is"),
        (by(CURRENT, created=1, expires=2), "is refused: its signature expired on"),
    ],
)
def test_a_rollback_to_what_a_fetch_would_refuse_changes_nothing(device, sign, words) -> None:
    device.deployment.publish(1, sign=sign)
    with device.deployment.remote(device.port) as remote:
        fetch(remote, device.shelf, keep=3)
    second = device.deployment.publish(2, sign=by(CURRENT))
    device.fetch()
    before = {path: path.read_bytes() for path in device.files()}
    with pytest.raises(DeliveryError, match=f"no earlier version than 2 can be used.*{words}") as e:
        device.shelf.roll_back(device.trust)
    assert "\n" not in str(e.value)
    assert {path: path.read_bytes() for path in device.files()} == before
    assert (device.shelf.current, device.shelf.model.read_bytes()) == (2, second)


def test_an_older_version_is_refused_also_where_the_models_are_gone(device) -> None:
    for seed in (1, 2):
        device.deployment.publish(seed, sign=by(CURRENT))
        device.fetch()
    shutil.rmtree(device.deployment.models)
    shutil.rmtree(device.deployment.file(2).parent)
    with pytest.raises(SignatureError, match="is older than version 2"):
        device.fetch()


def test_a_server_that_has_lost_its_versions_goes_on_above_them(device, tmp_path) -> None:
    for seed in (1, 2):
        device.deployment.publish(seed, sign=by(CURRENT))
        device.fetch()
    candidate = earlier(device.deployment.folder, name="model.bin", version=1)
    kept = replace(candidate, source=shutil.copy(candidate.source, tmp_path / "kept"))
    shutil.rmtree(candidate.shelf)
    assert publish_version(kept, by(CURRENT)).artifact.version == 1
    device.refuses("model.bin version 1 is older than version 2")
    shutil.rmtree(candidate.shelf)
    assert publish_version(replace(kept, least=3), by(CURRENT)).artifact.version == 3
    assert device.fetch().note == "now model.bin version 3"


def test_other_bytes_as_the_same_version_are_refused_even_if_signed(device) -> None:
    first = device.deployment.publish(1, sign=by(CURRENT))
    device.fetch()
    shutil.rmtree(device.deployment.file().parent)
    device.deployment.publish(2, sign=by(CURRENT))
    device.refuses("model.bin version 1 is refused: another file was accepted as version 1")
    assert device.shelf.model.read_bytes() == first


def test_a_device_that_gets_keys_later_takes_nothing_older_than_it_has(device) -> None:
    trust, device.trust = device.trust, None
    with device.deployment.remote(device.port) as remote:
        for seed in (1, 2):
            device.deployment.publish(seed)
            fetch(remote, device.shelf, keep=3)
    device.trust = trust
    device.refuses("version 2 is refused: it is not signed")
    shelf = device.deployment.file().parents[1]
    aside = (shelf / "2").rename(shelf / "aside")
    first = read_artifact(shelf, 1)
    now = int(time.time())
    signed = sign(CURRENT, first.statement("model", "f" * 64, now, now + 99))
    renew(shelf, first, signed)
    device.refuses("model.bin version 1 is older than version 2")
    aside.rename(shelf / "2")
    device.deployment.publish(2, sign=by(CURRENT))
    assert device.fetch().note == "up to date"
    assert read_artifact(device.shelf.path, 2).signed


class Liar:
    """A server that says and sends what it likes."""

    def __init__(self, artifact: Artifact, data: bytes) -> None:
        self._artifact, self._data = artifact, data

    def latest(self, _name: str) -> Artifact:
        return self._artifact

    def download(self, _artifact: Artifact, offset: int) -> Iterator[bytes]:
        yield self._data[offset:]


DATA = bytes(range(256)) * 4
CARD = '{"fingerprint": "' + "f" * 64 + '"}'
HONEST = Artifact("model.bin", 5, len(DATA), hashlib.sha256(DATA).hexdigest(), CARD)
SIGNED = sign(CURRENT, HONEST.statement("model", "f" * 64, int(time.time()), int(time.time()) + 99))
PARTS = (SIGNED.statement, SIGNED.signature, CARD.encode(), DATA)


def takes(statement: bytes, signature: bytes, card: bytes, data: bytes, *, honest: bool) -> bool:
    """Whether a device puts into use what a server offers; not honest: its own facts match it."""
    artifact = replace(HONEST, card=card.decode("latin-1"), signed=Signed(statement, signature))
    if not honest:
        artifact = replace(artifact, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    keys = TrustedKeys({key_id(CURRENT.public_key()): CURRENT.public_key()})
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(Path(folder) / "models", "model.bin")
        trust = Trust(keys, Path(folder) / "accepted")
        try:
            fetch(Liar(artifact, data), shelf, keep=2, trust=trust, sleep=lambda seconds: None)
        except (SignatureError, DeliveryError):
            assert shelf.current == 0
            assert known_versions(shelf.path) == []
            assert not (Path(folder) / "accepted").exists()
            return False
        return shelf.model.read_bytes() == data


@given(st.integers(0, 8 * sum(map(len, PARTS)) - 1), st.booleans())
@settings(deadline=None)
def test_any_flipped_bit_of_statement_signature_card_or_file_is_refused(bit, honest) -> None:
    whole = bytearray(b"".join(PARTS))
    whole[bit // 8] ^= 1 << bit % 8
    ends = [0, *itertools.accumulate(map(len, PARTS))]
    changed = [bytes(whole[start:end]) for start, end in itertools.pairwise(ends)]
    assert not takes(*changed, honest=honest)


@pytest.mark.parametrize("size", [0, 1, len(DATA) - 1, len(DATA) + 1, 10 * len(DATA)])
def test_a_file_of_another_length_is_refused(size) -> None:
    assert takes(*PARTS, honest=True)
    data = (DATA * 10)[:size]
    assert not takes(*PARTS[:3], data, honest=True)
    assert not takes(*PARTS[:3], data, honest=False)


@pytest.mark.parametrize("work", ["publish", "renew", "new_key", "fetch", "deploy"])
def test_a_kill_at_any_step_leaves_nothing_half_written(tmp_path, work) -> None:
    """The script kills itself before each change of a file in turn, and looks at what is left."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), work, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3  # so many times was it killed


def test_earlier_content_comes_again_as_a_new_version(device) -> None:
    first = device.deployment.publish(1, sign=by(CURRENT))
    device.deployment.publish(2, sign=by(CURRENT))
    assert device.fetch().version == 2
    candidate = earlier(device.deployment.folder, name="model.bin", version=1)
    release = publish_version(candidate, by(CURRENT))
    assert (release.artifact.version, release.is_new) == (3, True)
    assert device.fetch().version == 3
    assert device.shelf.model.read_bytes() == first
    again = publish_version(
        earlier(device.deployment.folder, name="model.bin", version=1), by(CURRENT)
    )
    assert (again.artifact.version, again.is_new) == (3, False)
    with pytest.raises(DeliveryError, match="there is no version 9"):
        earlier(device.deployment.folder, name="model.bin", version=9)
    device.deployment.file(2).write_bytes(b"damaged")
    with pytest.raises(DeliveryError, match="2/model.bin is damaged"):
        earlier(device.deployment.folder, name="model.bin", version=2)
