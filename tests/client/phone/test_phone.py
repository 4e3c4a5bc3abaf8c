"""A phone's part of the protocol, against a gateway that fails, forgets and is killed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from client.budget import Budget
from client.phone.kept import Kept
from client.phone.link import CallError, Link
from client.phone.pace import LONGEST_SECONDS, Pace
from client.phone.phone import Phone
from common.errors import BackboneError, DataError, ProtocolError, SignatureError
from common.phones.phones_pb2 import (
    DECLINED,
    DONE,
    EVALUATE,
    FAILED,
    CheckInReply,
    Later,
    Verdict,
)
from common.phones.wire import INLINE_UPDATE, PART
from tests.client.phone.conftest import (
    BACKBONE,
    HEAD,
    FakeGateway,
    Standing,
    StubTrainer,
    lines,
    sha256,
    small_description,
    task_of,
    turn,
)

DOWN = grpc.StatusCode.UNAVAILABLE
Make = Callable[..., Phone]


@pytest.fixture
def described(gateway: FakeGateway) -> FakeGateway:
    gateway.answers = [CheckInReply(description=small_description(gateway))]
    return gateway


def with_task(gateway: FakeGateway, num_examples: int = 12, **changed: object) -> FakeGateway:
    description = small_description(gateway)
    task = task_of(gateway, description, HEAD, num_examples, **changed)
    gateway.answers += [CheckInReply(task=task)]
    return gateway


def test_a_run_is_met_once_and_told_of_from_then_on(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    assert turn(phone(), link)[0] == 0.0
    assert 0.05 <= turn(phone(), link)[0] <= 0.1
    assert stub.prepared == [None, BACKBONE]
    first, second = described.check_ins
    assert not first.holdings
    assert [(h.description, h.num_examples, h.num_test_examples) for h in second.holdings] == [
        (sha256(b"a run"), 12, 4)
    ]
    assert second.ready
    assert list(second.formats) == ["torch"]


def test_a_private_run_is_told_only_whether_there_are_examples(
    gateway: FakeGateway, phone: Make, link: Link
) -> None:
    gateway.answers = [CheckInReply(description=small_description(gateway, private=True))]
    turn(phone(), link, 2)
    held = gateway.check_ins[1].holdings[0]
    assert (held.num_examples, held.num_test_examples) == (1, 0)


def test_a_private_task_does_not_tell_how_long_it_took(
    gateway: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    stub.abilities = ("sgd", "clip")
    stub.arrays = {"clipped_delta": bytes(INLINE_UPDATE + 4), "within_clip": bytes(4)}
    for private in (True, False):
        description = small_description(gateway, private=private, id=sha256(bytes([private])))
        changed = {"clip": 0.5, "fields": list(stub.arrays)} if private else {}
        task = task_of(gateway, description, HEAD, 1 if private else 12, **changed)
        gateway.answers = [CheckInReply(description=description), CheckInReply(task=task)]
        turn(phone(), link, 2)
    hidden, told = gateway.submissions
    assert [a.field for a in hidden.arrays] == list(stub.arrays)
    assert (hidden.fetch_seconds, hidden.train_seconds, hidden.upload_seconds) == (0, 0, 0)
    assert min(told.fetch_seconds, told.train_seconds, told.upload_seconds) > 0


def test_a_fetch_goes_on_where_a_killed_phone_ended(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    described.answers *= 3
    described.failures["fetch"] = [None, None, DOWN, None, DOWN]
    for _ in range(2):
        with pytest.raises(CallError, match="planned"):
            turn(phone(), link)
    turn(phone(), link)
    assert [request.offset // PART for request in described.fetched] == [0, 1, 2, 2, 3, 3]
    assert stub.prepared[-1] == BACKBONE


def test_a_task_is_done_and_sent(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer, folder: Path
) -> None:
    with_task(described)
    pauses = turn(phone(), link, 2)
    assert 0.05 <= pauses[1] <= 0.1
    (sent,) = described.submissions
    assert (sent.outcome, sent.num_examples, sent.fingerprint) == (DONE, 12, "f" * 64)
    assert (sent.loss_before, sent.loss_after) == (0.7, 0.6)
    assert [(a.field, a.data) for a in sent.arrays] == [("delta", bytes(32))]
    (order,) = stub.orders
    assert np.array_equal(order.head.matrix, HEAD)
    assert (order.batch_seed, order.training.batch_size, order.training.local_epochs) == (11, 5, 2)
    assert Kept(folder / "state").work() is None


def test_an_evaluation_is_sent_without_arrays(
    described: FakeGateway, phone: Make, link: Link
) -> None:
    with_task(described, kind=EVALUATE, fields=[], num_examples=4)
    turn(phone(), link, 2)
    (sent,) = described.submissions
    assert (sent.outcome, sent.num_examples, sent.correct) == (DONE, 4, 3)
    assert len(sent.losses) == 8 * 49
    assert not sent.arrays


def test_a_result_is_sent_again_until_the_verdict_and_never_computed_again(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    with_task(described)
    described.failures["submit"] = [DOWN, grpc.StatusCode.DEADLINE_EXCEEDED]
    turn(phone(), link)
    for _ in range(2):
        with pytest.raises(CallError):
            turn(phone(), link)  # a phone that was started again
    turn(phone(), link)
    assert len(stub.orders) == 1
    assert len(described.submissions) == 3
    assert len(described.check_ins) == 2
    for sent in described.submissions:
        sent.upload_seconds = 0
    assert described.submissions[0] == described.submissions[2]


def test_a_task_that_the_gateway_does_not_know_is_forgotten(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    with_task(described)
    described.failures["submit"] = [grpc.StatusCode.NOT_FOUND]
    with pytest.raises(CallError):
        turn(phone(), link, 2)
    turn(phone(), link)
    assert (len(described.submissions), len(described.check_ins)) == (1, 3)


def test_a_task_whose_time_was_over_before_it_was_done_is_forgotten(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    with_task(described, seconds_left=0.0)
    turn(phone(), link, 2)
    turn(phone(), link)
    assert (stub.orders, described.submissions, len(described.check_ins)) == ([], [], 3)


@pytest.mark.parametrize(
    "code", [None, DOWN, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS]
)
def test_a_large_array_is_uploaded_and_goes_on_after_a_failure(
    code: grpc.StatusCode | None,
    described: FakeGateway,
    phone: Make,
    link: Link,
    stub: StubTrainer,
) -> None:
    with_task(described)
    data = BACKBONE
    stub.arrays = {"delta": data}
    described.failures["upload"] = [None, None, code]
    turn(phone(), link)
    if code is DOWN:
        with pytest.raises(CallError):
            turn(phone(), link)
    turn(phone(), link)
    (sent,) = described.submissions
    assert [(a.field, a.data, a.sha256) for a in sent.arrays] == [("delta", b"", sha256(data))]
    assert bytes(described.uploads[sha256(data)]) == data
    asked = [part.offset // PART for part in described.parts if part.data]
    assert asked == ([0, 1, 2, 3] if code is None else [0, 1, 1, 2, 3])
    assert len(data) > INLINE_UPDATE
    assert len(stub.orders) == 1


def test_an_upload_that_is_lost_again_and_again_ends(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    with_task(described)
    stub.arrays = {"delta": BACKBONE}
    described.failures["upload"] = [None, *([grpc.StatusCode.DATA_LOSS, None] * 9)]
    with pytest.raises(CallError):
        turn(phone(), link, 2)


def test_a_verdict_that_was_lost_is_asked_for_although_uploads_have_ended(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    with_task(described)
    stub.arrays = {"delta": BACKBONE}
    described.failures["submit"] = [DOWN]
    with pytest.raises(CallError):
        turn(phone(), link, 2)
    described.failures["upload"] = [grpc.StatusCode.NOT_FOUND]  # it has judged the result
    turn(phone(), link)
    assert len(described.submissions) == 2
    turn(phone(), link)
    assert len(described.check_ins) == 3


@pytest.mark.parametrize("code", [grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS])
def test_an_array_that_the_gateway_has_lost_is_uploaded_again(
    code: grpc.StatusCode, described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    with_task(described)
    stub.arrays = {"delta": BACKBONE}
    turn(phone(), link)

    def lose(_: object) -> None:
        described.uploads.clear()

    described.on_failure = lose
    described.failures["submit"] = [code]
    turn(phone(), link)
    assert len(described.submissions) == 2
    assert bytes(described.uploads[sha256(BACKBONE)]) == BACKBONE
    assert len(stub.orders) == 1


def test_a_run_that_it_cannot_join_keeps_a_phone_from_no_other_run(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    turn(phone(), link)
    stub.problem = SignatureError("not signed")
    other = small_description(described, id=sha256(b"other"))
    described.answers = [CheckInReply(description=other)] * 9
    pauses = lines(9, phone(), link)
    assert max(pauses) == 60.0
    stub.problem = None
    with_task(described)
    turn(phone(), link)
    assert described.submissions[-1].outcome == DONE
    assert {request.problem for request in described.check_ins} == {""}


def test_a_window_is_drawn_from_uniformly_and_failures_double_it_up_to_an_hour() -> None:
    drawn = []
    pace = Pace(lambda low, high: drawn.append((low, high)) or (low + high) / 2)
    assert pace.later(Later(min_seconds=10, max_seconds=30)) == 20
    assert drawn[-1] == (10, 30)
    assert [pace.again() for _ in range(3)] == [40, 80, 160]
    assert [pace.again() for _ in range(9)][-1] == LONGEST_SECONDS
    assert pace.later(Later(min_seconds=10, max_seconds=30)) == 20
    assert pace.later(Later(min_seconds=0, max_seconds=0)) > 0


@pytest.mark.parametrize("window", [(2, 1), (-1, 1), (0, np.inf), (np.nan, 1), (0, np.nan)])
def test_a_window_that_is_none_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(ProtocolError, match="window"):
        Pace().later(Later(min_seconds=window[0], max_seconds=window[1]))


def test_two_phones_that_are_told_the_same_do_not_come_at_the_same_time() -> None:
    window = Later(min_seconds=10, max_seconds=30)
    times = {Pace().later(window) for _ in range(50)}
    assert len(times) == 50
    assert all(10 <= seconds <= 30 for seconds in times)


def test_a_refused_token_is_tried_ever_more_rarely_and_said_once(
    gateway: FakeGateway, phone: Make, link: Link, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "phone.token").write_text("anna.wrong\n")
    with caplog.at_level(logging.WARNING, "fedhead"):
        pauses = lines(16, phone(), link)
    assert [2 * a for a in pauses[:9]] == pauses[1:10]
    assert pauses[-1] == LONGEST_SECONDS
    said = [r.getMessage() for r in caplog.records if "the token is unknown" in r.getMessage()]
    assert len(said) == 1
    assert "anna.wrong" not in caplog.text


def test_a_phone_finds_a_gateway_that_was_started_again(
    gateway: FakeGateway, standing: Standing, phone: Make, link: Link
) -> None:
    described = small_description(gateway)
    gateway.answers = [CheckInReply(description=described)]
    gateway.failures["check_in"] = [grpc.StatusCode.RESOURCE_EXHAUSTED, DOWN]
    pauses = lines(5, phone(), link)
    assert pauses[1] == 2 * pauses[0]
    assert pauses[2] == 0.0
    assert pauses[3] <= 0.1


def test_a_gateway_of_another_authority_is_not_spoken_to(
    gateway: FakeGateway, standing: Standing, phone_pki: Path, folder: Path, stub: StubTrainer
) -> None:
    other = FakeGateway(gateway.folder)
    standing.start(other, name="foreign")
    address = f"127.0.0.1:{other.port}"
    link = Link(address, authority=folder / "ca.crt", token=folder / "phone.token")
    with pytest.raises(CallError, match="not trusted: no authority in .*ca.crt"):
        turn(Phone(link, stub, folder / "state"), link)
    assert other.check_ins == []


def test_an_owner_who_says_no_is_asked_before_each_training(
    described: FakeGateway, phone: Make, link: Link, folder: Path, stub: StubTrainer
) -> None:
    with_task(described)
    may = folder / "may"
    budget = Budget(allow=f"test -e {may}")
    may.touch()
    turn(phone(budget=budget), link)
    assert described.check_ins[0].ready

    may.unlink()
    turn(phone(budget=budget), link)
    assert not described.check_ins[1].ready
    (sent,) = described.submissions
    assert (sent.outcome, sent.reason) == (DECLINED, "its owner's command says no")
    assert stub.orders == []


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (SignatureError("backbone ff is refused: /home/anna"), "unsigned-backbone"),
        (BackboneError("/home/anna"), "foreign-fingerprint"),
        (DataError("/home/anna/cats: no images"), "images"),
        (OSError("/home/anna"), "disk"),
        (ValueError("/home/anna"), "error"),
    ],
)
def test_what_keeps_a_phone_from_a_run_is_told_without_the_owners_data(
    error: Exception, word: str, described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    stub.problem = error
    made = phone()
    assert turn(made, link)[0] > 0.5
    turn(made, link)
    problem = described.check_ins[1].problem
    assert problem.startswith(f"{word}: ")
    assert "anna" not in problem
    assert len(problem) <= 200
    assert not described.check_ins[1].holdings


def test_a_training_that_fails_is_told_by_its_kind(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    with_task(described)
    turn(phone(), link)
    stub.problem = DataError("/home/anna/cats/1.png: damaged")
    turn(phone(), link)
    (sent,) = described.submissions
    assert (sent.outcome, sent.reason) == (FAILED, "its images cannot be used; see its own log")


def test_a_backbone_that_may_not_be_used_any_more_is_asked_for_again(
    described: FakeGateway, phone: Make, link: Link, stub: StubTrainer
) -> None:
    with_task(described)
    turn(phone(), link)
    stub.problem = SignatureError("its signature expired")
    turn(phone(), link)
    turn(phone(), link)
    assert described.submissions[0].outcome == FAILED
    assert not described.check_ins[2].holdings


def test_a_refusal_is_told_to_the_owner(
    described: FakeGateway, phone: Make, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    with_task(described)
    described.verdict = Verdict(what=Verdict.REFUSED, reason="above-norm\x1b[2J")
    with caplog.at_level(logging.INFO, "fedhead"):
        turn(phone(), link, 2)
    assert "round 3: sent delta: refused (above-norm [2J)" in caplog.text


def test_only_the_last_eight_runs_are_remembered(
    gateway: FakeGateway, phone: Make, link: Link
) -> None:
    ids = [sha256(bytes([i])) for i in range(10)]
    gateway.answers = [
        CheckInReply(description=small_description(gateway, id=name)) for name in ids
    ]
    turn(phone(), link, 11)
    assert {h.description for h in gateway.check_ins[-1].holdings} == {*ids[2:]}
