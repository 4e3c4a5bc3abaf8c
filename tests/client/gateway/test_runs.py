"""What phones are told of runs, and the files of backbones that they fetch."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest

from client.gateway import runs as module
from common.messages import DescribeReply, DescribeRequest, TrainReply
from common.phones import file_name
from common.phones import phones_pb2 as pb
from common.phones.wire import PART
from tests.client.gateway.actors import FINGERPRINT, RUN, Deployment, request_for
from tests.client.gateway.test_verdicts import code


def test_a_description_says_what_a_run_is_about(deployment: Deployment) -> None:
    deployment.describe(max_examples=12)
    folder = deployment.place.backbones / FINGERPRINT
    name = file_name("executorch", list("abcd"))
    (folder / name).write_bytes(b"for executorch")
    (folder / f"{name}.statement").write_bytes(b"said")
    (folder / f"{name}.signature").write_bytes(b"signed")
    (anna,) = deployment.add("anna")
    told = anna.check_in().description
    assert (told.run, told.name, list(told.classes)) == (RUN, "a run", list("abcd"))
    assert (told.test_fraction, told.seed, told.max_examples) == (0.2, 7, 12)
    assert (told.private, told.fingerprint, told.client) == (False, FINGERPRINT, anna.client)
    assert [(b.format, b.statement, b.signature) for b in told.backbones] == [
        ("executorch", b"said", b"signed"),
        ("torch", b"", b""),
    ]
    assert anna.fetch(told.backbones[0].file) == b"for executorch"
    assert told.id == anna.holdings.popitem()[0]
    assert anna.check_in().description == told, "asked again, it is the same"


def test_each_class_list_has_its_own_files_of_one_backbone(deployment: Deployment) -> None:
    folder = deployment.place.backbones / FINGERPRINT
    told = {}
    for run, classes in ((RUN, tuple("abcd")), ("run-2", tuple("xy"))):
        (folder / file_name("executorch", classes)).write_bytes("".join(classes).encode())
        request = DescribeRequest(run, classes, 0.2, 7, fingerprint=FINGERPRINT)
        deployment.ask("describe", request)
    (anna,) = deployment.add("anna")
    for _ in range(2):
        description = anna.check_in().description
        told[description.run] = description
    assert told[RUN].id != told["run-2"].id
    files = {run: {b.format: b.file for b in said.backbones} for run, said in told.items()}
    assert anna.fetch(files[RUN]["executorch"]) == b"abcd"
    assert anna.fetch(files["run-2"]["executorch"]) == b"xy"
    assert files[RUN]["torch"] == files["run-2"]["torch"]


def test_a_backbone_is_fetched_in_parts_also_after_a_restart(deployment: Deployment) -> None:
    deployment.describe()
    (anna,) = deployment.add("anna")
    (backbone,) = anna.check_in().description.backbones
    path = deployment.place.backbones / FINGERPRINT / "backbone.bin"
    data = path.read_bytes()
    assert len(data) > 2 * PART
    assert anna.fetch(backbone.file) == data
    deployment.stop()
    deployment.start()
    assert anna.fetch(backbone.file) == data
    last = pb.FetchRequest(sha256=backbone.file.sha256, offset=len(data) - 10)
    assert anna.stub.fetch(last).data == data[-10:]
    beyond = pb.FetchRequest(sha256=backbone.file.sha256, offset=len(data) + 1)
    assert code(lambda: anna.stub.fetch(beyond)) == grpc.StatusCode.OUT_OF_RANGE

    new = path.with_name("new")
    new.write_bytes(b"another one")
    new.replace(path)
    deployment.describe(max_examples=5)
    (other,) = anna.check_in().description.backbones
    assert anna.fetch(other.file) == b"another one"
    old = pb.FetchRequest(sha256=backbone.file.sha256)
    assert code(lambda: anna.stub.fetch(old)) == grpc.StatusCode.NOT_FOUND


def test_a_phone_takes_part_in_two_runs(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    other = DescribeRequest("run-2", tuple("abcd"), 0.2, 8, fingerprint=FINGERPRINT)
    assert DescribeReply.read(deployment.ask("describe", other)).clients == ()
    anna.arrive()
    assert len(anna.holdings) == 2
    assert DescribeReply.read(deployment.ask("describe", other)).clients == (anna.client,)
    request = request_for([anna])
    answers = [
        deployment.train(request),
        deployment.train(replace(request, run_id="run-2", seed=8)),
    ]
    runs = set()
    for _ in answers:
        task = anna.next_task()
        runs.add(task.run)
        assert task.description == next(d.id for d in anna.holdings.values() if d.run == task.run)
        assert anna.submit(anna.done(task)).what == pb.Verdict.ACCEPTED
    assert runs == {RUN, "run-2"}
    replies: list[TrainReply] = [answer.result(10) for answer in answers]
    assert replies[0].payloads != replies[1].payloads, "the order of batches is the run's"


def test_what_a_server_says_anew_is_another_description(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    assert deployment.describe().clients == (anna.client,)
    assert deployment.describe(max_examples=99).clients == (), "nobody has met this one yet"
    anna.arrive()
    assert len(anna.holdings) == 2
    assert deployment.describe(max_examples=99).clients == (anna.client,)


def test_a_run_that_nobody_asks_about_is_over(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.describe()
    (anna,) = deployment.add("anna")
    monkeypatch.setattr(module, "_ACTIVE_SECONDS", 0.0)
    reply = anna.check_in(wait=30)
    assert reply.WhichOneof("what") == "later", "and at once: there is nothing to wait for"
    assert reply.later.max_seconds > 1
