"""A private run: nothing without noise is told, logged or kept longer than it must be."""

from __future__ import annotations

import logging
import time

import pytest

from client.discretion import UNTOLD
from client.gateway import rounds as module
from client.gateway.figures import read_fleet
from common.errors import ProtocolError
from common.messages import EvaluateRequest, TrainRequest
from common.phones import phones_pb2 as pb
from common.types import ClientPlan
from tests.client.gateway.actors import FINGERPRINT, RUN, Deployment, Phone, request_for

PLAN = ClientPlan(
    fields=("clipped_delta", "within_clip"), weighting="uniform", clip=0.65, unit_norm=2.0
)
NAMES = ("anna", "ben", "cleo", "dora")


def private(phones: list[Phone], **changes: object) -> TrainRequest:
    return request_for(phones, plan=PLAN, **changes)


def test_phones_say_only_that_they_have_examples(deployment: Deployment) -> None:
    phones = deployment.gather(*NAMES, private=True)
    reply = deployment.describe(private=True)
    assert set(reply.num_examples) == {1}
    answer = deployment.train(private(phones))
    tasks = [phone.next_task() for phone in phones]
    assert {task.num_examples for task in tasks} == {1}
    assert all(task.clip == 0.65 and task.unit_norm == 2.0 for task in tasks)
    talkative = phones[0].done(tasks[0])
    talkative.loss_before, talkative.loss_after = 1.23456789, 0.5
    assert phones[0].submit(talkative).what == pb.Verdict.ACCEPTED
    more = phones[1].done(tasks[1])
    more.num_examples = len(phones[1].train)
    assert phones[1].submit(more).reason.startswith("wrong-count")
    for phone, task in list(zip(phones, tasks, strict=True))[2:]:
        phone.submit(phone.done(task))
    reply = answer.result(10)
    assert {(r.num_examples, r.loss_before, r.loss_after) for r in reply.reports} == {(1, 0.0, 0.0)}
    assert [(r.client, r.reason) for r in reply.rejected] == [(phones[1].client, UNTOLD)]


def test_what_a_talkative_phone_says_of_its_examples_is_forgotten(
    deployment: Deployment,
) -> None:
    (anna,) = deployment.gather("anna", private=True)
    (description,) = anna.holdings
    counts = pb.Holding(description=description, num_examples=4711, num_test_examples=1174)
    anna.stub.check_in(
        pb.CheckInRequest(
            ready=True, formats=["torch"], abilities=anna.abilities, holdings=[counts]
        )
    )
    assert deployment.describe(private=True).num_examples == (1,)
    assert deployment.running
    deployment.running.call(deployment.running.gateway.keep)
    files = [path for path in deployment.place.state.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        assert b"4711" not in path.read_bytes()
        assert b"1174" not in path.read_bytes()


def test_a_private_runs_phones_do_nothing_that_has_no_noise(deployment: Deployment) -> None:
    phones = deployment.gather("anna", private=True)
    request = request_for(phones)
    evaluation = EvaluateRequest(request.head, request.clients, FINGERPRINT, RUN, seconds=9.0)
    for ask in (lambda: deployment.train(request), lambda: deployment.evaluate(evaluation)):
        with pytest.raises(ProtocolError, match="private, but asks for a (sgd|evaluate) round"):
            ask().result(20)
    assert phones[0].check_in().WhichOneof("what") == "later"


def test_an_update_beyond_the_clip_is_refused(deployment: Deployment) -> None:
    phones = deployment.gather(*NAMES, private=True)
    answer = deployment.train(private(phones))
    far = phones[0].done(phones[0].next_task())
    field = next(array for array in far.arrays if array.field == "clipped_delta")
    field.data = b"\xff\xff\x1f\x00" * (len(field.data) // 4)
    assert phones[0].submit(far).reason.startswith("above-norm")
    for phone in phones[1:]:
        assert phone.take_part().what == pb.Verdict.ACCEPTED
    assert len(answer.result(10).clients) == 3


def test_neither_figures_nor_logs_tell_who_took_part(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fedhead")
    phones = deployment.gather(*NAMES, private=True)
    assert deployment.running
    gateway = deployment.running.gateway
    before = {name: row["last_seen"] for name, row in gateway.presence.rows().items()}
    cohort = phones[:2]
    answer = deployment.train(private(cohort, seconds=6.0))
    held = [phone.next_task() for phone in cohort]
    asked = {name: row["last_seen"] for name, row in gateway.presence.rows().items()}
    time.sleep(0.2)
    assert cohort[0].submit(cohort[0].done(held[0])).what == pb.Verdict.ACCEPTED
    declined = pb.Submission(task=held[1].id, outcome=pb.DECLINED, reason="battery")
    assert cohort[1].submit(declined).what == pb.Verdict.NOTED
    reply = answer.result(20)
    assert [r.reason for r in reply.rejected] == [UNTOLD]
    assert deployment.describe(private=True).clients == tuple(sorted(p.client for p in phones))

    deployment.running.call(gateway.keep)
    fleet = read_fleet(deployment.place.fleet)
    assert fleet["rounds"] == []
    assert fleet["counters"] == {}
    assert all(row["counts"] == {} for row in fleet["phones"].values())
    seen = {name: row["last_seen"] for name, row in fleet["phones"].items()}
    assert seen == {name: last // 3600 * 3600 for name, last in asked.items()}
    now = {name: row["last_seen"] for name, row in gateway.presence.rows().items()}
    assert now == asked, "a submission leaves no trace"
    assert set(before) == set(NAMES)
    for phone in phones:
        assert phone.name not in caplog.text
        assert str(phone.client) not in caplog.text


def test_what_a_private_round_kept_goes_with_it(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ASKED_AGAIN", 0.0)
    phones = deployment.gather(*NAMES, private=True)
    answer = deployment.train(private(phones, seconds=4.0))
    results = [phone.done(phone.next_task()) for phone in phones]
    for phone, result in zip(phones, results, strict=True):
        assert phone.submit(result).what == pb.Verdict.ACCEPTED
    assert len(answer.result(10).clients) == 4
    ends = time.monotonic() + 15
    while list(deployment.place.rounds.iterdir()):
        assert time.monotonic() < ends, "the updates, which have no noise, are on the disk still"
        time.sleep(0.1)
    state = b"".join(path.read_bytes() for path in deployment.place.state.rglob("*.*"))
    for result in results:
        assert result.task.encode() not in state


def test_a_public_rounds_verdicts_are_known_after_it(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ASKED_AGAIN", 0.0)
    phones = deployment.gather("anna", "ben")
    answer = deployment.train(request_for(phones, seconds=4.0))
    results = [phone.done(phone.next_task()) for phone in phones]
    assert phones[0].submit(results[0]).what == pb.Verdict.ACCEPTED
    answer.result(10)
    ends = time.monotonic() + 15
    while list(deployment.place.rounds.iterdir()):
        assert time.monotonic() < ends
        time.sleep(0.1)
    assert phones[0].submit(results[0]).what == pb.Verdict.ACCEPTED
    assert phones[1].submit(results[1]).what == pb.Verdict.LATE
