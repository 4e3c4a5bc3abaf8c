"""Files of devices and phones."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from PIL import Image

from client import memory as client_state
from client.app import host_of
from client.delivery import shelf as device_shelf
from client.held_out import held_out
from client.known_head import with_head
from client.memory import ClientMemory, with_constant
from client.phone.blobs import Blobs
from client.phone.kept import Kept, Result, Work
from client.phone.link import Link
from client.trust import Trust
from common.datasets.folder import load_folder
from common.files import write_atomic
from common.messages import DescribeRequest, HeadChanges, TrainRequest, content_id, head_id
from common.phones.phones_pb2 import DONE, Blob, Description, Submission, Task
from common.signing.statement import Signed, Statement, read_signed
from common.signing.trust import TrustedKeys, read_public_key
from common.types import ClientPlan, Head, LocalTraining
from simulations.deploy.certificates import write_device_keys
from simulations.deploy.device_keys import read_key
from simulations.deploy.signing_key import sign
from tests.readback.deployments import artifact
from tests.readback.rows import Make, Row, into, is_none

ROWS: dict[str, Make] = {}
row = into(ROWS)


def images(folder: Path) -> Path:
    for label in ("ant", "bee"):
        for i in range(6):
            file = folder / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (i, 9, 9)).save(file)
    return folder


@row("images.json of a device")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    folder, memory = images(tmp / "images"), tmp / "images.json"
    load_folder(folder, classes=("ant", "bee"), memory=memory)

    def read() -> Any:
        dataset = load_folder(folder, classes=("ant", "bee"), memory=memory)
        return dataset.content_key, dataset.labels, dataset.train

    return Row([memory], read)


@row("task of a device")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    folder = images(tmp / "images")
    host = host_of({"data": f"folder:{folder}", "state": str(tmp / "state")}, {}, 7)
    host.describe(DescribeRequest("1a2b", ("ant", "bee"), 0.5, 3, "2026"))

    def read() -> Any:
        host.tell("1a2b", "words")  # needs the task, and refuses without
        data = load_folder(folder, classes=("ant", "bee"))
        return held_out(data, tmp / "state", data.classes, max_examples=0)

    assert read() is not None
    return Row([*(tmp / "state" / "clients").rglob("task.json")], read)


@row("memory of a client")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    memory = ClientMemory(tmp)
    arrays = {"control": np.arange(6, dtype=np.float32).reshape(2, 3)}
    memory.save(7, 1, arrays, counted_round=0, oldest_round=0)
    return Row([*(tmp / "7").iterdir()], lambda: memory.load(7, 1, {"control": (2, 3)}))


@row("constant arrays of a plan")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    arrays = {"preconditioner": np.ones((2, 2), np.float32)}
    first = TrainRequest(
        Head.zeros(2, 2), ClientPlan(constant=arrays), LocalTraining(0.1, 1, 8), (7,), 1, "r", 0,
        "f", "sum", constant_id=content_id(arrays), has_constant=True,
    )  # fmt: skip
    with_constant(first, tmp, durable=True)

    def read() -> Any:
        client_state._constant.cache_clear()
        found = with_constant(replace(first, has_constant=False), tmp, durable=True)
        return found and dict(found.plan.constant)

    return Row([*tmp.iterdir()], read, is_none)


@row("known head of a device")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    whole = TrainRequest(
        Head.zeros(2, 2), ClientPlan(downlink="drive"), LocalTraining(0.1, 1, 8), (7,), 4, "r", 0,
        "f", "sum",
    )  # fmt: skip
    with_head(whole, tmp)
    nothing = HeadChanges(4, (b"",), (2, 3), head_id(whole.head))

    def read() -> Any:
        found = with_head(replace(whole, round_number=5, changes=nothing), tmp)
        return found and found.head.matrix.tobytes()

    return Row([*tmp.iterdir()], read, is_none)


@row("message that a phone keeps")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    kept = Kept(tmp)
    submission = Submission(task="5" * 32, outcome=DONE, num_examples=3)
    kept.begin(Work(Task(id="5" * 32, round=4), 1e9))
    kept.finish(Result(submission, {"delta": b"1234"}))
    kept.describe(Description(id="6" * 64, client=7))

    def read() -> Any:
        work, result = kept.work(), kept.result("5" * 32)
        return (
            work and (work.task.SerializeToString(), work.until),
            result and (result.submission.SerializeToString(), result.arrays),
            {name: found.SerializeToString() for name, found in kept.descriptions().items()},
        )

    original = read()

    def rebuilt(found: Any) -> bool:  # one of the three is missing; the others are whole
        changed = [new for new, old in zip(found, original, strict=True) if new != old]
        return changed in ([None], [{}])

    paths = [tmp / "task", tmp / "result", *(tmp / "descriptions").iterdir()]
    return Row(paths, read, rebuilt)


@row("blob of a phone")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    digest = hashlib.sha256(b"a head").hexdigest()
    write_atomic(tmp / digest, b"a head")
    blobs = Blobs(tmp, Link("nowhere:1", authority=tmp, token=tmp), 100)

    def read() -> Any:
        return blobs._read(Blob(sha256=digest, size=6))

    return Row([tmp / digest], read, is_none)


def signed(tmp: Path) -> tuple[Signed, Statement, Path]:
    """A statement, its signature, and the folder with the key that made it."""
    key, trusted = ec.generate_private_key(ec.SECP256R1()), tmp / "trusted"
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_atomic(trusted / "sign.pub", public)
    words = "a" * 64, "b" * 64, "c" * 64
    statement = Statement("model", "model.pt", 9, 5, *words, 1795873446, 10**10)
    return sign(key, statement), statement, trusted


@row("signed statement")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    words, _, trusted = signed(tmp)
    path, keys = tmp / "signed", TrustedKeys.read(trusted)
    path.write_bytes(words.to_file())
    return Row([path], lambda: keys.verify(read_signed(path), str(path), expires=False))


@row("public signing key")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    path = signed(tmp)[2] / "sign.pub"
    return Row([path], lambda: read_public_key(path).public_numbers())


@row("public key of a device")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    path = tmp / "hall.pub"
    write_device_keys(tmp / "device.key", path)
    return Row([path], lambda: read_key(path))


@row("version that a device accepted last")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    _, statement, trusted = signed(tmp)
    trust = Trust.of(trusted, tmp / "state")
    trust.accept(statement)
    (path,) = (tmp / "state").rglob("model.pt")
    return Row([path], lambda: trust._last("model", statement.name))


@row("version that a device rolled back")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    shelf = device_shelf.Shelf(tmp, "model.pt")
    for version in (1, 2):
        artifact(shelf.path, version)
    shelf.use(2)
    shelf.roll_back()
    return Row([shelf.path / "held"], lambda: shelf.held)
