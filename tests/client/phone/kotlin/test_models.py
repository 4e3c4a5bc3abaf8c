"""Finished models reach a Kotlin phone through a real gateway, also if it is cut off or killed."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from common.delivery.tokens import issue_token
from common.phones.phones_pb2 import Model
from common.phones.wire import PART
from common.signing.statement import Statement
from server.delivery.publish import Sign, artifacts_of
from simulations.deploy.signing_key import sign
from tests.client.gateway.actors import FINGERPRINT, Deployment, make_deployment
from tests.client.phone.conftest import FakeGateway, Standing, sha256
from tests.client.phone.kotlin.conftest import MODEL, Updated
from tests.client.phone.kotlin.trusting import trust
from tests.delivery.test_signed import CURRENT, FOREIGN, by

pytestmark = pytest.mark.slow

Fetch = Callable[..., Updated]
Publish = Callable[..., bytes]
CONTENT = bytes(range(256)) * 3000  # three parts
CARD = json.dumps({"classes": ["a"], "fingerprint": FINGERPRINT}).encode()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with closing(make_deployment(tmp_path / "deployment")) as made:
        made.start()
        yield made


@pytest.fixture
def publish(deployment: Deployment) -> Publish:
    """Publishes a model of these bytes; gives them."""

    def make(content: bytes, *, sign: Sign | None = None, note: str = "") -> bytes:
        card = json.dumps({"fingerprint": FINGERPRINT, "note": note})
        deployment.put_up(MODEL, content, card, sign)
        return content

    return make


@pytest.fixture
def kim(deployment: Deployment, tmp_path: Path) -> Path:
    """The folder of a phone of the deployment."""
    path = tmp_path / "kim"
    path.mkdir()
    issue_token(deployment.place.delivery, "kim", path / "phone.token")
    shutil.copy(deployment.place.server / "ca.crt", path / "ca.crt")
    (path / "phone.toml").write_text(f'gateway = "127.0.0.1:{deployment.port}"\n')
    return path


def versions(folder: Path) -> set[str]:
    """The versions on a phone."""
    return {path.name for path in (folder / "state/models" / MODEL).glob("[0-9]*")}


def test_the_newest_model_comes_from_a_real_gateway_and_the_one_before_stays(
    publish: Publish, kim: Path, deployment: Deployment, fetch: Fetch
) -> None:
    found = fetch(kim)
    assert (found.model, found.problem) == (None, f"Latest: nothing is published as {MODEL}")
    assert not list((kim / "state").rglob("*.*[!k]"))
    first, shelf = publish(CONTENT), kim / "state/models" / MODEL
    found = fetch(kim)
    assert found == Updated(shelf / "1" / MODEL, is_new=True, problem="")
    assert found.model
    assert found.model.read_bytes() == first
    assert json.loads((shelf / "1/card.json").read_text())["fingerprint"] == FINGERPRINT
    assert (shelf / "current").read_text() == "1\n"
    assert fetch(kim) == Updated(found.model, is_new=False, problem="")
    second = publish(b"another", note="x" * 600_000)  # its card is fetched in parts
    found = fetch(kim)
    assert found == Updated(shelf / "2" / MODEL, is_new=True, problem="")
    assert found.model
    assert found.model.read_bytes() == second
    assert json.loads((shelf / "2/card.json").read_text())["note"] == "x" * 600_000
    assert (shelf / "1" / MODEL).read_bytes() == first
    third = publish(b"a third one")
    fetch(kim)
    assert (shelf / (shelf / "current").read_text().strip() / MODEL).read_bytes() == third
    assert versions(kim) == {"2", "3"}
    assert not list((shelf / ".fetched").iterdir())
    # Without the gateway the app still finds its model.
    deployment.stop()
    found = fetch(kim)
    assert (found.model, found.is_new) == (shelf / "3" / MODEL, False)
    assert found.problem


def test_a_real_gateways_models_must_be_signed_for_a_phone_that_trusts_keys(
    publish: Publish, kim: Path, deployment: Deployment, fetch: Fetch
) -> None:
    trust(kim, CURRENT)
    publish(b"unsigned")
    assert fetch(kim) == Updated(None, is_new=False, problem="unsigned-model: it is not signed")
    publish(b"foreign", sign=by(FOREIGN))
    assert "by a key that the app trusts" in fetch(kim).problem
    content = publish(b"signed", sign=by(CURRENT))
    model = kim / "state/models" / MODEL / "3" / MODEL
    assert fetch(kim) == Updated(model, is_new=True, problem="")
    assert model.read_bytes() == content
    # A statement of the same version may come again, with a later end.
    publish(content, sign=by(CURRENT, expires=int(time.time()) + 99_999))
    assert fetch(kim) == Updated(model, is_new=False, problem="")
    # Whoever can write on the server brings an older one back, or another one as the same version.
    shelf = artifacts_of(deployment.place.delivery) / MODEL
    for number in (2, 3):
        shutil.rmtree(shelf / str(number))
    publish(b"older", sign=by(CURRENT))
    found = fetch(kim)
    assert (found.model, found.is_new) == (model, False)
    assert found.problem == "unsigned-model: version 2 is older than 3, which was accepted before"
    publish(b"other bytes", sign=by(CURRENT))
    assert fetch(kim).problem == "unsigned-model: another file was accepted as version 3 before"
    assert model.read_bytes() == content


def offer(gateway: FakeGateway, content: bytes = CONTENT, version: int = 3, **more: Any) -> None:
    """Let the gateway that a test controls have a model."""
    gateway.model = Model(
        name=MODEL, version=version, file=gateway.blob(content),
        card=gateway.blob(CARD, inline=True), **more,
    )  # fmt: skip


def test_what_has_come_before_a_broken_connection_or_a_kill_is_not_fetched_again(
    gateway: FakeGateway, standing: Standing, folder: Path, fetch: Fetch,
    java: Callable[..., list[str]],
) -> None:  # fmt: skip
    offer(gateway)
    gateway.failures["fetch"] = [None, grpc.StatusCode.UNAVAILABLE]
    found = fetch(folder)
    assert (found.model, found.problem) == (None, "Fetch: planned by the test")
    command = java("dev.fedhead.jvm.MainKt", folder, "--model", MODEL)
    programs = []
    gateway.failures["fetch"] = [None, grpc.StatusCode.UNAVAILABLE]

    def kill(_: FakeGateway) -> None:
        programs[0].kill()
        programs[0].wait()

    gateway.on_failure = kill
    programs.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    assert programs[0].wait(60) < 0
    assert fetch(folder).is_new
    assert [request.offset for request in gateway.fetched] == [0, PART, PART, 2 * PART, 2 * PART]
    assert fetch(folder) == Updated(
        folder / "state/models" / MODEL / "3" / MODEL, is_new=False, problem=""
    )
    assert len(gateway.fetched) == 5


def test_a_full_disk_keeps_what_has_come(gateway: FakeGateway, folder: Path, fetch: Fetch) -> None:
    offer(gateway)
    found = fetch(folder, under=["prlimit", "--fsize=400000"])
    assert found.model is None
    assert found.problem
    (partial,) = (folder / "state/models" / MODEL / ".fetched").iterdir()
    assert partial.read_bytes() == CONTENT[: partial.stat().st_size]
    assert partial.stat().st_size >= PART
    before = len(gateway.fetched)
    found = fetch(folder)
    assert found.model
    assert found.model.read_bytes() == CONTENT
    assert gateway.fetched[before].offset >= PART


@dataclass(frozen=True)
class Ended:
    """What a fetching that was ended has: versions in use and before it; None if it was killed."""

    version: str
    before: str
    is_new: bool
    problem: str


@pytest.fixture
def end(java: Callable[..., list[str]], folder: Path) -> Callable[[str, int], Ended | None]:
    """Ends a fetching before the nth change of a file, or when its owner says no the nth time."""

    def call(how: str, number: int) -> Ended | None:
        java_, *command = java("dev.fedhead.Fetching", folder, MODEL, how, number)
        done = subprocess.run(
            [java_, "-Djava.security.manager=allow", *command],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        if "Security Manager is not supported" in done.stdout + done.stderr:
            pytest.skip("this Java has no security manager to count changes of files; 23 has")
        if done.returncode == 137:
            return None
        assert done.returncode == 0, done.stderr
        version, before, is_new, problem = done.stdout.strip().split(" ", 3)
        return Ended(version, before, is_new == "true", problem)

    return call


def test_its_owner_ends_it_between_two_parts(
    gateway: FakeGateway, end: Callable[[str, int], Ended]
) -> None:
    offer(gateway)
    assert end("allow", 2) == Ended("null", "null", False, "it was stopped; the next call goes on")
    assert [request.offset for request in gateway.fetched] == [0, PART]
    assert end("allow", 1) == Ended("3", "null", True, "null")
    assert [request.offset for request in gateway.fetched] == [0, PART, 2 * PART]


def test_a_phone_that_is_killed_before_any_change_of_a_file_has_the_old_model_or_the_new(
    gateway: FakeGateway, folder: Path, tmp_path: Path, end: Callable[[str, int], Ended | None]
) -> None:
    """After each kill the model is whole; and what is in use was accepted before."""
    key = ec.generate_private_key(ec.SECP256R1())
    trust(folder, key)
    old, new = CONTENT[:1000], CONTENT[::-1]

    def signed(content: bytes, version: int) -> None:
        now = int(time.time())
        statement = Statement(
            kind="model", name=MODEL, version=version, size=len(content), sha256=sha256(content),
            card=sha256(CARD), fingerprint=FINGERPRINT, created=now, expires=now + 9999,
        )  # fmt: skip
        made = sign(key, statement)
        offer(gateway, content, version, statement=made.statement, signature=made.signature)

    for version in (1, 2):
        signed(old, version)
        assert end("allow", 1000)
    state, shelf = folder / "state", folder / "state/models" / MODEL
    shutil.copytree(state, tmp_path / "kept")
    step, seen, followed = 0, set(), set()
    while True:
        signed(new, 3)
        ended = end("kill", step)
        current = int((shelf / "current").read_text())
        seen.add(current)
        content = {2: old, 3: new}[current]
        assert (shelf / str(current) / MODEL).read_bytes() == content
        assert (shelf / str(current) / "card.json").read_bytes() == CARD
        accepted = int((state / "accepted/model" / MODEL).read_bytes().split()[0])
        assert accepted >= current
        if not ended and (shelf / "3/.sums").exists():
            # Where it is followed by another one, the one before is the one that was in use.
            shutil.copytree(state, tmp_path / "killed")
            signed(old, 4)
            assert end("allow", 1000) == Ended("4", str(current), True, "null")
            assert versions(folder) == {str(current), "4"}
            followed.add(current)
            shutil.rmtree(state)
            (tmp_path / "killed").rename(state)
            signed(new, 3)
        assert end("allow", 1000) == Ended("3", "2", ended is None and current == 2, "null")
        assert (shelf / "3" / MODEL).read_bytes() == new
        assert versions(folder) == {"2", "3"}
        assert not list((shelf / ".fetched").iterdir())
        if ended:
            assert ended == Ended("3", "2", True, "null")
            break
        step += 1
        shutil.rmtree(state)
        shutil.copytree(tmp_path / "kept", state)
    assert step > 20
    assert seen == followed == {2, 3}


def test_a_version_that_is_only_half_there_is_none_to_go_back_to(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    """As after a kill while version 2 was put there, where version 3 is published meanwhile."""
    offer(gateway, version=1)
    fetch(folder)
    half = folder / "state/models" / MODEL / "2"
    half.mkdir()
    (half / MODEL).write_bytes(CONTENT)
    offer(gateway, b"a third one", version=3)
    assert fetch(folder).is_new
    assert versions(folder) == {"1", "3"}


def test_a_version_that_a_killed_update_had_only_put_there_is_none_to_go_back_to(
    gateway: FakeGateway, folder: Path, tmp_path: Path, fetch: Fetch
) -> None:
    """A kill before version 5 came into use; version 4 was in use when version 6 came."""
    shelf = folder / "state/models" / MODEL
    for version in (3, 4):
        offer(gateway, bytes([version]), version=version)
        fetch(folder)
    shutil.copytree(folder / "state", tmp_path / "before")
    offer(gateway, CONTENT, version=5)
    assert fetch(folder).is_new
    shelf.joinpath("5").rename(tmp_path / "5")
    shutil.rmtree(folder / "state")
    (tmp_path / "before").rename(folder / "state")
    (tmp_path / "5").rename(shelf / "5")
    offer(gateway, bytes([6]), version=6)
    assert fetch(folder).is_new
    assert versions(folder) == {"4", "6"}
    assert (shelf / "4" / MODEL).read_bytes() == bytes([4])


def test_on_a_small_disk_nothing_is_fetched_that_has_no_room(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    offer(gateway)
    state = folder / "state"
    state.mkdir()
    mount = f"mount -t tmpfs -o size=512k none {state}"
    space = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*space, mount], capture_output=True).returncode:
        pytest.skip("this system lets no user mount a small disk")
    found = fetch(folder, under=[*space, f'{mount} && exec "$@"', "sh"])
    assert found.model is None
    assert found.problem.startswith(f"a blob needs {len(CONTENT)} bytes on the disk, ")
    assert not gateway.fetched


def test_two_processes_do_not_fetch_at_the_same_time(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    offer(gateway)
    (folder / "state/models").mkdir(parents=True)
    with (folder / "state/models/.lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        found = fetch(folder)
    assert found.problem == "another process fetches models for this phone"
    assert not gateway.fetched
    assert fetch(folder).is_new


CARDS = [
    '{"fingerprint": "ab"}', '{"fingerprint":5}', "{}", "[]", '"fingerprint"', "",
    '["fingerprint", {"fingerprint": "no"}]', '{"a": {"fingerprint": "no"}, "b": "fingerprint"}',
    '{"a": "\\"fingerprint\\": \\"no\\"", "fingerprint" \n:\t"yes"}',
    '{"fingerprint": "first", "fingerprint": "last"}', '{"fingerprint": "x", "fingerprint": null}',
    '{"finger\\u0070rint": "\\u00e9\\n\\\\\\/ \U0001f600 \\ud83d\\ude00"}',
    '{"fingerprint": "unfinished', '{"fingerprint": "\\u12"}', '{"fingerprint": "\\', '{"a": "x"',
]  # fmt: skip


def test_a_cards_fingerprint_is_what_python_reads(ask: Callable[..., list[np.ndarray]]) -> None:
    cards = [*CARDS, '{"a": ' + "[" * 500_000 + "]" * 500_000 + ', "fingerprint": "deep"}']
    questions = [f"fingerprint {','.join(map(str, card.encode()))}" for card in cards]
    for card, got in zip(cards, ask(questions), strict=True):
        try:
            found = json.loads(card)["fingerprint"]
        except (ValueError, LookupError, TypeError):
            found = None
        except RecursionError:
            found = "deep"
        units = found.encode("utf-16-le") if isinstance(found, str) else None
        want = [-1] if units is None else np.frombuffer(units, "<u2").tolist()
        assert got.tolist() == want, card[:80]
