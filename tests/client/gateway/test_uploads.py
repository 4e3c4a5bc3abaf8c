"""Arrays in parts: cuts, flipped bytes, too much of anything."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from client.gateway.uploads import DamagedUploadError, UploadError, Uploads, WrongOffsetError
from common.messages import TrainReply
from common.phones import phones_pb2 as pb
from common.phones.wire import PART
from common.types import Head
from tests.client.gateway.actors import D, Deployment, Phone, request_for
from tests.client.gateway.test_verdicts import code

WIDE = 9000  # classes, so that a delta takes 468 kB


Big = tuple[Phone, pb.Submission, pb.Array, "Future[TrainReply]"]


def big(deployment: Deployment) -> Big:
    """A phone with a task and its result, whose array is too large for Submit; and the answer."""
    (anna,) = deployment.gather("anna")
    request = replace(request_for([anna]), head=Head.zeros(WIDE, D))
    answer = deployment.train(request)
    result = anna.done(anna.next_task())
    array = result.arrays[0]
    assert len(array.data) > PART
    return anna, result, array, answer


def test_an_upload_that_is_cut_goes_on_where_it_ended(deployment: Deployment) -> None:
    anna, result, array, answer = big(deployment)
    data, size = array.data, len(array.data)
    digest = hashlib.sha256(data).hexdigest()
    have = 0
    for offset in sorted(random.Random(5).sample(range(1, size), 20)):
        while have < offset:  # parts of any size; the phone is killed after this one
            part = data[have : min(offset, have + PART)]
            sent = pb.Part(task=result.task, sha256=digest, size=size, offset=have, data=part)
            have = anna.stub.upload(sent).size
        anna.connect(deployment.port)
        again = pb.Part(task=result.task, sha256=digest, size=size)
        assert anna.stub.upload(again).size == offset
        beyond = pb.Part(task=result.task, sha256=digest, size=size, offset=offset + 1, data=b"1")
        assert code(lambda beyond=beyond: anna.stub.upload(beyond)) == grpc.StatusCode.OUT_OF_RANGE
        assert anna.stub.upload(sent).size == offset, "a part that came already changes nothing"
    array.sha256, array.data = digest, b""
    assert code(lambda: anna.stub.submit(result)) == grpc.StatusCode.OUT_OF_RANGE
    assert anna.upload(result.task, data) == digest
    assert anna.stub.submit(result).what == pb.Verdict.ACCEPTED
    reply = answer.result(10)
    assert (
        reply.payloads["delta"][0]
        == (np.frombuffer(data, "<f4").astype(np.float64) * len(anna.train)).astype("<f4").tobytes()
    ), "weighted by its examples"
    assert not list(deployment.place.uploads.rglob("*.part"))


def test_a_flipped_byte_is_told_and_the_second_try_is_clean(deployment: Deployment) -> None:
    anna, result, array, answer = big(deployment)
    data = array.data
    digest = hashlib.sha256(data).hexdigest()
    spoilt = bytearray(data)
    spoilt[100_000] ^= 1

    def send(data: bytes) -> None:
        for start in range(0, len(data), PART):
            part = data[start : start + PART]
            anna.stub.upload(
                pb.Part(task=result.task, sha256=digest, size=len(data), offset=start, data=part)
            )

    assert code(lambda: send(bytes(spoilt))) == grpc.StatusCode.DATA_LOSS
    assert anna.stub.upload(pb.Part(task=result.task, sha256=digest, size=len(data))).size == 0
    assert deployment.counters["damaged-upload"] == 1
    send(data)

    (file,) = deployment.place.uploads.rglob(digest)
    file.write_bytes(spoilt)
    array.sha256, array.data = digest, b""
    assert code(lambda: anna.stub.submit(result)) == grpc.StatusCode.DATA_LOSS
    send(data)
    assert anna.stub.submit(result).what == pb.Verdict.ACCEPTED
    assert answer.result(10).clients == (anna.client,)


def test_no_phone_fills_the_disk(deployment: Deployment) -> None:
    anna, result, array, answer = big(deployment)

    def part(**changes: object) -> pb.Part:
        base = {"task": result.task, "sha256": "a" * 64, "size": 1000, "data": b"1"}
        return pb.Part(**base | changes)  # type: ignore[arg-type]

    for wrong in (
        part(size=100_000_000),
        part(data=b"1" * (PART + 1), size=PART + 1),
        part(sha256="../" * 10),
        part(sha256="A" * 64),
        part(size=1, data=b"22"),
    ):
        call = lambda wrong=wrong: anna.stub.upload(wrong)  # noqa: E731
        assert code(call) == grpc.StatusCode.INVALID_ARGUMENT
    anna.stub.upload(part())
    other = part(sha256="b" * 64)
    assert code(lambda: anna.stub.upload(other)) == grpc.StatusCode.INVALID_ARGUMENT
    sizes = [path.stat().st_size for path in deployment.place.uploads.rglob("*.part")]
    assert sizes == [1]
    array.sha256, array.data = "b" * 64, b""
    assert code(lambda: anna.stub.submit(result)) == grpc.StatusCode.OUT_OF_RANGE

    declined = pb.Submission(task=result.task, outcome=pb.DECLINED)
    anna.stub.submit(declined)
    assert not list(deployment.place.uploads.iterdir())
    assert code(lambda: anna.stub.upload(part())) == grpc.StatusCode.NOT_FOUND
    assert answer.result(10).clients == ()


def test_parts_of_an_array(tmp_path: Path) -> None:
    uploads, data = Uploads(tmp_path), bytes(range(200))
    digest = hashlib.sha256(data).hexdigest()
    assert uploads.size("t", digest) == 0
    assert uploads.add("t", digest, 200, 0, data[:50], 2) == 50
    with pytest.raises(WrongOffsetError, match="50 bytes are there"):
        uploads.add("t", digest, 200, 60, data[60:], 2)
    with pytest.raises(UploadError, match="of an array of 200"):
        uploads.add("t", digest, 200, 50, data, 2)
    with pytest.raises(WrongOffsetError, match="50 bytes"):
        uploads.read("t", digest)
    assert uploads.add("t", digest, 200, 50, data[50:], 2) == 200
    assert uploads.add("t", digest, 200, 50, data[50:], 2) == 200
    assert uploads.read("t", digest) == data
    with pytest.raises(DamagedUploadError):
        uploads.add("t", "0" * 64, 3, 0, b"abc", 2)
    uploads.keep_only(["other"])
    assert not list(tmp_path.iterdir())
