"""Whatever the program reads back is checked: flipped bytes end in words, or in the same result.

A kind of file joins by being made in the source (``JsonFile("kind")``, ``@own_check("kind")``, ...)
and fails here until it has a row below: how to make a real file of it, and who reads it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from PIL import Image
from safetensors.numpy import load_file

from client import memory as client_state
from client.app import host_of
from client.delivery import shelf as device_shelf
from client.gateway.figures import Figures
from client.gateway.place import Settings
from client.gateway.presence import Presence
from client.gateway.runs import Runs
from client.gateway.uploads import Uploads
from client.held_out import held_out
from client.known_head import with_head
from client.memory import ClientMemory, with_constant
from client.phone.blobs import Blobs
from client.phone.kept import Kept, Result, Work
from client.phone.link import Link
from client.trust import Trust
from common.backbone.cache import _from_key
from common.backbone.frozen import load_by_fingerprint, store
from common.config import Config, load_config, parse_overrides
from common.datasets.folder import load_folder
from common.delivery.tokens import device_of, issue_token
from common.delivery.versions import Artifact, read_artifact
from common.errors import DamagedError, FedheadError, RunError
from common.experiment import _cached_parts
from common.features import extract
from common.files import sha256_file, write_atomic
from common.messages import DescribeRequest, HeadChanges, TrainRequest, content_id, head_id
from common.phones import file_name
from common.phones.phones_pb2 import DONE, Blob, Description, Submission, Task
from common.privacy.accounting import _cached_figure
from common.privacy.ledger import Entry, Ledger
from common.privacy.secret import keep_secret
from common.signing.statement import Signed, Statement, read_signed
from common.signing.trust import TrustedKeys, read_public_key
from common.types import ClientPlan, Head, LocalTraining
from server.delivery.checkins import CheckIn, check_ins, save_check_in
from server.delivery.publish import exported as candidate
from server.delivery.reports import DeviceReport, save_report, survey
from server.export.card import BESIDE, FileFacts, card_path, read_card
from server.export.run_model import _kept, keep_backbone
from server.export.trained import TrainedModel
from server.record.accounts import Accounts
from server.record.checkpoint import load_latest, save_checkpoint
from server.record.events import EVENTS, event, event_log
from server.record.runfolder import (
    CLIENTS,
    HEAD,
    SUMMARY,
    MetricsLog,
    RunFolder,
    intact_rounds,
    write_confusion,
)
from server.record.trackers.mlflow import _RUN, known_run
from server.round.first_head import FormerHead, first_head, last_head
from server.round.roster import CLIENT, client_file, read_roster
from simulations.compare.pool import is_finished
from simulations.deploy import phone_files
from simulations.deploy.certificates import write_device_keys
from simulations.deploy.device_keys import read_key
from simulations.deploy.last_run import read_last_run, remember_run
from simulations.deploy.signing_key import sign
from simulations.report.runs import read_run
from simulations.run import open_run
from simulations.tune.search import tie
from simulations.tune.space import Range

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for room in ("common", "client", "server", "simulations", "fedhead")
    for path in (ROOT / room).rglob("*.py")
)
FLIPS = 20


@dataclass
class Row:
    """Files of a kind, and what reads them.

    Attributes:
        paths: each is damaged in turn.
        read: gives what the program goes on with.
        rebuilt: what it may go on with instead: nothing, or what was made again or left out.
    """

    paths: list[Path]
    read: Callable[[], Any]
    rebuilt: Callable[[Any], bool] = lambda _: False


Make = Callable[[Path, pytest.FixtureRequest], Row]
ROWS: dict[str, Make] = {}


def row(kind: str) -> Callable[[Make], Make]:
    return lambda make: ROWS.setdefault(kind, make)


def is_none(value: Any) -> bool:
    return value is None


# Gateways


@row("record of a gateway")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    run, _ = Runs(tmp).describe(DescribeRequest("r-1", ("a", "b"), 0.2, 7, "", 0, False, "f" * 64))
    run.counts = {5: (10, 2)}
    Runs(tmp).kept(run)()

    def read() -> Any:
        found = Runs(tmp).get("r-1")
        return found.request, found.counts

    return Row([tmp / "r-1"], read)


@row("fleet.json of a gateway")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    def figures() -> Figures:
        return Figures(tmp / "fleet.json", Presence(Settings()))

    first = figures()
    first.count("accepted")
    first.keep(first.pack())

    def read() -> Any:
        again = figures()
        again.restore()
        return dict(again.counters)

    return Row([tmp / "fleet.json"], read, lambda found: not found)


@row("upload of a phone")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    data = bytes(range(100))
    digest = hashlib.sha256(data).hexdigest()
    Uploads(tmp).add("task-1", digest, len(data), 0, data, 1)
    return Row([tmp / "task-1" / digest], lambda: Uploads(tmp).read("task-1", digest))


# Runs


def run_folder(path: Path) -> RunFolder:
    """A finished run of two rounds."""
    config = load_config(None, parse_overrides([f"out={path}"]))
    folder = RunFolder(path, config)
    folder.bind("f" * 64, ["ant", "bee"], "d" * 64)
    with MetricsLog(path, 0, durable=False) as log:
        for number in (1, 2):
            log.write(number, {"accuracy": 0.5, "uplink-bytes": 10})
    write_confusion(folder.confusion, np.array([[3, 2], [0, 5]]))
    HEAD.write(folder.head, {"weight": HEAD_.weight, "bias": HEAD_.bias})
    counts = {"train_label_counts": [[1, 2]], "test_examples": [3], "test_correct": [2]}
    CLIENTS.write(folder.clients, {"client": [0], **counts, "personal_correct": None})
    figures = {
        "centralized_accuracy": 0.9, "ridge_accuracy": 0.9, "client_accuracy_mean": 0.6,
        "client_accuracy_p10": 0.5,
        "client_accuracy_min": 0.5, "rounds": 2, "rejected_updates": 0,
        "seconds": {"rounds": 1.5}, "fingerprint": "f" * 64,
    }  # fmt: skip
    SUMMARY.write(folder.summary, figures)
    return folder


HEAD_ = Head(np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, -1], np.float32))


def file_of_a_run(name: str) -> Make:
    def make(tmp: Path, request: pytest.FixtureRequest) -> Row:
        run_folder(tmp / "run")
        return Row([tmp / "run" / name], lambda: read_run(tmp / "run"))

    return make


for name in (
    "summary.json",
    "clients.json",
    "confusion.json",
    "run.json",
    "metrics.jsonl",
    "config.toml",
):
    row(f"{name} of a run")(file_of_a_run(name))


@row("search.json of a search")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    base, space = Config(), {"train.lr": Range(0.01, 1.0)}
    tie(tmp, base, space)
    return Row([tmp / "search.json"], lambda: tie(tmp, base, space))


@row("mlflow.json of a run")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    _RUN.write(tmp / "mlflow.json", {"run-id": "1a2b"})
    return Row([tmp / "mlflow.json"], lambda: known_run(tmp))


@row("head.safetensors of a run")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    folder = run_folder(tmp / "run")
    return Row([folder.head], lambda: last_head(folder.path))


@row("backbone.safetensors of a run")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    keep_backbone(request.getfixturevalue("trained").backbone, tmp)

    def read() -> Any:
        found = _kept(tmp)
        return found and (found.fingerprint, found.spec, found.affine)

    return Row([*tmp.iterdir()], read, is_none)


@row("first-head.safetensors of a run")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    backbone = request.getfixturevalue("trained").backbone
    wide = Head.zeros(2, backbone.spec.num_features)
    FormerHead(wide, ("ant", "bee"), backbone.fingerprint, "runs/former").keep(tmp)
    (file,) = tmp.iterdir()
    return Row([file], lambda: first_head(tmp, backbone, ("bee", "ant")))


@dataclass(frozen=True, eq=False)
class State:
    total: np.ndarray
    accounts: np.ndarray


def checkpoints(folder: Path, *rounds: int) -> None:
    for number in rounds:
        state = State(np.arange(4.0) + number, Accounts.empty())
        save_checkpoint(
            folder, round_number=number, head=HEAD_, state=state, counters={"x": 1.5}, keep=3
        )


@row("checkpoint of a run")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    checkpoints(tmp, 1, 2)
    paths = sorted((tmp / "000002").iterdir())
    assert len(paths) == 4
    return Row(paths, lambda: load_latest(tmp), lambda found: found.round_number == 1)


@row("events.jsonl of a run")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    path = tmp / "events.jsonl"
    with event_log(path):
        for client in range(3):
            event("joined", "a device comes", client=client, num_examples=10 + client)
    original = [*EVENTS.read(path)]

    def read() -> list[Any]:
        return [line for line in EVENTS.read(path) if not isinstance(line, DamagedError)]

    return Row([path], read, lambda found: all(line in original for line in found))


@row("card beside an exported file")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    card = read_card(request.getfixturevalue("exported").path)
    model = tmp / "model.onnx"
    model.write_bytes(b"model")
    facts = FileFacts(bytes=5, sha256=sha256_file(model), runtime="none", processor="none")
    BESIDE.write(card_path(model), card.model_copy(update={"file": facts}).model_dump(mode="json"))
    return Row([card_path(model)], lambda: candidate(model, tmp / "delivery", name="m").card)


@row("card inside an exported file")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    path = tmp / "model.pt"
    path.write_bytes(request.getfixturevalue("exported").path.read_bytes())
    return Row([path], lambda: read_card(path).to_json())


# Caches


@row("partition in the cache")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    request.getfixturevalue("monkeypatch").setenv("FEDHEAD_CACHE", str(tmp))
    parts = [np.arange(5), np.arange(5, 9)]
    _cached_parts("0" * 64, lambda: parts)
    return Row([*(tmp / "partitions").iterdir()], lambda: _cached_parts("0" * 64, lambda: parts))


@row("features in the cache")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    trained: TrainedModel = request.getfixturevalue("trained")

    def read() -> Any:
        images = trained.images
        return extract(trained.backbone, lambda i: images[i], 2, content_key="k", cache=tmp)

    read()
    (folder,) = (tmp / "features").iterdir()
    return Row(sorted(folder.iterdir()), read)


@row("backbone in the cache")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    backbone = request.getfixturevalue("trained").backbone

    def read() -> Any:
        found = load_by_fingerprint(backbone.fingerprint, tmp)
        return found and (found.fingerprint, found.spec, found.affine)

    return Row([*store(backbone, tmp).iterdir()], read, is_none)


@row("key of a backbone in the cache")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    backbone = request.getfixturevalue("trained").backbone
    store(backbone, tmp)
    file = tmp / "backbones" / "keys" / "0"
    write_atomic(file, backbone.fingerprint.encode())

    def read() -> Any:
        found = _from_key(file, tmp)
        return found and found.fingerprint

    return Row([file], read, is_none)


# Devices


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


# Privacy


@row("privacy-ledger.jsonl of a run")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    ledger = Ledger(tmp / "privacy-ledger.jsonl")
    for number in (1, 2, 3):
        ledger.charge(Entry(number, "9f86", "2c26", "everyone", 3.3, 500, 0.19, 1e-5))
    # A file that ends early cannot be told from one whose writer was killed.
    return Row([ledger.path], lambda: ledger.entries, lambda found: len(found) < 3)


@row("privacy.secret of a run")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    keep_secret(tmp / "privacy.secret")
    return Row([tmp / "privacy.secret"], lambda: keep_secret(tmp / "privacy.secret"))


@row("figure of privacy in the cache")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    request.getfixturevalue("monkeypatch").setenv("FEDHEAD_CACHE", str(tmp))
    question = {"of": "epsilon", "z": 2.0}
    _cached_figure(question, lambda: 5.5)
    # What is damaged is computed again.
    return Row([*(tmp / "privacy").iterdir()], lambda: _cached_figure(question, lambda: 5.5))


# Deployments


def artifact(shelf: Path, version: int = 1) -> Artifact:
    """A version on a shelf."""
    folder = shelf / str(version)
    folder.mkdir(parents=True)
    (folder / shelf.name).write_bytes(b"model")
    sha256 = sha256_file(folder / shelf.name)
    made = Artifact(shelf.name, version, 5, sha256, '{"fingerprint": "f"}')
    made.describe(folder)
    return made


@row("artifact.json of a published version")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    artifact(tmp / "m")
    return Row([tmp / "m" / "1" / "artifact.json"], lambda: read_artifact(tmp / "m", 1))


@row("file of a published version")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    made = artifact(tmp / "m")
    path = made.path(tmp / "m")
    # What is damaged is not delivered, and fetched again.
    return Row([path], lambda: made.damage(path), bool)


@row("report of a device")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    made = artifact(tmp / "artifacts" / "m")
    save_report(tmp, made, "hall", DeviceReport(12, 0.75, True))
    return Row([*(tmp / "reports").rglob("*.json")], lambda: survey(tmp)[0].reports)


@row("check-in of a device")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    save_check_in(tmp, "hall", CheckIn("fedhead 0.1.0", "0" * 64, {"m": 3}))
    return Row([tmp / "check-ins" / "hall.json"], lambda: check_ins(tmp), lambda found: not found)


@row("hash of a device's token")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    issue_token(tmp, "hall", tmp / "token")
    token = (tmp / "token").read_text().strip()
    return Row([tmp / "tokens" / "hall"], lambda: device_of(tmp, token), is_none)


@row("client id of a device")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    CLIENT.write(client_file(tmp, "hall"), {"client": 12345678})
    (tmp / "devices" / "hall.pub").write_text("a key")
    return Row([client_file(tmp, "hall")], lambda: read_roster(tmp), lambda found: not found)


@row("last-run.json of a deployment")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    (tmp / "run").mkdir()
    remember_run(tmp, tmp / "run")
    return Row([tmp / "last-run.json"], lambda: read_last_run(tmp))


@row("about.json of a backbone for phones")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    about = {"classes": ["a"], "version": "1"}
    for kind in ("executorch", "lite"):
        (tmp / file_name(kind, ["a"])).touch()
    file = phone_files._about_file(tmp, ["a"])
    phone_files._ABOUT.write(file, about | {"files": phone_files._digests(tmp, ["a"])})

    def read() -> list[str]:
        return phone_files.lacking(tmp, about)  # "torch" is always among them: there is none

    return Row([file], read, lambda found: found == ["torch", "executorch", "lite"])


# The rules


def damaged(data: bytes, seed: str) -> Iterator[bytes]:
    """The content with single bits flipped, with single bytes replaced, and cut off."""
    draw = random.Random(seed)
    for i in range(FLIPS):
        changed = bytearray(data)
        at = draw.randrange(len(data))
        changed[at] ^= 1 << draw.randrange(8) if i % 2 else draw.randrange(1, 256)
        yield bytes(changed)
    yield b""
    yield data[: len(data) // 2]


def plain(value: Any) -> Any:
    """Something that can be compared, with every bit of its arrays."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [plain(item) for item in vars(value).values()]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_a_damaged_file_is_rebuilt_or_refused_in_a_line_and_never_another_result(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = ROWS[kind](tmp_path, request)
    original = plain(made.read())
    for path in made.paths:
        data = path.read_bytes()
        for content in damaged(data, f"{kind} {path.name}"):
            path.write_bytes(content)
            try:
                found = made.read()
            except FedheadError as exc:
                problem = str(exc)
            else:
                problem = ""
                assert plain(found) == original or made.rebuilt(found), content[:500]
            assert not problem or path.name in problem or path.parent.name in problem
            assert "\n" not in problem
            path.write_bytes(data)
    assert plain(made.read()) == original


def kinds(path: Path) -> Iterator[str]:
    makers = {"JsonFile", "JsonLines", "ArraysFile", "own_check"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in makers:
            yield ast.literal_eval(node.args[0])  # a kind is named where it is made


def test_every_kind_of_file_has_its_bytes_flipped() -> None:
    found = [kind for path in SOURCES for kind in kinds(path)]
    assert sorted(found) == sorted(ROWS)


# What a run does about it


def test_a_damaged_line_of_metrics_loses_no_round_unsaid(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    file = folder.path / "metrics.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    assert intact_rounds(folder.path)[0] == 2
    for content, intact, why in (
        (first[:9] + b"\xff" + first[10:] + second, 0, "line 1 is damaged"),
        (first + second[:-30], 1, "ends after round 1"),
        (second, 0, "line 1: round 2"),
        (b"", 0, "ends after round 0"),
    ):
        file.write_bytes(content)
        rounds, because = intact_rounds(folder.path)
        assert rounds == intact
        assert because.startswith(f"{file}")
        assert why in because


def test_a_resumed_run_goes_back_to_where_its_metrics_are_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints(tmp_path, 3, 4, 5)
    found = load_latest(tmp_path, rounds=4, because="metrics.jsonl, line 5 is damaged")
    assert found is not None
    assert found.round_number == 4
    assert "000005 is skipped (metrics.jsonl, line 5 is damaged)" in caplog.text
    with pytest.raises(RunError, match="line 3 is damaged, and the oldest checkpoint is of"):
        load_latest(tmp_path, rounds=2, because="metrics.jsonl, line 3 is damaged")


def test_other_tools_read_these_files_as_what_they_are(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    head = load_file(folder.head)
    assert {name: array.shape for name, array in head.items()} == {"weight": (2, 3), "bias": (2,)}
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]
    assert json.loads(folder.summary.read_text())["rounds"] == 2
    again = load_config(folder.path / "config.toml")
    assert (folder.path / "config.toml").read_text() == again.to_toml()


def test_a_changed_configuration_of_a_run_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    file = folder.path / "config.toml"
    file.write_text(file.read_text().replace("seed = 0", "seed = 1", 1))
    with pytest.raises(DamagedError, match="config.toml is damaged .* keeps its configuration"):
        open_run(folder.path)
    with pytest.raises(RunError, match="holds a run of another configuration"):
        RunFolder(folder.path, load_config(file))


def test_a_device_keeps_the_features_that_it_used_last(
    tmp_path: Path, trained: TrainedModel
) -> None:
    folder, state = images(tmp_path / "images"), tmp_path / "state"
    host = host_of({"data": f"folder:{folder}", "state": str(state), "client-id": 7}, {}, 7)
    for day in range(10):
        Image.new("RGB", (4, 4), (200, day, 0)).save(folder / "ant" / f"new{day}.png")
        host.describe(DescribeRequest("1a2b", ("ant", "bee"), 0.5, 3, "2026"))
        host.train_features(7, trained.backbone, "1a2b")
    assert len([*(state / "features").iterdir()]) == 8


def test_a_comparison_runs_a_damaged_cell_again(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    assert is_finished(folder.path)
    for path in (folder.summary, folder.clients, folder.path / "metrics.jsonl"):
        data = path.read_bytes()
        path.write_bytes(data[:-40])
        assert not is_finished(folder.path)
        path.write_bytes(data)
    assert is_finished(folder.path)
    folder.summary.unlink()
    assert not is_finished(folder.path)
