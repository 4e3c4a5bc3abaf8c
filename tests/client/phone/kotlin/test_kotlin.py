"""The Kotlin phone, compiled and run: with a gateway it does what Python's phone does."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from client.sgd import LocalResult, Terms, train_head
from common.codecs import find_codec
from common.evaluation import evaluate, losses_of
from common.images import decode_array
from common.partition import evenly, local_split
from common.phones.phones_pb2 import (
    DONE,
    EVALUATE,
    FAILED,
    STATISTICS,
    CheckInReply,
    Description,
    Submission,
    Task,
    Training,
    Verdict,
)
from common.phones.wire import PART
from common.privacy.integers import check_clipped, clipped, with_offset
from common.seeding import seeded_order
from common.softmax import rows_of_norm
from common.statistics import feature_statistics
from common.types import FeatureSet, Head, LocalTraining
from tests.client.phone.conftest import (
    LATER,
    FakeGateway,
    Standing,
    description_of,
    sha256,
    task_of,
)
from tests.client.phone.kotlin.conftest import Owned, owned

if TYPE_CHECKING:
    from server.export.trained import TrainedModel

pytestmark = pytest.mark.slow

Visit = Callable[..., str]
BATCH_SEED = 2**63 + 11  # above what Kotlin's signed numbers hold


@pytest.fixture
def images(trained: TrainedModel, tmp_path: Path) -> Owned:
    return owned(trained, tmp_path / "images", per_class=5)


@pytest.fixture
def description(gateway: FakeGateway, trained: TrainedModel) -> Description:
    return description_of(gateway, trained)


def training_of(training: LocalTraining, mu: float = 0.0) -> Training:
    return Training(
        optimizer=training.optimizer, lr=training.lr, epochs=training.local_epochs,
        batch_size=training.batch_size, batch_seed=BATCH_SEED, momentum=training.momentum,
        weight_decay=training.weight_decay, mu=mu,
    )  # fmt: skip


def trained_here(
    features: FeatureSet,
    head: Head,
    training: LocalTraining,
    terms: Terms,
    unit_norm: float = 0.0,
) -> LocalResult:
    """What client/sgd makes of the same task."""
    orders = [
        seeded_order(BATCH_SEED, len(features), epoch) for epoch in range(training.local_epochs)
    ]
    x = torch.from_numpy(features.x)
    return train_head(
        rows_of_norm(x, unit_norm) if unit_norm else x,
        torch.from_numpy(features.labels), torch.from_numpy(head.matrix), training, orders, terms,
    )  # fmt: skip


def serve(gateway: FakeGateway, description: Description, *tasks: Task) -> None:
    """Answer a phone as a gateway does: what it does not know, then what there is to do."""
    left = list(tasks)

    def answer(request: Any) -> CheckInReply:
        if description.id not in [holding.description for holding in request.holdings]:
            return CheckInReply(description=description)
        done = {submission.task for submission in gateway.submissions}
        while left and left[0].id in done:
            left.pop(0)
        return CheckInReply(task=left[0]) if left else CheckInReply(later=LATER)

    gateway.answer = answer


def array(submission: Submission, field: str, dtype: str) -> Any:
    (found,) = [sent for sent in submission.arrays if sent.field == field]
    return np.frombuffer(found.data, dtype)


TERMS = ("plain", "all terms", "large batch", "adam", "adamw")


@pytest.mark.parametrize("terms", TERMS)
def test_an_update_is_pythons(
    terms: str, gateway: FakeGateway, description: Description, images: Owned,
    trained: TrainedModel, visit: Visit,
) -> None:  # fmt: skip
    rng = np.random.default_rng(0)
    head = trained.head
    shape, width = head.matrix.shape, head.matrix.shape[1]
    correction = rng.normal(0, 0.01, shape).astype(np.float32)
    square = np.eye(width, dtype=np.float32) + rng.normal(0, 1e-4, (width, width)).astype(
        np.float32
    )
    training, extra = {
        "plain": (LocalTraining(0.01, 2, 5), Terms()),
        "all terms": (
            LocalTraining(0.01, 3, 4, 0.9, 0.01),
            Terms(0.1, torch.from_numpy(correction), torch.from_numpy(square)),
        ),
        "large batch": (LocalTraining(0.01, 2, 1000), Terms()),
        "adam": (LocalTraining(0.001, 2, 5, 0.0, 0.01, "adam"), Terms()),
        "adamw": (LocalTraining(0.001, 2, 7, 0.0, 0.1, "adamw"), Terms(mu=0.2)),
    }[terms]
    changed = {}
    if terms == "all terms":
        changed["correction"] = gateway.blob(correction.tobytes(), inline=True)
        changed["preconditioner"] = gateway.blob(square.tobytes())  # 6.6 MB: in 26 parts
    serve(gateway, description, task_of(
        gateway, description, head.matrix, len(images.train),
        training=training_of(training, extra.mu), **changed,
    ))  # fmt: skip
    assert "accepted" in visit(images)
    (sent,) = gateway.submissions
    assert (sent.outcome, sent.num_examples) == (DONE, len(images.train))
    assert sent.fingerprint == trained.backbone.fingerprint
    expected = trained_here(images.train, head, training, extra)
    got = array(sent, "delta", "<f4").reshape(shape)
    assert np.abs(expected.delta.numpy()).max() > 1e-3
    assert np.abs(got - expected.delta.numpy()).max() < 1e-6
    assert sent.loss_before == pytest.approx(expected.loss_before, abs=1e-5)
    assert sent.loss_after == pytest.approx(expected.loss_after, abs=1e-5)
    assert sent.train_seconds > 0


def test_statistics_are_exact_and_a_large_one_is_uploaded(
    gateway: FakeGateway, description: Description, images: Owned, trained: TrainedModel,
    visit: Visit,
) -> None:  # fmt: skip
    gateway.failures["upload"] = [
        None, None, None, grpc.StatusCode.UNAVAILABLE,  # cut after two parts
        None, grpc.StatusCode.OUT_OF_RANGE, None, None, grpc.StatusCode.DATA_LOSS,
    ]  # fmt: skip
    serve(gateway, description, task_of(
        gateway, description, trained.head.matrix, len(images.train), kind=STATISTICS,
        fields=["moments", "gram"],
    ))  # fmt: skip
    assert "accepted" in visit(images, visits=3)
    (sent,) = gateway.submissions
    expected = feature_statistics(images.train, trained.head.num_classes)
    assert np.array_equal(array(sent, "moments", "<u4"), expected.moments.ravel())
    digest = sent.arrays[1].sha256
    assert np.array_equal(np.frombuffer(bytes(gateway.uploads[digest]), "<u4"), expected.gram)
    assert sent.upload_seconds > 0
    loss = evaluate(trained.head, images.train).loss
    assert sent.loss_before == pytest.approx(loss, abs=1e-5)
    # The second visit went on where the first was cut.
    assert gateway.parts[5].offset == 2 * PART


def test_an_evaluation_is_pythons(
    gateway: FakeGateway, description: Description, images: Owned, trained: TrainedModel,
    visit: Visit,
) -> None:  # fmt: skip
    task = task_of(
        gateway, description, trained.head.matrix, len(images.test), kind=EVALUATE, fields=[]
    )
    serve(gateway, description, task)
    assert "accepted" in visit(images)
    (sent,) = gateway.submissions
    expected = evaluate(trained.head, images.test)
    assert (sent.num_examples, sent.correct) == (len(images.test), expected.correct)
    curve = np.frombuffer(sent.losses, "<f8")
    np.testing.assert_allclose(curve, losses_of(trained.head, images.test), rtol=1e-5)
    assert not sent.arrays


def test_a_private_update_has_its_bound_and_tells_nothing_else(
    gateway: FakeGateway, trained: TrainedModel, images: Owned, visit: Visit
) -> None:
    description = description_of(gateway, trained, private=True)
    training, clip, norm = LocalTraining(1.0, 1, 5), 0.05, 2.0
    serve(gateway, description, task_of(
        gateway, description, trained.head.matrix, 1, fields=["clipped_delta", "within_clip"],
        clip=clip, unit_norm=norm, training=training_of(training),
    ))  # fmt: skip
    assert "accepted" in visit(images)
    (sent,) = gateway.submissions
    told = (sent.num_examples, sent.loss_before, sent.loss_after, sent.correct, sent.losses)
    assert told == (1, 0.0, 0.0, 0, b"")
    got = array(sent, "clipped_delta", "<u4")
    check_clipped(got)
    update = trained_here(images.train, trained.head, training, Terms(), norm).delta.numpy()
    expected = with_offset(clipped(update, clip)).ravel()
    assert np.linalg.norm(update) > clip
    # Deltas differ by some 1e-8, which is 0.05 of an integer's step.
    assert np.abs(got.astype(np.int64) - expected.astype(np.int64)).max() <= 1
    assert array(sent, "within_clip", "<u4").tolist() == [0]
    for request in gateway.check_ins[1:]:
        assert [(h.num_examples, h.num_test_examples) for h in request.holdings] == [(1, 0)]


@dataclass
class DeadlyGateway(FakeGateway):
    """Kills the phone when it gets certain calls, and answers then.

    Attributes:
        moments: which calls, by their number.
        program: the phone.
        calls: how many came.
    """

    moments: frozenset[int] = frozenset()
    program: subprocess.Popen[bytes] | None = None
    calls: int = 0

    async def _begin(self, call: str, context: Any) -> None:
        await super()._begin(call, context)
        self.calls += 1
        if self.calls in self.moments and self.program:
            self.program.kill()
            self.program.wait()


def test_a_phone_that_is_killed_at_any_moment_sends_the_same_update(
    gateway: FakeGateway, standing: Standing, folder: Path, trained: TrainedModel, images: Owned,
    java: Callable[..., list[str]],
) -> None:  # fmt: skip
    """In a check-in, between parts of the backbone, before the head, and after its result came."""
    moments = frozenset({1, 2, 5, 9, 13, 14, 15, 16, 17, 18})
    deadly = DeadlyGateway(gateway.folder, moments=moments)
    standing.start(deadly)
    toml = folder / "phone.toml"
    toml.write_text(toml.read_text().replace(str(gateway.port), str(deadly.port)))
    description, training = description_of(deadly, trained), LocalTraining(0.01, 40, 2)
    task = task_of(
        deadly, description, trained.head.matrix, len(images.train),
        training=training_of(training),
    )  # fmt: skip
    serve(deadly, description, task)
    command = java("dev.fedhead.jvm.MainKt", folder, images.file)
    rng, kills = random.Random(1), 0
    while not deadly.submissions or deadly.calls < max(moments):
        deadly.program = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadly.program.wait(rng.uniform(1.0, 6.0))
        except subprocess.TimeoutExpired:
            deadly.program.kill()
            deadly.program.wait()
        kills += 1
        assert kills < 60
    assert {(sent.task, sent.outcome) for sent in deadly.submissions} == {(task.id, DONE)}
    assert all(sent == deadly.submissions[0] for sent in deadly.submissions)
    expected = trained_here(images.train, trained.head, training, Terms()).delta.numpy().ravel()
    assert np.abs(array(deadly.submissions[0], "delta", "<f4") - expected).max() < 1e-6
    backbone = description.backbones[0].file
    fetched = [part for part in deadly.fetched if part.sha256 == backbone.sha256]
    assert len(fetched) <= -(-backbone.size // PART) + len(moments)


def test_a_result_waits_on_the_disk_for_a_gateway_that_is_away(
    gateway: FakeGateway, description: Description, images: Owned, trained: TrainedModel,
    visit: Visit,
) -> None:  # fmt: skip
    gateway.failures["submit"] = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    task = task_of(gateway, description, trained.head.matrix, len(images.train))
    serve(gateway, description, task)
    said = visit(images, visits=3).splitlines()
    pauses = [float(line.split()[2]) for line in said]
    assert pauses[1] == pytest.approx(2 * pauses[0])
    first, second, third = gateway.submissions
    assert first == second == third
    assert sum(sent.sha256 == task.head.sha256 for sent in gateway.fetched) <= 1


def test_bytes_that_flip_on_the_disk_change_no_update(
    gateway: FakeGateway, folder: Path, description: Description, images: Owned,
    trained: TrainedModel, visit: Visit,
) -> None:  # fmt: skip
    """Each file in turn, of a phone whose result could not be sent."""
    expected = trained_here(
        images.train, trained.head, LocalTraining(0.01, 2, 5), Terms()
    ).delta.numpy()
    task = task_of(
        gateway, description, trained.head.matrix, len(images.train),
        training=training_of(LocalTraining(0.01, 2, 5)),
    )  # fmt: skip
    serve(gateway, description, task)
    gateway.failures["submit"] = [grpc.StatusCode.UNAVAILABLE]
    visit(images)
    gateway.submissions.clear()
    state = folder / "state"
    files = [p for name in ("task", "runs", "features", "blobs") for p in (state / name).rglob("*")]
    assert len([p for p in files if p.is_file()]) >= 6
    for path in (p for p in files if p.is_file()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    (state / "pace").unlink()
    assert "accepted" in visit(images, visits=2)
    assert gateway.submissions
    for sent in gateway.submissions:
        assert sent.outcome == DONE
        got = array(sent, "delta", "<f4").reshape(expected.shape)
        assert np.abs(got - expected).max() < 1e-6


def test_a_wrong_token_and_a_foreign_gateway_get_nothing(
    gateway: FakeGateway, folder: Path, description: Description, images: Owned,
    phone_pki: Path, standing: Standing, visit: Visit,
) -> None:  # fmt: skip
    serve(gateway, description)
    good = (folder / "phone.token").read_text()
    (folder / "phone.token").write_text("anna.wrong")
    said = visit(images, visits=2).splitlines()
    assert all("the token is unknown" in line for line in said)
    pauses = [float(line.split()[2]) for line in said]
    assert pauses[1] == pytest.approx(2 * pauses[0])
    (folder / "phone.token").write_text(good)
    foreign = FakeGateway(gateway.folder)
    standing.start(foreign, name="foreign")
    toml = (folder / "phone.toml").read_text()
    (folder / "phone.toml").write_text(toml.replace(str(gateway.port), str(foreign.port)))
    (folder / "state/pace").unlink()
    assert "cannot go on" in visit(images)
    assert not foreign.check_ins
    # The right authority, but a name that is not in its certificate.
    (folder / "phone.toml").write_text(toml.replace("127.0.0.1", "localhost"))
    (folder / "state/pace").unlink()
    before = len(gateway.check_ins)
    assert "cannot go on" in visit(images)
    assert len(gateway.check_ins) == before


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("", ""),
        ("unsigned", "it is not signed"),
        ("other key", "not signed by a key that the app trusts"),
        ("changed", "not signed by a key that the app trusts"),
        ("other file", "another file was signed"),
        ("other fingerprint", "another fingerprint was signed"),
        ("model", "not a statement of"),
        ("other format", "it was signed as mnist5k.executorch"),
        ("expired", "has expired"),
        ("older", "is older than 9"),
    ],
)
def test_a_backbone_is_loaded_only_with_a_valid_signature(
    damage: str, why: str, gateway: FakeGateway, folder: Path, images: Owned,
    trained: TrainedModel, visit: Visit,
) -> None:  # fmt: skip
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from common.signing.statement import Statement

    description = description_of(gateway, trained)
    backbone, now = description.backbones[0], int(time.time())
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    (folder / "trusted").mkdir()
    for i, key in enumerate(keys[:2]):
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"trusted/{i}.pub").write_bytes(public)
    if damage == "older":
        (folder / "state/accepted").mkdir(parents=True)
        note = f"9 {'0' * 64}".encode()
        (folder / "state/accepted/mnist5k.torch").write_bytes(note + bytes.fromhex(sha256(note)))
    statement = Statement(
        kind="model" if damage == "model" else "backbone",
        name="mnist5k.executorch" if damage == "other format" else "mnist5k.torch",
        version=3,
        size=backbone.file.size,
        sha256="1" * 64 if damage == "other file" else backbone.file.sha256,
        card=sha256(b""),
        fingerprint="2" * 64 if damage == "other fingerprint" else trained.backbone.fingerprint,
        created=now - 90_000,
        expires=now - 4_000 if damage == "expired" else now + 60,
    ).to_bytes()
    if damage != "unsigned":
        signer = keys[2 if damage == "other key" else 1]
        backbone.signature = signer.sign(statement, ec.ECDSA(SHA256()))
        backbone.statement = statement.replace(b"1", b"2") if damage == "changed" else statement
    serve(gateway, description, task_of(
        gateway, description, trained.head.matrix, len(images.train),
    ))  # fmt: skip
    visit(images)
    if why:
        assert not gateway.submissions
        last = gateway.check_ins[-1]
        assert last.problem.startswith("unsigned-backbone: ")
        assert why in last.problem
        assert not last.ready
    else:
        assert gateway.submissions[0].outcome == DONE
        note = (folder / "state/accepted/mnist5k.torch").read_bytes()[:-32].decode()
        assert note == f"3 {backbone.file.sha256}"


def test_a_task_of_another_backbone_or_shape_is_refused_before_its_blobs_are_fetched(
    gateway: FakeGateway, description: Description, images: Owned, trained: TrainedModel,
    visit: Visit,
) -> None:  # fmt: skip
    matrix, n = trained.head.matrix, len(images.train)
    changes: list[dict[str, Any]] = [
        {"fingerprint": "0" * 64}, {"num_classes": 9}, {"num_features": 1 << 24},
        {"fields": ["gram"]}, {"clip": 0.5}, {"training": Training(optimizer="sgd", lr=0.1)},
        {"codec": "eden"}, {"num_examples": n + 1}, {"description": "3" * 64},
    ]  # fmt: skip
    tasks = []
    for i, changed in enumerate(changes):
        task = task_of(gateway, description, matrix, n, id=f"{i:032x}")
        for name in changed:
            task.ClearField(name)
        task.MergeFrom(Task(**changed))
        tasks.append(task)
    gateway.verdict = Verdict(what=Verdict.NOTED, later=LATER)
    serve(gateway, description, *tasks)
    visit(images)
    assert [sent.outcome for sent in gateway.submissions] == [FAILED] * len(tasks)
    fetched = {request.sha256 for request in gateway.fetched}
    # The phone sees what it holds only after the head came.
    assert fetched <= {description.backbones[0].file.sha256, tasks[0].head.sha256}


def test_seeds_splits_and_scaling_are_pythons(ask: Callable[..., list[np.ndarray]]) -> None:
    rng = np.random.default_rng(5)
    questions, expected = [], []
    for _ in range(200):
        n = int(rng.integers(1, 60))
        labels = np.sort(rng.integers(0, rng.integers(1, 12), n))
        fraction = float(rng.choice([0.0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.9, rng.random()]))
        seed, client = int(rng.integers(0, 2**62)), int(rng.integers(0, 2**63, dtype=np.uint64))
        _, test = local_split(
            np.arange(n), labels, client=client, test_fraction=fraction, seed=seed
        )
        questions.append(f"split {fraction!r} {seed} {client} {','.join(map(str, labels))}")
        expected.append(np.isin(np.arange(n), test).astype(np.int64))
    for _ in range(50):
        n, seed, epoch = int(rng.integers(0, 300)), int(rng.integers(0, 2**64, dtype=np.uint64)), 3
        questions.append(f"order {n} {seed} {epoch}")
        expected.append(seeded_order(seed, n, epoch))
        most = int(rng.integers(0, 400))
        questions.append(f"evenly {n} {most}")
        expected.append(evenly(n, most))
    for got, want, question in zip(ask(questions), expected, questions, strict=True):
        assert np.array_equal(got, want), question


def test_an_image_of_another_size_is_scaled_as_for_training(ask: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in (32, 47, 96, 20)]
    lines = [f"scale 32 {','.join(map(str, im.transpose(2, 0, 1).ravel()))}" for im in images]
    for got, image in zip(ask(lines), images, strict=True):
        want = np.asarray(
            Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)
        ).transpose(2, 0, 1)
        # Pillow's weights are whole numbers.
        assert np.abs(got.reshape(want.shape) - want.astype(np.int64)).max() <= 1
        assert np.array_equal(want, decode_array(image, 32))


@pytest.mark.parametrize("codec", ["none", "int8", "drive"])
def test_codecs_have_pythons_bits(codec: str, ask: Callable[..., Any]) -> None:
    rng = np.random.default_rng(3)
    questions, expected = [], []
    for rows, width, scale in [(10, 1281, 0.01), (3, 256, 1e-30), (4, 7, 1e-42), (2, 64, 1e37)]:
        values = (rng.normal(0, 1, (rows, width)) * scale).astype(np.float32)
        values[0] *= rows > 3  # a row of zeros
        seed = int(rng.integers(0, 2**64, dtype=np.uint64))
        bits = ",".join(map(str, values.ravel().view(np.uint32)))
        questions.append(f"codec {codec} {width} {seed} {bits}")
        expected.append(find_codec(codec).encode(values, seed))
    for got, want in zip(ask(questions), expected, strict=True):
        assert got.astype(np.uint8).tobytes() == want
