"""Files of a run and of a search, with those that count its privacy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, load_config, parse_overrides
from common.errors import DamagedError
from common.files import sha256_file
from common.privacy.ledger import Entry, Ledger
from common.privacy.secret import keep_secret
from common.types import Head
from server.delivery.publish import exported as candidate
from server.export.card import BESIDE, FileFacts, card_path, read_card
from server.export.run_model import _kept, keep_backbone
from server.record.accounts import Accounts
from server.record.checkpoint import load_latest, save_checkpoint
from server.record.events import EVENTS, event, event_log
from server.record.runfolder import CLIENTS, HEAD, SUMMARY, MetricsLog, RunFolder, write_confusion
from server.record.trackers.mlflow import _RUN, known_run
from server.round.first_head import FormerHead, first_head, last_head
from simulations.report.runs import read_run
from simulations.tune.search import tie
from simulations.tune.space import Range
from tests.readback.rows import Make, Row, into, is_none

ROWS: dict[str, Make] = {}
row = into(ROWS)


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
