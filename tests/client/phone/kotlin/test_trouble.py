"""The Kotlin phone in trouble: odd clocks and runs, lost results, hostile gateways, full disks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.phones.phones_pb2 import (
    DONE,
    FAILED,
    STATISTICS,
    CheckInReply,
    Description,
    FetchRequest,
    Part,
)
from common.phones.wire import PART
from common.signing.statement import Statement
from tests.client.phone.conftest import (
    LATER,
    FakeGateway,
    Standing,
    description_of,
    sha256,
    task_of,
)
from tests.client.phone.kotlin.conftest import Owned, owned
from tests.client.phone.kotlin.test_kotlin import serve

if TYPE_CHECKING:
    from server.export.trained import TrainedModel

pytestmark = pytest.mark.slow

Visit = Callable[..., str]


@pytest.fixture
def images(trained: TrainedModel, tmp_path: Path) -> Owned:
    return owned(trained, tmp_path / "images", per_class=5)


@pytest.fixture
def description(gateway: FakeGateway, trained: TrainedModel) -> Description:
    return description_of(gateway, trained)


def with_sum(content: bytes) -> bytes:
    """A small file, as the phone writes them."""
    return content + bytes.fromhex(sha256(content))


def test_a_clock_that_was_set_back_stops_the_phone_no_longer_than_it_had_drawn(
    gateway: FakeGateway, folder: Path, images: Owned, visit: Visit
) -> None:
    (folder / "state").mkdir()
    years = int(time.time() * 1000) + 3 * 365 * 24 * 3600 * 1000
    (folder / "state/pace").write_bytes(with_sum(f"0.2 {years}".encode()))
    first, *_ = visit(images, visits=5).splitlines()
    assert "it is not time yet" in first
    assert gateway.check_ins


@pytest.mark.parametrize("first", ["good", "bad"])
@pytest.mark.parametrize("fault", ["impossible", "foreign"])
def test_a_run_that_it_cannot_join_does_not_keep_it_out_of_another(
    first: str, fault: str, gateway: FakeGateway, description: Description, images: Owned,
    trained: TrainedModel, visit: Visit,
) -> None:  # fmt: skip
    changed = {"test_fraction": 2.0} if fault == "impossible" else {"fingerprint": "1" * 64}
    bad = description_of(gateway, trained, id=sha256(b"another"), **changed)
    task = task_of(gateway, description, trained.head.matrix, len(images.train))
    runs = [description, bad] if first == "good" else [bad, description]
    told = []

    def answer(request: Any) -> CheckInReply:
        """As a gateway: tasks first, then runs; with a problem, each run once."""
        held = [holding.description for holding in request.holdings]
        assert request.ready
        assert not (held and request.problem)
        if description.id in held and bad.id in told and not gateway.submissions:
            return CheckInReply(task=task)
        for run in runs:
            if run.id not in held and not (request.problem and run.id in told):
                told.append(run.id)
                return CheckInReply(description=run)
        return CheckInReply(later=LATER)

    gateway.answer = answer
    said = visit(images, visits=3)
    assert [sent.outcome for sent in gateway.submissions] == [DONE]
    assert ("foreign-fingerprint" if fault == "foreign" else "test fraction") in said
    if first == "bad":
        word = {"impossible": "description: ", "foreign": "foreign-fingerprint: "}[fault]
        assert gateway.check_ins[1].problem.startswith(word)


def test_no_image_is_computed_that_the_owner_does_not_allow(
    gateway: FakeGateway, folder: Path, description: Description, images: Owned,
    java: Callable[..., list[str]],
) -> None:  # fmt: skip
    serve(gateway, description)

    def computed(times: int) -> int:
        (folder / "state/pace").unlink(missing_ok=True)
        command = java("dev.fedhead.Owner", folder, images.file, times)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert computed(0) == 0
    assert not gateway.check_ins[-1].ready
    # It is asked for the check-in, before the run's images, and before each of them.
    assert computed(2 + 8) == 8
    last = gateway.check_ins[-1]
    assert (last.ready, list(last.holdings), last.problem) == (False, [], "")
    assert computed(1000) == len(images.train) + len(images.test) - 8
    assert gateway.check_ins[-1].holdings[0].num_examples == len(images.train)


def test_an_upload_of_an_unknown_task_may_have_lost_its_verdict_only(
    gateway: FakeGateway, description: Description, images: Owned, trained: TrainedModel,
    visit: Visit,
) -> None:  # fmt: skip
    gateway.failures["upload"] = [grpc.StatusCode.NOT_FOUND]
    task = task_of(
        gateway, description, trained.head.matrix, len(images.train), kind=STATISTICS,
        fields=["moments", "gram"],
    )  # fmt: skip
    serve(gateway, description, task)
    assert "accepted" in visit(images)
    assert [sent.outcome for sent in gateway.submissions] == [DONE]


def test_only_a_submit_that_will_never_go_well_forgets_a_result(
    gateway: FakeGateway, folder: Path, description: Description, images: Owned,
    trained: TrainedModel, visit: Visit,
) -> None:  # fmt: skip
    code = grpc.StatusCode
    gateway.failures["submit"] = [code.CANCELLED, code.OUT_OF_RANGE, code.DATA_LOSS, code.NOT_FOUND]
    task = task_of(
        gateway, description, trained.head.matrix, len(images.train), kind=STATISTICS,
        fields=["moments", "gram"],
    )  # fmt: skip
    serve(gateway, description, task)
    visit(images)
    assert len(gateway.submissions) == 1
    assert (folder / "state/task/result").is_file()
    gateway.uploads.clear()  # the gateway has lost what had arrived
    visit(images)
    assert len(gateway.submissions) == 4
    for sent in gateway.submissions:
        sent.upload_seconds = 0
    assert all(sent == gateway.submissions[0] for sent in gateway.submissions)
    assert len(gateway.uploads) == 1
    assert not list((folder / "state/task").glob("[a-z]*[!s]"))
    assert not list((folder / "state/task/arrays").iterdir())


def test_a_result_is_of_the_task_that_is_kept(
    gateway: FakeGateway, folder: Path, description: Description, images: Owned,
    trained: TrainedModel, visit: Visit,
) -> None:  # fmt: skip
    """As after a kill between a new task and the end of the old one's result."""
    gateway.failures["submit"] = [grpc.StatusCode.UNAVAILABLE]
    old, new = (
        task_of(gateway, description, trained.head.matrix, len(images.train), id=digit * 32)
        for digit in "ab"
    )
    serve(gateway, description, old)
    visit(images)
    late = int(time.time() * 1000) + 60_000
    content = late.to_bytes(8, "big") + new.SerializeToString()
    (folder / "state/task/task").write_bytes(with_sum(content))
    (folder / "state/pace").unlink()
    visit(images)
    assert [sent.task for sent in gateway.submissions] == [old.id, new.id]
    assert gateway.submissions[1].outcome == DONE


@pytest.mark.parametrize("inline", [True, False])
def test_blobs_of_tasks_do_not_fill_the_disk(
    inline: bool, gateway: FakeGateway, folder: Path, description: Description, images: Owned,
    trained: TrainedModel, visit: Visit,
) -> None:  # fmt: skip
    tasks = []
    for i in range(8):
        head = trained.head.matrix * np.float32(1 - i / 100)
        blob = gateway.blob(head.astype("<f4").tobytes(), inline=inline)
        task = task_of(gateway, description, head, len(images.train), id=f"{i:032x}")
        task.head.CopyFrom(blob)
        tasks.append(task)
    serve(gateway, description, *tasks)
    visit(images)
    assert len(gateway.submissions) == 8
    kept = {path.name for path in (folder / "state/blobs").iterdir()}
    assert description.backbones[0].file.sha256 in kept
    assert len(kept) == (1 if inline else 1 + 4)


def test_a_reply_without_end_is_not_read_to_its_end(
    gateway: FakeGateway, trained: TrainedModel, images: Owned, visit: Visit
) -> None:
    most = description_of(gateway, trained, name="x" * (5 << 20))
    gateway.answers = [CheckInReply(description=most)]
    assert "cannot go on: a reply has more than 4194309 bytes" in visit(images)


class SparingGateway(FakeGateway):
    """Sends parts one byte too short."""

    async def fetch(self, request: FetchRequest, context: Any) -> Part:
        part = await super().fetch(request, context)
        part.data = part.data[:-1]
        return part


def test_a_part_of_a_blob_is_as_long_as_it_can_be(
    gateway: FakeGateway, standing: Standing, folder: Path, trained: TrainedModel, images: Owned,
    visit: Visit,
) -> None:  # fmt: skip
    sparing = SparingGateway(gateway.folder)
    standing.start(sparing)
    toml = folder / "phone.toml"
    toml.write_text(toml.read_text().replace(str(gateway.port), str(sparing.port)))
    serve(sparing, description_of(sparing, trained))
    assert f"a part of a blob has {PART - 1} bytes, expected {PART}" in visit(images)
    assert len(sparing.fetched) == 1


def test_a_run_whose_backbone_was_signed_again_goes_on(
    gateway: FakeGateway, folder: Path, images: Owned, trained: TrainedModel, visit: Visit
) -> None:
    """Its first statement is out of date when the task comes; the process stays the same."""
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "trusted").mkdir()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "trusted/key.pub").write_bytes(public)

    run, now = description_of(gateway, trained), int(time.time())

    def signed(version: int) -> Description:
        description = Description()
        description.CopyFrom(run)
        backbone = description.backbones[0]
        backbone.statement = Statement(
            kind="backbone", name="mnist5k.torch", version=version, size=backbone.file.size,
            sha256=backbone.file.sha256, card=sha256(b""),
            fingerprint=trained.backbone.fingerprint, created=now, expires=now + 600,
        ).to_bytes()  # fmt: skip
        backbone.signature = key.sign(backbone.statement, ec.ECDSA(SHA256()))
        return description

    first, second = signed(3), signed(9)
    matrix, n = trained.head.matrix, len(images.train)
    tasks = [task_of(gateway, first, matrix, n, id=digit * 32) for digit in "abc"]

    def answer(request: Any) -> CheckInReply:
        done = len(gateway.submissions)
        if not request.holdings:
            return CheckInReply(description=first if done < 2 else second)
        if done == 1:  # another run's backbone of that name has become known
            note = f"9 {first.backbones[0].file.sha256}".encode()
            (folder / "state/accepted/mnist5k.torch").write_bytes(with_sum(note))
        return CheckInReply(task=tasks[done]) if done < 3 else CheckInReply(later=LATER)

    gateway.answer = answer
    visit(images)
    assert [sent.outcome for sent in gateway.submissions] == [DONE, FAILED, DONE]
    assert gateway.submissions[1].reason.startswith("unsigned-backbone: version 3 is older than 9")


def test_comments_in_phone_toml_are_none_of_its_values(
    gateway: FakeGateway, folder: Path, description: Description, images: Owned, visit: Visit
) -> None:
    serve(gateway, description)
    (folder / "phone.toml").write_text(
        f"# of a test\ngateway = '127.0.0.1:{gateway.port}'  # \"TLS\"\nmax-examples = 12 # few\n"
    )
    visit(images)
    (holding,) = gateway.check_ins[-1].holdings
    assert holding.num_examples + holding.num_test_examples == 12


def test_a_classs_name_is_no_path(
    gateway: FakeGateway, folder: Path, images: Owned, visit: Visit
) -> None:
    size, line, *_ = images.file.read_text().splitlines()
    _, pixels, features = line.split()
    names = ["..", ".", "../../x", "c/d"]
    images.file.write_text("\n".join([size, *(f"{name} {pixels} {features}" for name in names)]))
    visit(images)
    digest = sha256(bytes.fromhex(pixels))
    found = list(folder.rglob(digest))
    assert len(found) == len(names)
    assert {path.parent.parent for path in found} == {folder / "state/pixels"}
    assert not list(folder.parent.glob(f"*{digest}*"))


def test_a_classs_name_that_is_too_long_is_refused_in_words(
    folder: Path, images: Owned, java: Callable[..., list[str]]
) -> None:
    size, line, *_ = images.file.read_text().splitlines()
    _, pixels, features = line.split()
    images.file.write_text("\n".join([size, f"{'é' * 100} {pixels} {features}"]))
    command = java("dev.fedhead.jvm.MainKt", folder, images.file, 1)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "the name of a class takes 600 bytes" in done.stderr
    assert not (folder / "state/pixels").exists()
