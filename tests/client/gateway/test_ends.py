"""How rounds end: what is counted, what is kept, and who may know of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from client.gateway.figures import read_fleet
from client.gateway.record import read_record, write_record
from client.gateway.training import TrainOrder
from common.delivery.tokens import revoke_token
from common.messages import TrainReply
from common.phones import phones_pb2 as pb
from tests.client.gateway.actors import Deployment, Phone, request_for
from tests.client.gateway.test_presence import wait_until
from tests.client.gateway.test_untold import private

# Each waits for rounds to end.
pytestmark = pytest.mark.wide


def kept(deployment: Deployment) -> dict[str, Any]:
    assert deployment.running
    deployment.running.call(deployment.running.gateway.keep)
    return read_fleet(deployment.place.fleet)


def done(phone: Phone) -> pb.Submission:
    return phone.done(phone.next_task())


def folders(deployment: Deployment) -> int:
    return sum(1 for _ in deployment.place.rounds.glob("*"))


def test_a_later_round_ends_the_one_that_the_server_has_given_up(deployment: Deployment) -> None:
    phones = deployment.gather("anna", "ben")
    first = request_for(phones)
    begun = time.monotonic()
    given_up = deployment.train(first)
    late = done(phones[0])
    answer = deployment.train(replace(first, round_number=2))
    reply: TrainReply = given_up.result(10)
    assert time.monotonic() - begun < 20, "it does not wait for its own end"
    assert {r.reason for r in reply.rejected} == {"late"}
    for _ in range(2):
        assert phones[0].submit(late).what == pb.Verdict.LATE
    for phone in phones:
        assert phone.take_part().what == pb.Verdict.ACCEPTED
    assert len(answer.result(10).clients) == 2
    wait_until(lambda: folders(deployment) == 1)
    assert phones[0].submit(late).what == pb.Verdict.LATE, "also once the round is forgotten"
    counts = kept(deployment)["phones"]["ben"]["counts"]
    assert counts == {"tasks": 1, "accepted": 1}, "the server had enough: ben has lost nothing"


def test_an_equal_round_of_another_run_goes_on(deployment: Deployment) -> None:
    phones = deployment.gather("anna", "ben")
    deployment.describe("run-2")
    for phone in phones:
        phone.arrive()
    assert len(deployment.describe("run-2").clients) == 2
    answers = [deployment.train(request_for([phones[0]], seconds=9.0))]
    wait_until(lambda: folders(deployment) == 1)
    answers.append(
        deployment.train(request_for([phones[1]], run_id="run-2", round_number=5, seconds=9.0))
    )
    for phone in phones:
        assert phone.take_part().what == pb.Verdict.ACCEPTED
    assert [len(answer.result(10).clients) for answer in answers] == [1, 1]


def test_a_phone_that_is_at_work_still_is_not_offered_once_its_round_is_forgotten(
    deployment: Deployment,
) -> None:
    anna, ben = deployment.gather("anna", "ben")
    given_up = deployment.train(request_for([anna, ben], seconds=9.0))
    late = done(ben)
    answer = deployment.train(request_for([anna], round_number=2))
    given_up.result(10)
    anna.take_part()
    answer.result(10)
    wait_until(lambda: folders(deployment) == 1)
    assert deployment.describe().clients == (anna.client,)
    assert ben.submit(late).what == pb.Verdict.LATE
    ben.check_in()
    assert len(deployment.describe().clients) == 2


def test_no_run_learns_from_who_is_free_whom_a_private_one_asks(deployment: Deployment) -> None:
    phones = deployment.gather("anna", "ben", "cleo", private=True)
    deployment.describe("run-2")
    for phone in phones:
        phone.arrive()
    everyone = tuple(sorted(phone.client for phone in phones))
    answer = deployment.train(private(phones[:2], seconds=9.0))
    results = [done(phone) for phone in phones[:2]]
    assert deployment.describe("run-2").clients == everyone
    assert phones[0].submit(results[0]).what == pb.Verdict.ACCEPTED
    assert deployment.describe("run-2").clients == everyone
    assert phones[1].submit(results[1]).what == pb.Verdict.ACCEPTED
    answer.result(10)
    assert deployment.describe("run-2").clients == everyone


def test_phones_at_private_work_are_not_missed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = deployment.gather("anna", "ben", private=True)
    answer = deployment.train(private([anna], seconds=9.0))
    result = done(anna)
    monkeypatch.setattr("client.gateway.presence._LEAST_LATELY", 0.0)
    monkeypatch.setattr("client.gateway.presence._LATELY", 0.0)
    ben.check_in()
    assert deployment.describe(private=True).clients == (anna.client,), "she has not come again"
    fleet = kept(deployment)
    assert fleet["checked_in_lately"] == 1
    assert [row["last_seen"] % 3600 for row in fleet["phones"].values()] == [0, 0]
    assert anna.submit(result).what == pb.Verdict.ACCEPTED
    answer.result(10)


def test_times_are_told_where_no_private_run_goes_on(deployment: Deployment) -> None:
    deployment.gather("anna")
    (row,) = kept(deployment)["phones"].values()
    assert abs(row["last_seen"] - time.time()) < 60


def test_a_private_round_is_off_the_disk_once_it_is_answered(deployment: Deployment) -> None:
    phones = deployment.gather("anna", "ben", private=True)
    request = private(phones)
    answer = deployment.train(request)
    results = [done(phone) for phone in phones]
    for phone, result in zip(phones, results, strict=True):
        assert phone.submit(result).what == pb.Verdict.ACCEPTED
    first = answer.result(10)
    assert folders(deployment) == 0
    again = deployment.train(replace(request, seconds=30.0)).result(10)
    assert again.payloads == first.payloads
    assert phones[0].submit(results[0]).what == pb.Verdict.ACCEPTED
    assert folders(deployment) == 0


def test_messages_at_once_share_one_sum(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (anna,) = deployment.gather("anna")
    calls, reply = Counter[str](), TrainOrder.reply

    def slowly(self: TrainOrder, *arguments: Any) -> bytes:
        calls["reply"] += 1
        time.sleep(0.5)
        if calls["reply"] == 1:
            raise OSError("planned")
        return reply(self, *arguments)

    told = list[object]()
    assert deployment.running
    monkeypatch.setattr(deployment.running.gateway.figures, "tell", told.append)
    monkeypatch.setattr(TrainOrder, "reply", slowly)
    request = request_for([anna])
    failing = [deployment.train(request) for _ in range(3)]
    anna.take_part()
    for answer in failing:
        with pytest.raises(Exception, match="OSError"):
            answer.result(20)
    assert calls["reply"] == 1
    answers = [deployment.train(request) for _ in range(3)]
    assert {answer.result(20).clients for answer in answers} == {(anna.client,)}
    assert calls["reply"] == 2
    assert len(told) == 1


def test_a_result_that_is_wrong_and_late_is_late_alone(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = deployment.gather("anna", "ben")
    judged = TrainOrder.judged

    def slowly(*arguments: Any) -> Any:
        time.sleep(5.0)
        return judged(*arguments)

    answer = deployment.train(request_for([anna, ben], seconds=5.0))
    ben.take_part()
    wrong = done(anna)
    wrong.num_examples += 1
    monkeypatch.setattr(TrainOrder, "judged", slowly)
    assert anna.submit(wrong).what == pb.Verdict.LATE
    assert [r.reason for r in answer.result(10).rejected] == ["late"]
    fleet = kept(deployment)
    (row,) = fleet["rounds"]
    assert (row["late"], row["silent"], row["refused"]) == (1, 0, {})
    assert {n: k for n, k in fleet["counters"].items() if k} == {"accepted": 1, "late": 1}
    counts = fleet["phones"]["anna"]["counts"]
    assert {n: k for n, k in counts.items() if k} == {"tasks": 1, "late": 1}


def test_those_beyond_enough_are_over_selected_and_have_lost_nothing(
    deployment: Deployment,
) -> None:
    anna, ben = deployment.gather("anna", "ben")
    request = request_for([anna, ben], enough=1)
    answer = deployment.train(request)
    late = done(ben)
    anna.take_part()
    assert answer.result(10).clients == (anna.client,)
    assert ben.submit(late).what == pb.Verdict.LATE
    for _ in range(2):
        fleet = kept(deployment)
        (row,) = fleet["rounds"]
        assert (row["accepted"], row["over-selected"]) == (1, 1)
        assert (row["late"], row["silent"]) == (0, 0)
        assert sum(fleet["phones"]["ben"]["counts"].values()) == 0
        deployment.stop()
        deployment.start()


def test_a_server_that_asks_again_may_wait_longer(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    request = request_for([anna], seconds=4.0)
    answers = [deployment.train(request)]
    result = done(anna)
    time.sleep(0.5)
    answers.append(deployment.train(replace(request, seconds=30.0)))
    time.sleep(3.0)
    assert anna.submit(result).what == pb.Verdict.ACCEPTED
    assert {answer.result(10).clients for answer in answers} == {(anna.client,)}


def test_what_a_revoked_phone_has_sent_does_not_count(deployment: Deployment) -> None:
    anna, ben = deployment.gather("anna", "ben")
    answer = deployment.train(request_for([anna, ben], seconds=9.0))
    anna.take_part()
    revoke_token(deployment.place.delivery, "anna")
    ben.take_part()
    reply = answer.result(10)
    assert reply.clients == (ben.client,)
    assert [(r.client, r.reason) for r in reply.rejected] == [
        (anna.client, "refused: revoked-token")
    ]


def odd_orders() -> dict[str, Callable[[dict[str, Any]], None]]:
    return {
        "counts of strangers": lambda w: w.update(counts=[[5, 5]]),
        "no list": lambda w: w.update(counts=7),
        "a list of numbers": lambda w: w.update(counts=[1, 2]),
        "a run that is a list": lambda w: w.update(run=[]),
        "no time": lambda w: w.update(opened=None),
    }


@pytest.mark.parametrize("what", odd_orders())
def test_an_odd_order_on_the_disk_does_not_keep_the_service_from_its_start(
    what: str, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    (anna,) = deployment.gather("anna")
    deployment.train(request_for([anna], seconds=4.0))
    anna.next_task()
    deployment.stop()
    (path,) = deployment.place.rounds.glob("*/order")
    words, parts = read_record(path)
    odd_orders()[what](words)
    write_record(path, words, parts)
    deployment.start()
    assert "a round is left out" in caplog.text
    assert deployment.describe().clients == (anna.client,)
