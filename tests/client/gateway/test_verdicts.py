"""Each way to be wrong has a verdict and a counter of its own, and harms nobody else."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from client.gateway.figures import read_fleet
from client.gateway.training import TrainOrder
from common.delivery.tokens import issue_token, revoke_token
from common.messages import TrainReply, TrainRequest
from common.phones import phones_pb2 as pb
from common.types import ClientPlan
from tests.client.gateway.actors import RUN, D, Deployment, K, Node, Phone, request_for
from tests.client.gateway.test_equal import agree

GOOD = ("anna", "ben", "cleo")


def array(result: pb.Submission, change: Callable[[Any], Any]) -> None:
    delta = np.frombuffer(result.arrays[0].data, "<f4").copy()
    result.arrays[0].data = change(delta).tobytes()


def nan(result: pb.Submission) -> None:
    def change(delta: Any) -> Any:
        delta[3] = np.nan
        return delta

    array(result, change)


def far(result: pb.Submission) -> None:
    array(result, lambda delta: delta * np.float32(1e4))


def huge(result: pb.Submission) -> None:
    array(result, lambda delta: np.full_like(delta, 1e31))


def short(result: pb.Submission) -> None:
    array(result, lambda delta: delta[:-1])


def twice(result: pb.Submission) -> None:
    result.arrays.append(pb.Array(field="gram", data=b"1234"))


def nothing(result: pb.Submission) -> None:
    del result.arrays[:]


def foreign(result: pb.Submission) -> None:
    result.fingerprint = "a" * 64


def more(result: pb.Submission) -> None:
    result.num_examples += 1


def no_loss(result: pb.Submission) -> None:
    result.loss_after = float("nan")


def below(result: pb.Submission) -> None:
    result.loss_before = -1.0


WRONG = {
    nan: "not-finite",
    no_loss: "not-finite",
    far: "above-norm",
    short: "wrong-shape",
    twice: "wrong-shape",
    nothing: "wrong-shape",
    foreign: "foreign-fingerprint",
    more: "wrong-count",
    huge: "impossible",
    below: "impossible",
}


@pytest.mark.parametrize("spoil", WRONG, ids=lambda f: f.__name__)
def test_a_wrong_result_is_refused_and_counted_alone(
    spoil: Callable[[pb.Submission], None], deployment: Deployment, tmp_path: Path
) -> None:
    reason = WRONG[spoil]
    bad, *good = deployment.gather("mallory", *GOOD)
    request = request_for([bad, *good], max_norm=50.0)
    answer = deployment.train(request)
    result = bad.done(bad.next_task())
    spoil(result)
    verdict = bad.submit(result)
    assert verdict.what == pb.Verdict.REFUSED
    assert verdict.reason.startswith(f"{reason}: ")
    others = deployment.at_once(*(phone.take_part for phone in good))
    assert {v.what for v in others} == {pb.Verdict.ACCEPTED}
    reply = answer.result(30)

    assert [r.client for r in reply.rejected] == [bad.client]
    assert reply.rejected[0].reason.startswith(f"refused: {reason}")
    expected = replace(request, clients=tuple(c for c in request.clients if c != bad.client))
    node = Node(tmp_path / "node", good).update(expected)
    agree(replace(reply, rejected=()), node, expected)
    verdicts = {"accepted": len(good), reason: 1}
    assert {name: n for name, n in deployment.counters.items() if n} == verdicts


def test_each_ending_is_told_and_counted(deployment: Deployment) -> None:
    names = ("anna", "ben", "slow", "tired", "broken", "away")
    phones = deployment.gather(*names)
    anna, ben, slow, tired, broken, away = phones
    request = request_for(phones, seconds=8.0)
    answer = deployment.train(request)
    for phone in (anna, ben):
        assert phone.take_part().what == pb.Verdict.ACCEPTED
    late = slow.done(slow.next_task())
    for phone, outcome, reason in (
        (tired, pb.DECLINED, "battery"), (broken, pb.FAILED, "out of\nmemory")
    ):  # fmt: skip
        result = pb.Submission(task=phone.next_task().id, outcome=outcome, reason=reason)
        assert phone.submit(result).what == pb.Verdict.NOTED
    reply = answer.result(30)
    assert {r.client: r.reason for r in reply.rejected} == {
        slow.client: "late",
        tired.client: "declined: battery",
        broken.client: "failed: out of memory",
        away.client: "late",
    }
    assert {n: deployment.counters[n] for n in ("accepted", "silent", "declined", "failed")} == {
        "accepted": 2, "silent": 2, "declined": 1, "failed": 1
    }  # fmt: skip
    for _ in range(2):
        verdict = slow.submit(late)
        assert verdict.what == pb.Verdict.LATE
        assert verdict.later.max_seconds >= verdict.later.min_seconds >= 0
    assert {n: deployment.counters[n] for n in ("silent", "late", "duplicate")} == {
        "silent": 1, "late": 1, "duplicate": 1
    }  # fmt: skip
    assert deployment.running
    deployment.running.call(deployment.running.gateway.keep)
    fleet = read_fleet(deployment.place.fleet)
    (row,) = fleet["rounds"]
    assert row["asked"] == len(names)
    assert {n: row[n] for n in ("accepted", "late", "silent", "declined", "failed")} == {
        "accepted": 2, "late": 1, "silent": 1, "declined": 1, "failed": 1
    }  # fmt: skip
    assert set(row["seconds"]) == {"waiting", "fetching", "training", "uploading"}
    assert all(len(spread) == 2 for spread in row["seconds"].values())
    assert fleet["phones"]["anna"]["counts"] == {"tasks": 1, "accepted": 1}
    assert fleet["checked_in_lately"] == len(names)


def test_impossible_times_and_long_words_stay_out_of_the_figures(deployment: Deployment) -> None:
    anna, ben = deployment.gather("anna", "ben")
    answer = deployment.train(request_for([anna, ben]))
    result = anna.done(anna.next_task())
    result.fetch_seconds, result.train_seconds, result.upload_seconds = float("nan"), -5, 1e300
    assert anna.submit(result).what == pb.Verdict.ACCEPTED
    wordy = ben.done(ben.next_task())
    wordy.arrays[0].field = "x" * 100_000
    verdict = ben.submit(wordy)
    assert verdict.reason.startswith("wrong-shape: ")
    assert len(verdict.reason) <= 300
    assert len(answer.result(10).rejected[0].reason) < 400
    assert deployment.running
    deployment.running.call(deployment.running.gateway.keep)
    (row,) = read_fleet(deployment.place.fleet)["rounds"]
    assert row["seconds"]["fetching"] == row["seconds"]["training"] == [0.0, 0.0]
    assert 0 < row["seconds"]["uploading"][1] < 60
    assert "NaN" not in deployment.place.fleet.read_text()


def test_a_result_sent_twice_counts_once(deployment: Deployment, tmp_path: Path) -> None:
    phones = deployment.gather(*GOOD)
    request = request_for(phones)
    answer = deployment.train(request)
    results = [phone.done(phone.next_task()) for phone in phones]
    first = phones[0]
    verdicts = deployment.at_once(*[lambda: first.submit(results[0])] * 4)
    assert {v.what for v in verdicts} == {pb.Verdict.ACCEPTED}
    other = pb.Submission()
    other.CopyFrom(results[0])
    array(other, lambda delta: delta * 2)
    assert first.submit(other).what == pb.Verdict.ACCEPTED, "the first one counts"
    for phone, result in zip(phones[1:], results[1:], strict=True):
        phone.submit(result)
    agree(answer.result(30), Node(tmp_path / "node", phones).update(request), request)
    assert deployment.counters["duplicate"] == 4
    assert deployment.counters["accepted"] == 3


def test_a_phone_that_hangs_up_finds_its_verdict_when_it_comes_again(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones = deployment.gather("anna", "ben")
    request = request_for(phones)
    judged = TrainOrder.judged

    def slowly(*arguments: Any) -> Any:
        time.sleep(2.0)
        return judged(*arguments)

    monkeypatch.setattr(TrainOrder, "judged", slowly)
    answer = deployment.train(request)
    results = [phone.done(phone.next_task()) for phone in phones]
    hasty = lambda: phones[0].stub.submit(results[0], timeout=0.2)  # noqa: E731
    assert code(hasty) == grpc.StatusCode.DEADLINE_EXCEEDED
    other = pb.Submission()
    other.CopyFrom(results[0])
    array(other, lambda delta: delta * 2)
    busy = code(lambda: phones[0].stub.submit(other))
    assert busy == grpc.StatusCode.RESOURCE_EXHAUSTED, "no call waits for another of its task"
    assert phones[0].submit(other).what == pb.Verdict.ACCEPTED, "what it had sent first"
    assert phones[1].submit(results[1]).what == pb.Verdict.ACCEPTED
    agree(answer.result(30), Node(tmp_path / "node", phones).update(request), request)
    assert (deployment.counters["accepted"], deployment.counters["duplicate"]) == (2, 1)


def test_the_answer_does_not_wait_for_checks_that_have_no_use(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones = deployment.gather(*(f"phone-{i}" for i in range(14)))
    request = request_for(phones, seconds=8.0)
    judged = TrainOrder.judged

    def slowly(*arguments: Any) -> Any:
        time.sleep(1.5)
        return judged(*arguments)

    monkeypatch.setattr(TrainOrder, "judged", slowly)
    # All checks would take more than ten seconds, and the server waits for eight.
    answer = deployment.pool.submit(lambda: deployment.ask("train", request, request.seconds))
    verdicts = deployment.at_once(*(phone.take_part for phone in phones))
    reply = TrainReply.read(answer.result(20))
    in_time = {p.client for p, v in zip(phones, verdicts, strict=True) if v.what == 1}
    assert set(reply.clients) == in_time
    assert 0 < len(in_time) < len(phones)
    assert {v.what for v in verdicts} == {pb.Verdict.ACCEPTED, pb.Verdict.LATE}


def test_enough_results_close_a_round(deployment: Deployment) -> None:
    phones = deployment.gather(*GOOD, "dora")
    answer = deployment.train(request_for(phones, enough=2))
    late = phones[3].done(phones[3].next_task())
    for phone in phones[:2]:
        phone.take_part()
    reply = answer.result(10)
    assert set(reply.clients) == {phone.client for phone in phones[:2]}
    assert phones[3].submit(late).what == pb.Verdict.LATE


def code(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    found: grpc.StatusCode = caught.value.code()  # type: ignore[attr-defined]
    return found


def test_strangers_are_kept_out(deployment: Deployment, tmp_path: Path) -> None:
    anna, ben = deployment.gather("anna", "ben")
    place = deployment.place
    ca = place.server / "ca.crt"

    (tmp_path / "wrong").write_text("anna." + "x" * 43 + "\n")
    wrong = Phone("anna", tmp_path / "wrong", deployment.port, ca)
    for call in (
        wrong.check_in,
        lambda: wrong.stub.fetch(pb.FetchRequest(sha256="a" * 64)),
        lambda: wrong.stub.upload(pb.Part(task="a")),
        lambda: wrong.stub.submit(pb.Submission(task="a")),
    ):
        assert code(call) == grpc.StatusCode.UNAUTHENTICATED
    for text in ("", "../../x.y", "nobody." + "x" * 43, "anna"):
        (tmp_path / "wrong").write_text(text)
        odd = Phone("anna", tmp_path / "wrong", deployment.port, ca)
        assert code(odd.check_in) == grpc.StatusCode.UNAUTHENTICATED
        odd.channel.close()
    assert deployment.counters["wrong-token"] == 8

    revoke_token(place.delivery, "ben")
    assert code(ben.check_in) == grpc.StatusCode.UNAUTHENTICATED, "at once"
    assert deployment.counters["revoked-token"] == 1
    (tmp_path / "ben.token").unlink()
    issue_token(place.delivery, "ben", tmp_path / "ben.token")
    assert code(ben.check_in) == grpc.StatusCode.UNAUTHENTICATED, "it has the old one"
    Phone("ben", tmp_path / "ben.token", deployment.port, ca).check_in()

    key = place.device_key("anna")
    key.parent.mkdir()
    key.write_text("a SuperNode's")
    assert code(anna.check_in) == grpc.StatusCode.UNAUTHENTICATED
    assert deployment.counters["not-a-phone"] == 1
    key.unlink()
    anna.check_in()
    wrong.channel.close()


def test_a_phone_cannot_touch_anothers_task(deployment: Deployment) -> None:
    anna, ben = deployment.gather("anna", "ben")
    answer = deployment.train(request_for([anna, ben]))
    result = anna.done(anna.next_task())
    assert code(lambda: ben.submit(result)) == grpc.StatusCode.NOT_FOUND
    assert code(lambda: ben.upload(result.task, b"1")) == grpc.StatusCode.NOT_FOUND
    assert code(lambda: ben.submit(pb.Submission(task="0" * 32))) == grpc.StatusCode.NOT_FOUND
    assert deployment.counters["unknown-task"] == 2
    assert anna.submit(result).what == pb.Verdict.ACCEPTED
    ben.take_part()
    assert len(answer.result(10).clients) == 2


def test_only_the_phone_itself_fetches_its_correction(deployment: Deployment) -> None:
    anna, ben = deployment.gather("anna", "ben")
    rng = np.random.default_rng(3)

    def scaffold(number: int) -> TrainRequest:
        control = {"control": rng.normal(0, 0.02, (K, D + 1)).astype(np.float32)}
        plan = ClientPlan(
            fields=("delta", "control_delta"), weighting="uniform", correction="scaffold",
            arrays=control,
        )  # fmt: skip
        return request_for(
            [anna, ben], plan=plan, round_number=number, memory_rounds=(number - 1,) * 2
        )

    deployment.round(scaffold(1), [anna, ben])
    answer = deployment.train(scaffold(2))
    tasks = [phone.next_task() for phone in (anna, ben)]
    assert tasks[0].correction.sha256 != tasks[1].correction.sha256
    own = pb.FetchRequest(sha256=tasks[0].correction.sha256)
    assert anna.stub.fetch(own).size == 4 * K * (D + 1)
    assert code(lambda: ben.stub.fetch(own)) == grpc.StatusCode.NOT_FOUND
    past = pb.FetchRequest(sha256=own.sha256, offset=10_000)
    assert code(lambda: anna.stub.fetch(past)) == grpc.StatusCode.OUT_OF_RANGE
    for phone, task in zip((anna, ben), tasks, strict=True):
        phone.submit(phone.done(task))
    answer.result(10)


def test_phones_that_cannot_do_it_are_not_asked(deployment: Deployment) -> None:
    anna, ben = deployment.gather("anna", "ben")
    ben.abilities = tuple(a for a in ben.abilities if a != "mu")
    ben.check_in()
    answer = deployment.train(request_for([anna, ben], plan=ClientPlan(mu=0.1)))
    assert anna.take_part().what == pb.Verdict.ACCEPTED
    reply = answer.result(10)
    assert [(r.client, r.reason) for r in reply.rejected] == [(ben.client, "unable: mu")]


def odd_requests() -> dict[str, Callable[[Phone], Any]]:
    return {
        "app": lambda p: p.stub.check_in(pb.CheckInRequest(app="x" * 101)),
        "problem": lambda p: p.stub.check_in(pb.CheckInRequest(problem="x" * 201)),
        "words": lambda p: p.stub.check_in(pb.CheckInRequest(abilities=["a"] * 33)),
        "word": lambda p: p.stub.check_in(pb.CheckInRequest(abilities=["a" * 41])),
        "holdings": lambda p: p.stub.check_in(pb.CheckInRequest(holdings=[pb.Holding()] * 9)),
        "holding": lambda p: p.stub.check_in(
            pb.CheckInRequest(holdings=[pb.Holding(description="a" * 81)])
        ),
    }


@pytest.mark.parametrize("what", odd_requests())
def test_what_no_phone_sends_is_refused(what: str, deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    assert code(lambda: odd_requests()[what](anna)) == grpc.StatusCode.INVALID_ARGUMENT


def test_bytes_that_are_no_message_are_refused(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    raw = anna.channel.unary_unary("/fedhead.phones.v1.Phones/Submit")
    assert code(lambda: raw(b"\xff\xff\xff")) == grpc.StatusCode.INVALID_ARGUMENT
    nothing = anna.channel.unary_unary("/fedhead.phones.v1.Phones/Other")
    assert code(lambda: nothing(b"")) == grpc.StatusCode.UNIMPLEMENTED
    assert code(lambda: raw(b"\0" * (2 << 20))) == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_odd_results_of_a_task_are_refused_and_it_goes_on(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    answer = deployment.train(request_for([anna]))
    result = anna.done(anna.next_task())
    for change in ({"outcome": 0}, {"outcome": 9}, {"reason": "x" * 201}):
        odd = pb.Submission()
        odd.CopyFrom(result)
        for key, value in change.items():
            setattr(odd, key, value)
        assert code(lambda odd=odd: anna.submit(odd)) == grpc.StatusCode.INVALID_ARGUMENT
    odd = pb.Submission()
    odd.CopyFrom(result)
    odd.arrays.append(odd.arrays[0])
    assert code(lambda: anna.submit(odd)) == grpc.StatusCode.INVALID_ARGUMENT
    odd.arrays[1].field, odd.arrays[1].sha256 = "other", "a" * 64
    assert code(lambda: anna.stub.submit(odd)) == grpc.StatusCode.INVALID_ARGUMENT
    assert anna.submit(result).what == pb.Verdict.ACCEPTED
    assert answer.result(10).clients == (anna.client,)


def test_a_client_that_was_never_described_is_not_waited_for(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    request = request_for([anna])
    stranger = replace(request, clients=(*request.clients, 5))
    answer = deployment.train(stranger)
    anna.take_part()
    reply: TrainReply = answer.result(10)
    assert [(r.client, r.reason) for r in reply.rejected] == [(5, "unable: not described")]


def test_a_reported_problem_is_counted_once_and_the_phone_left_alone(
    deployment: Deployment,
) -> None:
    deployment.describe()
    (anna,) = deployment.add("anna")
    assert anna.check_in().WhichOneof("what") == "description"
    anna.holdings.clear()
    anna.problem = "unsigned-backbone: no signature"
    assert anna.check_in().WhichOneof("what") == "later", "it was told so already"
    assert anna.check_in().WhichOneof("what") == "later"
    assert deployment.counters["unsigned-backbone"] == 1
    assert deployment.describe().clients == ()
    folder = next(deployment.place.backbones.iterdir())
    (folder / "backbone.bin.signature").write_bytes(b"signed at last")
    assert anna.check_in().WhichOneof("what") == "description", "there is something new"
    anna.problem = "Weird \x1b[2J: x"
    anna.check_in()
    assert deployment.counters["other-problem"] == 1
    assert json.dumps(dict(deployment.counters)).isascii()


def remembered(deployment: Deployment, phone: Phone) -> Path:
    (file,) = (deployment.place.clients / RUN / str(phone.client)).iterdir()
    return file


def test_a_lost_memory_costs_its_client_alone_and_is_no_fault_of_the_phone(
    deployment: Deployment,
) -> None:
    phones = deployment.gather("anna", "ben")
    plan = ClientPlan(weighting="uniform", mu=0.1, correction="feddyn")
    request = request_for(phones, plan=plan, memory_rounds=(0, 0))
    deployment.round(request, phones)
    remembered(deployment, phones[0]).write_bytes(b"x")
    answer = deployment.train(replace(request, round_number=2, memory_rounds=(1, 1)))
    verdict = phones[0].take_part()
    assert verdict.what == pb.Verdict.NOTED
    assert verdict.reason == "the gateway has lost the client's memory"
    assert phones[1].take_part().what == pb.Verdict.ACCEPTED
    reply = answer.result(10)
    assert reply.clients == (phones[1].client,)
    assert reply.rejected[0].reason == "failed: the gateway has lost the client's memory"


def test_a_full_disk_is_told_as_a_reason_to_come_again_and_memories_stay_right(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones = deployment.gather("anna", "ben")
    plan = ClientPlan(weighting="uniform", mu=0.1, correction="feddyn")
    request = request_for(phones, plan=plan, memory_rounds=(0, 0))
    answer = deployment.train(request)
    results = [phone.done(phone.next_task()) for phone in phones]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place in ("common.readback.write_atomic", "client.gateway.settling.write_record"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            found = code(lambda: phones[0].stub.submit(results[0]))
            assert found == grpc.StatusCode.UNAVAILABLE
    for phone, result in zip(phones, results, strict=True):
        assert phone.submit(result).what == pb.Verdict.ACCEPTED
    node = Node(tmp_path / "node", phones)
    agree(answer.result(10), node.update(request), request)
    # The second time, its memory had been written already.
    request = replace(request, round_number=2, memory_rounds=(1, 1))
    agree(deployment.round(request, phones), node.update(request), request)
