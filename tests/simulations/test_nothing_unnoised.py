"""A private run writes and sends nothing of its clients that no noise covers.

What it must not tell is computed here: counts, losses, what clients would measure, exact sums.
Then every file, log line and message is searched for it, in the form in which a reader would read
it. The same search finds it in the same run without privacy.
"""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.app import ConfigRecord, Message
from safetensors.numpy import load_file, save_file

import server.app
from client.sgd import LocalResult, train_head
from common.evaluation import evaluate
from common.experiment import (
    client_shares,
    experiment_dataset,
    experiment_features,
    training_features,
)
from common.messages import DescribeReply, TrainReply, TrainRequest
from common.privacy.integers import RESOLUTION, clipped, offset_sum, squared_norm
from common.softmax import rows_of_norm
from common.types import FeatureSet
from server.export.run_model import backbone_of_run
from server.export.runtime_cards import ExportReport
from server.record.runfolder import read_run_json
from server.round.first_head import last_head
from simulations.engines.in_process import InProcessGrid
from simulations.report import load_runs, write_report
from simulations.run import open_run, read_summary
from tests.unnoised import Planted, Seen, of_content, of_folder, of_text

pytestmark = pytest.mark.wide

Fedhead = Callable[..., tuple[int, str, str]]
Run = Callable[..., tuple[Path, list[Seen]]]

# Owners with these numbers of images; the pool has what calibrates and tests.
IMAGES = (37, 1511, 463, 689, 57, 912)
DATA = """
import numpy as np
from common.datasets import Examples

def owned():
    from sklearn.datasets import load_digits
    digits, drawn = load_digits(), np.random.default_rng(7)
    rows, owners = [], []
    for owner, count in enumerate((*{images}, 600)):
        taste = drawn.dirichlet(np.full(10, 50.0 if count == 600 else 0.7))[digits.target]
        rows += drawn.choice(len(taste), count, p=taste / taste.sum()).tolist()
        owners += [None if count == 600 else owner] * count
    images = digits.images[rows] * 255 / 16 + drawn.integers(0, 30, (len(rows), 8, 8))
    images, labels = np.minimum(images, 255).astype(np.uint8), digits.target[rows]
    test = Examples(images[-300:], labels[-300:])
    return Examples(images[:-300], labels[:-300], test=test, columns={{"owner": owners[:-300]}})
"""
KEYS = """
name = "owned"
[data]
source = "{module}:owned"
calibration-examples = 64
[backbone]
weights = "random"
input-size = 32
distill-steps = 0
projection = 32
[partition]
scheme = "natural"
column = "owner"
num-clients = 6
test-fraction = 0.2
[train]
rounds = 4
local-epochs = 1
batch-size = 0
lr = 0.003
[tracking]
trackers = ["tensorboard"]
[simulation]
nodes = 6
"""
PRIVATE = ("privacy.epsilon=8", "privacy.typical-examples=40")
POISSON = (*PRIVATE, "privacy.mechanism=poisson", "train.clients-per-round=3")
wide = pytest.mark.wide
RUNS = {
    "everyone": PRIVATE,
    "a secret": ("privacy.epsilon=8", "privacy.noise=secret"),
    "one-shot": (*PRIVATE, "privacy.mechanism=one-shot", "strategy.name=lda", "train.rounds=1"),
    "adaptive": (*PRIVATE, "privacy.clip=adaptive"),
    "poisson": POISSON,
    "taking turns": (*PRIVATE, "privacy.mechanism=min-separation", "train.clients-per-round=3"),
    "one by one": (*PRIVATE, "simulation.trainer=reference"),
    "late and absent": (
        *PRIVATE,
        "availability.dropout-rate=0.3",
        "availability.straggler-rate=0.3",
        "availability.close-fraction=0.7",
    ),
}


@dataclass
class Wire:
    """What has passed the grid: requests with their replies."""

    passed: list[tuple[Message, Message]] = field(default_factory=list)

    def of(self, kind: str) -> list[tuple[Message, Message]]:
        return [pair for pair in self.passed if pair[0].metadata.message_type == kind]

    def seen(self) -> Iterator[Seen]:
        for number, pair in enumerate(self.passed):
            for message, way in zip(pair, ("to", "from"), strict=True):
                place = f"message {number} {way} a node, {message.metadata.message_type}"
                if message.has_error():
                    yield of_text(place, message.error.reason.encode())
                else:
                    yield from of_content(place, message.content)

    def rounds(self) -> dict[int, list[tuple[TrainRequest, TrainReply]]]:
        found: dict[int, list[tuple[TrainRequest, TrainReply]]] = {}
        for message, answer in self.of("train"):
            request = TrainRequest.read(message.content)
            pair = request, TrainReply.read(answer.content)
            found.setdefault(request.round_number, []).append(pair)
        return found


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Notes every message of runs in this process."""
    passed, sent = Wire(), dict[str, Message]()
    push, pull = InProcessGrid.push_messages, InProcessGrid.pull_messages

    def push_and_note(grid: InProcessGrid, messages: Any) -> Any:
        messages = list(messages)
        names = list(push(grid, messages))
        sent.update(zip(names, messages, strict=True))
        return names

    def pull_and_note(grid: InProcessGrid, names: Any) -> Any:
        replies = list(pull(grid, names))
        passed.passed += [(sent[reply.metadata.reply_to_message_id], reply) for reply in replies]
        return replies

    monkeypatch.setattr(InProcessGrid, "push_messages", push_and_note)
    monkeypatch.setattr(InProcessGrid, "pull_messages", pull_and_note)
    return passed


@pytest.fixture
def experiment(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")
    # Python imports a name only once.
    module = f"owned_{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"
    (tmp_path / f"{module}.py").write_text(DATA.format(images=IMAGES))
    (tmp_path / "owned.toml").write_text(KEYS.format(module=module))
    return tmp_path / "owned.toml"


@pytest.fixture
def run(experiment: Path, fedhead: Fedhead, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs and reports, and reads all of it: files, output and log."""

    def run(*keys: str, exports: bool = False) -> tuple[Path, list[Seen]]:
        out = experiment.parent / "run"
        options = [word for key in keys for word in ("--set", key)]
        with monkeypatch.context() as patch:
            if not exports:
                patch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))
            code, output, log = fedhead("run", experiment, "--out", out, *options)
        assert code == 0, log
        write_report(load_runs([out]), out)
        texts = {"output": output, "log": log}
        found = (of_text(place, text.encode()) for place, text in texts.items())
        return out, [*of_folder(out), *found]

    return run


@dataclass(frozen=True, eq=False)
class Truth:
    """What a run's clients have and would measure, computed from its data and its requests."""

    shares: Sequence[Any]
    features: FeatureSet
    labels: npt.NDArray[np.int64]
    right: list[int]

    @classmethod
    def of(cls, path: Path) -> Truth:
        config = open_run(path)
        dataset, shares = experiment_dataset(config), client_shares(config)
        backbone = backbone_of_run(path, config, dataset)
        every, head = experiment_features(config, backbone), last_head(path)
        right = [evaluate(head, every.select(share.test)).correct for share in shares]
        return cls(shares, training_features(config, backbone), dataset.labels, right)

    def trained(self, request: TrainRequest, client: int) -> LocalResult:
        own = self.features.select(self.shares[client].train)
        x = torch.from_numpy(own.x)
        if request.plan.unit_norm:
            x = rows_of_norm(x, request.plan.unit_norm)
        return train_head(
            x,
            torch.from_numpy(own.labels),
            torch.from_numpy(request.head.matrix),
            request.training,
            [np.arange(len(own))],
        )


def planted_in(path: Path, wire: Wire) -> Planted:
    """What the run must not tell."""
    truth = Truth.of(path)
    sizes = [len(share.train) for share in truth.shares]
    tests = [len(share.test) for share in truth.shares]
    # Smaller ones are among the numbers of any run by chance; they are in the rows.
    numbers: dict[str, float] = {f"examples of {c}": n for c, n in enumerate(sizes) if n > 256}
    numbers["all examples"] = sum(sizes)
    numbers["mean accuracy"] = float(np.mean(np.array(truth.right) / tests))
    rows: dict[str, Sequence[float]] = {
        f"labels of {c}": np.bincount(truth.labels[share.train], minlength=10).tolist()
        for c, share in enumerate(truth.shares)
    }
    rows |= {"test examples": tests, "right answers": truth.right}
    arrays: dict[str, npt.NDArray[Any]] = {}
    blobs: dict[str, bytes] = {}
    for number, pairs in wire.rounds().items():
        requests = {client: request for request, _ in pairs for client in request.clients}
        results = {c: truth.trained(request, c) for c, request in sorted(requests.items())}
        for c, result in results.items():
            if number > 1:  # the first head knows nothing, and its loss is that of a guess
                numbers[f"loss of {c} in {number}"] = result.loss_before
            numbers[f"later loss of {c} in {number}"] = result.loss_after
            arrays[f"update of {c} in {number}"] = result.delta.numpy()
        if results and number > 1:
            losses = np.array([result.loss_before for result in results.values()])
            numbers[f"loss in {number}"] = float(
                np.average(losses, weights=[sizes[c] for c in results])
            )
        named, exact = _of_sum(path, pairs, results, sizes)
        arrays |= {f"{name} in {number}": array for name, array in named.items()}
        blobs |= {f"{name} in {number}": data for name, data in exact.items()}
    return Planted(numbers, rows, arrays, blobs)


def _of_sum(
    path: Path,
    pairs: Sequence[tuple[TrainRequest, TrainReply]],
    results: Mapping[int, LocalResult],
    sizes: Sequence[int],
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, bytes]]:
    """The round's sum without noise, the weights that it would give, and its bytes and hashes."""
    request, head = pairs[0][0], pairs[0][0].head.matrix
    decided = read_run_json(path).get("privacy")
    if decided is None:
        weights = [sizes[c] for c in results]
        deltas = [result.delta.numpy() for result in results.values()]
        return _head(head + np.average(deltas, 0, weights)), {}
    total = exact_sum(pairs)
    unit = request.plan.clip / RESOLUTION / decided["divisor"] * decided["step"]
    blobs = {"sum": total.astype("<i8").tobytes(), "short sum": total.astype("<i4").tobytes()}
    blobs |= {f"SHA-256 of {name}": hashlib.sha256(data).digest() for name, data in blobs.items()}
    return {"sum": total, **_head(head + total * unit)}, blobs


def _head(matrix: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """As files have it, and as messages do."""
    return {"weights": matrix[:, :-1], "head": matrix}


def exact_sum(pairs: Sequence[tuple[TrainRequest, TrainReply]]) -> npt.NDArray[np.int64]:
    """The sum of a round's clipped integers, int64 (K, d + 1), from what nodes have sent."""
    total = np.zeros(pairs[0][0].head.matrix.shape, np.int64)
    for _, reply in pairs:
        for payload in reply.payloads.get("clipped_delta", ()):
            sent = np.frombuffer(payload, "<u4" if len(payload) == 4 * total.size else "<u8")
            total += offset_sum(sent.astype(np.uint64), len(reply.clients)).reshape(total.shape)
    return total


KINDS = ("examples of", "mean accuracy", "labels of", "test examples", "right answers", "loss of",
         "later loss of", "loss in", "update of", "weights in", "head in")  # fmt: skip
TELLING = {
    "files": ("all examples", "mean accuracy", "labels of", "test examples", "right answers",
              "loss in", "weights in"),
    "messages": ("examples of", "loss of", "later loss of", "update of", "head in"),
}  # fmt: skip


def test_the_search_finds_it_all_in_a_run_without_privacy(run: Run, wire: Wire) -> None:
    path, told = run("baseline.enabled=false")
    planted = planted_in(path, wire)
    found = {"files": planted.found(told), "messages": planted.found(wire.seen())}
    for where, kinds in TELLING.items():
        for kind in kinds:
            names = {name for name in planted.names if name.startswith(kind)}
            missed = names - found[where].keys()
            # Old checkpoints are removed, and no message has the last head.
            is_any = kind in ("head in", "weights in")
            assert len(missed) < len(names) if is_any else not missed, (where, missed)
    places = {place for where in found["files"].values() for place in where}
    assert {"clients.json", "summary.json", "metrics.jsonl", "curves.csv", "events.jsonl",
            "log", "head.safetensors"} <= places  # fmt: skip
    assert {*SECTIONS} == {
        words for words in SECTIONS if words in (path / "report.html").read_text()
    }
    assert any(place.startswith("tensorboard/") for place in places)
    assert any(place.startswith("checkpoint/") for place in places)


@pytest.mark.parametrize("keys", [
    pytest.param(keys, id=name, marks=() if name in ("everyone", "poisson") else wide)
    for name, keys in RUNS.items()
])  # fmt: skip
def test_a_private_run_tells_nothing_that_no_noise_covers(
    keys: tuple[str, ...], run: Run, wire: Wire
) -> None:
    path, told = run(*keys)
    planted = planted_in(path, wire)
    found = {kind for kind in KINDS if any(name.startswith(kind) for name in planted.names)}
    later = {"loss of", "loss in"} if open_run(path).train.rounds == 1 else set()
    assert found == {*KINDS} - later
    assert planted.blobs
    assert planted.found(told) == {}
    assert planted.found(wire.seen()) == {}
    check_files(path)
    check_messages(Truth.of(path), wire)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [PRIVATE, ()], ids=["private", "open"])
def test_nor_do_its_trackers_and_its_exported_model(
    keys: tuple[str, ...], run: Run, wire: Wire, experiment: Path
) -> None:
    for name in ("mlflow", "wandb"):
        pytest.importorskip(name, reason=f"pip install 'fedhead[{name}]'")
    trackers = (
        'tracking.trackers=["tensorboard","mlflow","wandb"]',
        f"tracking.mlflow-uri={experiment.parent / 'run' / 'store'}",
        "tracking.wandb-mode=offline",
    )
    path, told = run(*keys, *trackers, exports=True)
    places = {seen.place.partition("/")[0] for seen in told}
    assert {"model.json", "model.pt", "store", "wandb", "tensorboard"} <= places
    found = planted_in(path, wire).found(told)
    if keys:
        assert found == {}
    else:
        losses = {place.partition("/")[0] for place in found["loss in 3"]}
        assert {"store", "wandb", "tensorboard"} <= losses


SECTIONS = ("Who holds what", "How the clients fare")
UNTOLD = {"train-loss-before", "train-loss-after", "num-examples"}
OF_COHORTS = {"cohort", "valid", "rejected", "failed", "dropped", "late", "simulated-seconds",
              "uplink-bytes", "downlink-bytes"}  # fmt: skip


def check_files(path: Path) -> None:
    """What is left out is left out in so many words, and not zero or wrong."""
    for line in lines(path / "metrics.jsonl"):
        assert {key for key, value in line.items() if value is None} >= UNTOLD
        assert line["accuracy"] is not None
    summary = read_summary(path)
    assert summary["client_tests"] is None
    assert summary["calibration"]["fitted_on"].startswith("the server's test set")
    assert not (path / "clients.json").exists()
    page = (path / "report.html").read_text()
    assert not any(words in page for words in SECTIONS)
    log = "".join(line["message"] for line in lines(path / "events.jsonl"))
    assert "train loss" not in log
    assert "what they have is not told" in log
    is_of_seed = open_run(path).privacy.noise != "secret"
    assert (summary["centralized_accuracy"] is not None) == is_of_seed
    assert [file.name for file in path.rglob("*secret*")] == []


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def check_messages(truth: Truth, wire: Wire) -> None:
    """Nodes send clipped integers and blanks, and nothing else."""
    assert not wire.of("evaluate")
    for _, answer in wire.of("query.describe"):
        reply = DescribeReply.read(answer.content)
        assert {*reply.num_examples} <= {1}
        assert reply.unused == 0
    rounds = wire.rounds()
    assert rounds
    for request, reply in [pair for pairs in rounds.values() for pair in pairs]:
        assert {(r.num_examples, r.loss_before, r.loss_after) for r in reply.reports} <= {(1, 0, 0)}
        assert not reply.rejected
        (client,) = request.clients  # a node has one, so that its sum is the client's own
        values = exact_sum([(request, reply)])
        assert squared_norm(values) <= RESOLUTION**2
        expected = clipped(truth.trained(request, client).delta.numpy(), request.plan.clip)
        assert np.abs(values - expected).max() <= 4, "the same but for roundings of training"
        assert {*reply.payloads} <= {"clipped_delta", "within_clip"}
    for _, answer in wire.of("train"):
        assert [*answer.content] == ["report"]
        (report,) = answer.content.values()
        assert isinstance(report, ConfigRecord)
        fields = {"field.clipped_delta", "field.within_clip"}
        assert {*report} <= {"fingerprint", "reports", *fields}


def test_with_secret_cohorts_nobody_can_tell_who_was_asked(run: Run, wire: Wire) -> None:
    path, told = run(*POISSON)
    asked = [sum(len(request.clients) for request, _ in pairs) for pairs in wire.rounds().values()]
    assert len({*asked}) > 1, "cohorts of one size would show nothing"
    for line in lines(path / "metrics.jsonl"):
        assert {key for key, value in line.items() if value is None} == UNTOLD | OF_COHORTS
    assert all("client" not in line for line in lines(path / "events.jsonl"))
    summary = read_summary(path)
    for fate in ("valid", "rejected", "failed", "dropped", "late"):
        assert summary[f"{fate}_updates"] is None
    with (path / "devices.csv").open() as file:
        for row in csv.DictReader(file):
            assert not any(row[key] for key in row if key not in ("client", "name"))
    for file in path.glob("checkpoint/*/state.safetensors"):
        state = load_file(file)
        for name in ("accounts", "memory_clients", "constant_holders", "head_clients"):
            assert len(state[name]) == 0, name
    sizes = sent_bytes(wire)
    assert sizes.found(told) == {}
    with (path / "leaderboard.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["uplink-bytes"] == row["rejected-updates"] == ""
    output = next(seen for seen in told if seen.place == "output").data.decode()
    assert output.count("not told: nobody may know") == 2


def test_the_bytes_that_would_tell_are_found_where_everyone_is_asked(run: Run, wire: Wire) -> None:
    _, told = run(*PRIVATE)
    found = sent_bytes(wire).found(told)
    assert {*found} == {*sent_bytes(wire).names}
    assert {"metrics.jsonl", "summary.json", "curves.csv", "leaderboard.csv"} <= {
        place for places in found.values() for place in places
    }


def sent_bytes(wire: Wire) -> Planted:
    """What all clients of a round have sent, and of the run, as the server counts it."""
    rounds = [
        sum(report.payload_bytes for _, reply in pairs for report in reply.reports)
        for pairs in wire.rounds().values()
    ]
    named = {f"bytes of round {i}": n for i, n in enumerate(rounds, 1) if n}
    return Planted({**named, "bytes of all": sum(rounds)})


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.html", "a.safetensors", "a.bin", "a.zip"])
def test_the_search_reads_files_of_every_kind(name: str, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    array, blob = drawn.normal(size=50), b"\0" + drawn.bytes(31)
    planted = Planted(
        {"count": 4211, "loss": 0.43219876},
        {"row": [3, 1, 4, 15]},
        {"array": array},
        {"hash": blob},
    )
    text = f'{{"n": 4211, "at": [0.43219876, 1.5], "row": [3, 1, 4, 15], "x": "{blob.hex()}"}}'
    file = tmp_path / name
    if name == "a.safetensors":
        values = {"n": np.array([1, 4211]), "loss": np.array([0.43219876, 2], np.float32),
                  "row": np.array([9, 3, 1, 4, 15]), "x": array.astype(np.float32),
                  "hash": np.frombuffer(blob, np.uint8)}  # fmt: skip
        save_file(values, file)
    elif name == "a.bin":
        file.write_bytes(array.astype("<f4").tobytes())
        assert planted.found(of_folder(tmp_path)) == {"array": ["a.bin"]}
        file.write_bytes(b"\0" + blob)
    elif name == "a.zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("card.json", text)
    else:
        file.write_text(text.replace("4211", "4,211") if name == "a.html" else text)
    found = {*planted.found(of_folder(tmp_path))}
    assert found == {
        "a.safetensors": {"count", "loss", "row", "array", "hash"},
        "a.bin": {"hash"},
    }.get(name, {"count", "loss", "row", "hash"})
