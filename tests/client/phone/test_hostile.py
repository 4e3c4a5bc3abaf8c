"""A phone believes no gateway: sizes, shapes and numbers are checked before they are used."""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.phone.blobs import Blobs
from client.phone.checks import check_able, check_description, check_task, needs, order_of
from client.phone.link import Link
from client.phone.phone import Phone
from common.errors import ProtocolError
from common.phones.phones_pb2 import (
    EVALUATE,
    FAILED,
    SGD,
    STATISTICS,
    Backbone,
    Blob,
    CheckInReply,
    Description,
    FetchRequest,
    Part,
    Task,
    Training,
)
from common.phones.wire import PART
from tests.client.phone.conftest import (
    BACKBONE,
    HEAD,
    FakeGateway,
    StubTrainer,
    lines,
    sha256,
    small_description,
    task_of,
    turn,
)

Make = Callable[..., Phone]
TRAINING = {"optimizer": "sgd", "lr": 0.01, "epochs": 2, "batch_size": 5, "batch_seed": 11}


@pytest.fixture
def description(gateway: FakeGateway) -> Description:
    return small_description(gateway)


@pytest.fixture
def make(gateway: FakeGateway, description: Description) -> Callable[..., Task]:
    def make(**changed: Any) -> Task:
        task = task_of(gateway, description, HEAD, 12)
        for name, value in changed.items():
            if isinstance(value, dict):
                value = Training(**{**TRAINING, **value})
            whole = Task(**{name: value})
            task.ClearField(name)
            task.MergeFrom(whole)
        return task

    return make


def blob(size: int, digest: str = sha256(b"")) -> Blob:
    return Blob(sha256=digest, size=size)


TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "no id": ({"id": ""}, "id"),
    "a path as id": ({"id": "../../../etc/passwd"}, "id"),
    "another run": ({"run": "5"}, "run"),
    "another backbone": ({"fingerprint": "e" * 64}, "fingerprint"),
    "no kind": ({"kind": 0}, "kind"),
    "a kind to come": ({"kind": 9}, "kind"),
    "round 0": ({"round": 0}, "round"),
    "another number of classes": ({"num_classes": 3}, "num_classes"),
    "no features": ({"num_features": 0}, "num_features"),
    "a huge head": ({"num_features": 2**32 - 2, "head": blob(2**36)}, "number of head's numbers"),
    "no examples": ({"num_examples": 0}, "num_examples"),
    "2^32 examples": ({"num_examples": 2**32 - 1}, "num_examples"),
    "never late": ({"seconds_left": math.nan}, "seconds_left"),
    "no head": ({"head": Blob()}, "the head has no SHA-256"),
    "a head of another shape": ({"head": blob(31)}, "the head has 31 bytes, expected 32"),
    "an inline head of other bytes": (
        {"head": Blob(sha256=sha256(b"x"), size=32, data=bytes(32))},
        "the head holds other bytes",
    ),
    "a path as SHA-256": ({"head": blob(32, "../" * 21 + "x")}, "the head has no SHA-256"),
    "a correction of another shape": ({"correction": blob(28)}, "the correction has 28 bytes"),
    "another preconditioner": ({"preconditioner": blob(32)}, "the preconditioner has 32"),
    "no fields": ({"fields": []}, "fields"),
    "a field twice": ({"fields": ["delta", "delta"]}, "fields"),
    "the examples themselves": ({"fields": ["features"]}, "fields"),
    "sums beside an update": ({"fields": ["delta", "moments"]}, "fields"),
    "an unknown codec": ({"codec": "zip"}, "codec"),
    "an infinite norm": ({"max_norm": math.inf}, "max_norm"),
    "a clip in an open run": ({"clip": 1.0}, "clip"),
    "a unit norm in an open run": ({"unit_norm": 1.0}, "unit_norm"),
    "an unknown optimizer": ({"training": {"optimizer": "lbfgs"}}, "optimizer"),
    "a rate of 0": ({"training": {"lr": 0.0}}, "lr"),
    "a rate that is none": ({"training": {"lr": math.nan}}, "lr"),
    "no epochs": ({"training": {"epochs": 0}}, "epochs"),
    "no end": ({"training": {"epochs": 2**32 - 1}}, "number of steps"),
    "no batch": ({"training": {"batch_size": 0}}, "batch_size"),
    "momentum 1": ({"training": {"momentum": 1.0}}, "momentum"),
    "negative decay": ({"training": {"weight_decay": -1.0}}, "weight_decay"),
    "an infinite mu": ({"training": {"mu": math.inf}}, "mu"),
}


@pytest.mark.parametrize("name", TASKS)
def test_an_impossible_task_is_refused_before_anything_is_fetched(
    name: str,
    gateway: FakeGateway,
    description: Description,
    make: Callable[..., Task],
    phone: Make,
    link: Link,
    stub: StubTrainer,
) -> None:
    changed, words = TASKS[name]
    check_task(make(), description)
    task = make(**changed)
    with pytest.raises(ProtocolError, match=words):
        check_task(task, description)
    gateway.answers = [CheckInReply(description=description), CheckInReply(task=task)]
    turn(phone(), link)
    gateway.fetched.clear()
    turn(phone(), link)
    assert gateway.submissions[-1].outcome == FAILED
    assert words in gateway.submissions[-1].reason
    assert (gateway.fetched, stub.orders) == ([], [])


@pytest.mark.parametrize(
    "changed",
    [
        {"fields": ["delta"]},
        {"fields": ["delta"], "clip": 0.0},
        {"kind": STATISTICS, "fields": ["moments"]},
        {"kind": STATISTICS, "fields": ["clipped_delta"]},
        {"kind": EVALUATE, "fields": []},
        {"clip": math.inf},
        {"codec": "int8"},
        {"correction": blob(32)},
    ],
)
def test_in_a_private_run_nothing_but_the_clipped_update_leaves_the_phone(
    changed: dict[str, Any], gateway: FakeGateway, make: Callable[..., Task]
) -> None:
    private = small_description(gateway, private=True)
    task = make(fields=["clipped_delta", "within_clip"], clip=0.5, num_examples=1)
    check_task(task, private)
    for name, value in changed.items():
        task.ClearField(name)
        task.MergeFrom(Task(**{name: value}))
    with pytest.raises(ProtocolError):
        check_task(task, private)


@pytest.mark.parametrize(
    "changed",
    [
        {"id": ""},
        {"id": "../descriptions"},
        {"run": "../../x"},
        {"run": ""},
        {"fingerprint": "f" * 63},
        {"classes": ["a"]},
        {"classes": ["a", "a"]},
        {"classes": ["a", ""]},
        {"classes": ["a", "b" * 256]},
        {"classes": [str(i) for i in range(20_000)]},
        {"test_fraction": 1.0},
        {"test_fraction": math.nan},
        {"client": 2**63},
        {"backbones": [Backbone(format="torch", file=blob(2**40))]},
        {"backbones": [Backbone(format="torch")]},
        {"backbones": []},
        {"backbones": [Backbone(format="lite", file=blob(5))]},
    ],
)
def test_an_impossible_description_is_refused_and_the_gateway_is_told(
    changed: dict[str, Any], gateway: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    description = small_description(gateway, **changed)
    gateway.answers = [CheckInReply(description=description)]
    turn(phone(), link, 2)
    assert gateway.check_ins[1].problem.startswith("description: ")
    assert (gateway.fetched, stub.prepared) == ([], [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2e30])
def test_a_head_with_an_impossible_number_is_refused(
    value: float, gateway: FakeGateway, description: Description
) -> None:
    head = HEAD.copy()
    head[1, 2] = value
    task = task_of(gateway, description, head, 12)
    with pytest.raises(ProtocolError, match="the head holds a number"):
        order_of(task, description, head.tobytes(), b"", b"")
    with pytest.raises(ProtocolError, match="the correction holds a number"):
        order_of(task, description, HEAD.tobytes(), head.tobytes(), b"")


class Lying(FakeGateway):
    """Answers fetches with what a function makes of the honest part."""

    lie: Callable[[Part], Part]

    async def fetch(self, request: FetchRequest, context: Any) -> Part:
        return self.lie(await super().fetch(request, context))


def changed(part: Part, **fields: Any) -> Part:
    other = Part()
    other.CopyFrom(part)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


@pytest.mark.parametrize(
    "lie",
    [
        lambda part: changed(part, data=b""),
        lambda part: changed(part, data=part.data[:1]),
        lambda part: changed(part, data=part.data + b"x"),
        lambda part: changed(part, size=part.size + 1),
        lambda part: changed(part, offset=part.offset + 1),
        lambda part: changed(part, sha256=sha256(b"")),
        lambda part: changed(part, data=bytes(len(part.data))),
    ],
)
def test_a_blob_that_is_sent_wrongly_is_not_used(
    lie: Callable[[Part], Part],
    standing: Any,
    gateway: FakeGateway,
    folder: Path,
    stub: StubTrainer,
) -> None:
    lying = Lying(gateway.folder)
    lying.lie = lie
    standing.start(lying)
    lying.answers = [CheckInReply(description=small_description(lying))]
    address = f"127.0.0.1:{lying.port}"
    link = Link(address, authority=folder / "ca.crt", token=folder / "phone.token")
    turn(Phone(link, stub, folder / "state", wait_seconds=0), link, 2)
    assert lying.check_ins[1].problem.startswith("description: blob ")
    assert stub.prepared == [None]
    assert len(lying.fetched) <= 2 * (len(BACKBONE) // PART + 1)


def test_blobs_take_no_more_room_than_they_may(
    gateway: FakeGateway, link: Link, tmp_path: Path
) -> None:
    blobs = Blobs(tmp_path / "blobs", link, 3000)
    datas = [random.Random(i).randbytes(1000) for i in range(4)]

    async def fetch(data: bytes) -> None:
        assert await blobs.get(gateway.blob(data)) == data

    async def work() -> None:
        async with link:
            for age, data in zip((9, 8, 7), datas, strict=False):
                await fetch(data)
                os.utime(tmp_path / "blobs" / sha256(data), (1e9 - age, 1e9 - age))
            await fetch(datas[0])  # used again, so that the second is the oldest
            await fetch(datas[3])

    asyncio.run(work())
    left = {path.name for path in (tmp_path / "blobs").iterdir()}
    assert left == {sha256(datas[i]) for i in (0, 2, 3)}
    assert len(gateway.fetched) == 4


def test_a_blob_that_was_damaged_on_the_disk_is_fetched_again(
    gateway: FakeGateway, link: Link, tmp_path: Path
) -> None:
    blobs = Blobs(tmp_path / "blobs", link, 3000)
    data = b"a blob"

    async def work() -> None:
        async with link:
            await blobs.get(gateway.blob(data))
            (tmp_path / "blobs" / sha256(data)).write_bytes(b"a bIob")
            assert await blobs.get(gateway.blob(data)) == data

    asyncio.run(work())
    assert len(gateway.fetched) == 2


def test_a_task_asks_for_the_abilities_that_its_numbers_need(make: Callable[..., Task]) -> None:
    assert needs(make()) == ["sgd"]
    assert needs(make(training={"momentum": 0.9, "weight_decay": 0.1, "mu": 1.0})) == [
        "sgd", "momentum", "weight-decay", "mu",
    ]  # fmt: skip
    assert needs(make(training={"optimizer": "adam"})) == ["sgd", "adam"]
    assert needs(make(codec="int8", correction=blob(32), preconditioner=blob(64), clip=1.0)) == [
        "sgd", "correction", "preconditioner", "clip", "codec:int8",
    ]  # fmt: skip
    assert needs(make(kind=STATISTICS)) == ["statistics"]
    assert needs(make(kind=EVALUATE)) == ["evaluate"]
    assert make().kind == SGD


def test_what_a_phone_cannot_do_it_does_not_do_by_halves(make: Callable[..., Task]) -> None:
    check_able(make(), ["sgd"])
    with pytest.raises(ProtocolError, match="momentum"):
        check_able(make(training={"momentum": 0.5}), ["sgd"])


def test_a_description_is_refused_for_what_is_wrong_with_it(description: Description) -> None:
    check_description(description)
    description.test_fraction = -0.1
    with pytest.raises(ProtocolError, match="impossible test_fraction"):
        check_description(description)


@pytest.mark.parametrize("reply", [CheckInReply(), CheckInReply(description=Description())])
def test_a_gateway_that_answers_nonsense_is_asked_ever_more_rarely(
    reply: CheckInReply, gateway: FakeGateway, phone: Make, link: Link
) -> None:
    gateway.answer = lambda request: reply
    pauses = lines(5, phone(), link)
    assert [2 * a for a in pauses[:-1]] == pauses[1:]


def test_a_description_that_comes_again_and_again_does_not_keep_a_phone_busy(
    gateway: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    gateway.answer = lambda request: CheckInReply(description=small_description(gateway))
    pauses = lines(4, phone(), link)
    assert pauses[0] == 0.0
    assert [2 * a for a in pauses[1:-1]] == pauses[2:]
    assert len(stub.prepared) == 2
    assert np.isfinite(pauses).all()
