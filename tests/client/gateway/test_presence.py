"""When phones come, wait and are chosen."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from client.gateway import presence as module
from client.gateway import service
from client.gateway.door import Phone as Caller
from client.gateway.figures import read_fleet
from client.gateway.place import Place, Settings, read_settings
from client.gateway.presence import Presence
from common.errors import ConfigError, ProtocolError
from common.identity import client_of_phone
from common.phones import phones_pb2 as pb
from common.types import ClientPlan
from tests.client.gateway.actors import CONFIG, RUN, Deployment, request_for
from tests.client.gateway.test_verdicts import code


def fleet(size: int, settings: Settings = CONFIG) -> Presence:
    presence = Presence(settings)
    for i in range(size):
        caller = Caller(f"phone-{i}", client_of_phone(f"phone-{i}"))
        presence.check_in(caller, pb.CheckInRequest(ready=True))
    return presence


def test_the_window_grows_with_the_fleet() -> None:
    settings = Settings(check_ins_per_second=20.0, max_held_calls=200)
    for size, window in ((1, 10.0), (100, 10.0), (200, 10.0), (2000, 100.0), (10_000, 500.0)):
        later = fleet(size, settings).later()
        assert (later.min_seconds, later.max_seconds) == (window / 2, 1.5 * window)
    # All phones once in each window are as many check-ins a second as the operator has set.
    assert 10_000 / fleet(10_000, settings).window == pytest.approx(20.0)


def test_a_small_fleet_waits_for_tasks_and_a_large_one_does_not() -> None:
    assert fleet(200).later(soon=True).max_seconds <= 0.5
    assert fleet(201).later(soon=True).max_seconds >= 10
    assert fleet(200).later(soon=False).max_seconds >= 10


def test_phones_that_were_away_for_days_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    presence = fleet(5)
    assert presence.fleet == 5
    assert len(list(presence.lately())) == 5
    now, date = time.monotonic(), time.time()
    monkeypatch.setattr(time, "time", lambda: date + 86_401)
    assert len(list(presence.lately())) == 5, "only the clock was set"
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert list(presence.lately()) == []
    assert presence.fleet == 5
    monkeypatch.setattr(time, "monotonic", lambda: now + 86_401)
    assert presence.fleet == 0


def test_news_end_the_waiting_of_those_whom_they_are_for() -> None:
    async def tried() -> list[bool]:
        presence = fleet(3)
        waiting = [asyncio.create_task(presence.hold(client, 0.3)) for client in (1, 2)]
        await asyncio.sleep(0)
        presence.wake([2, 3])
        return [await task for task in waiting]

    assert asyncio.run(tried()) == [False, True]


def test_no_more_calls_are_held_than_there_is_room_for() -> None:
    async def tried() -> list[bool]:
        presence = fleet(3, replace(CONFIG, max_held_calls=2))
        waiting = [asyncio.create_task(presence.hold(client, 5)) for client in (1, 2, 3)]
        await asyncio.sleep(0)
        assert waiting[2].done() or await waiting[2] is False
        presence.wake()
        return [await task for task in waiting]

    assert asyncio.run(tried()) == [True, True, False]


def test_a_phones_new_call_takes_the_place_of_its_old_one() -> None:
    async def tried() -> list[bool]:
        presence = fleet(1)
        first = asyncio.create_task(presence.hold(1, 5))
        await asyncio.sleep(0)
        second = asyncio.create_task(presence.hold(1, 5))
        await asyncio.sleep(0)
        assert await first is False
        presence.wake([1])
        return [await second]

    assert asyncio.run(tried()) == [True]


def test_a_held_phone_gets_its_task_at_once(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    waiting = deployment.pool.submit(lambda: anna.check_in(wait=30))
    time.sleep(0.3)
    answer = deployment.train(request_for([anna]))
    reply = waiting.result(10)
    assert reply.WhichOneof("what") == "task", "and not after the 30 seconds"
    assert 0 < reply.task.seconds_left < 60
    anna.submit(anna.done(reply.task))
    answer.result(10)


def test_a_held_phone_learns_of_a_new_run_at_once(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    waiting = deployment.pool.submit(lambda: anna.check_in(wait=30))
    time.sleep(0.3)
    deployment.describe(max_examples=3)
    reply = waiting.result(10)
    assert reply.WhichOneof("what") == "description"
    assert reply.description.max_examples == 3


def test_only_phones_that_may_and_can_are_offered_to_the_server(deployment: Deployment) -> None:
    anna, ben, cleo, dora = deployment.gather("anna", "ben", "cleo", "dora")
    ben.ready = False
    cleo.problem = "foreign-fingerprint: the features of another run"
    dora.holdings.clear()
    dora.formats = ("lite",)
    for phone in (ben, cleo, dora):
        phone.check_in()
    there = sorted([anna.client, cleo.client])
    assert list(deployment.describe().clients) == there, "cleo has prepared for this run"
    answer = deployment.train(request_for([cleo]))
    assert cleo.take_part().what == pb.Verdict.ACCEPTED
    assert answer.result(10).clients == (cleo.client,)
    assert dora.check_in().WhichOneof("what") == "later", "there is no file that it can run"


def test_a_phone_at_work_is_not_offered_again_before_it_is_back(deployment: Deployment) -> None:
    anna, ben, cleo = deployment.gather("anna", "ben", "cleo")
    deployment.describe("run-2")
    for phone in (anna, ben, cleo):
        phone.arrive()
    answer = deployment.train(request_for([anna, ben], enough=1))
    result = ben.done(ben.next_task())
    free = sorted([anna.client, cleo.client])
    assert list(deployment.describe().clients) == free, "the server has given the round up"
    assert deployment.describe("run-2").clients == (cleo.client,), "another run's has not"
    anna.take_part()
    assert answer.result(10).clients == (anna.client,)
    assert list(deployment.describe().clients) == free, "ben is at it still"
    ben.submit(result)
    assert list(deployment.describe().clients) == sorted([*free, ben.client])


def test_a_task_waits_for_a_phone_that_is_away_until_the_round_is_over(
    deployment: Deployment,
) -> None:
    anna, ben = deployment.gather("anna", "ben")
    request = request_for([anna, ben], seconds=5.0)
    answer = deployment.train(request)
    anna.take_part()
    assert answer.result(20).clients == (anna.client,)
    assert ben.check_in().WhichOneof("what") == "later", "its task is gone"


def test_counts_are_held_to_what_was_described(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    before = len(anna.train)
    old = anna.train
    anna.train = anna.train.select(anna.train.labels[:5] * 0)
    anna.check_in()
    answer = deployment.train(request_for([anna]))
    task = anna.next_task()
    assert task.num_examples == before
    anna.train = old
    anna.submit(anna.done(task))
    assert answer.result(10).reports[0].num_examples == before


def test_counts_are_those_that_the_server_knows(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    known, all_of_them = len(anna.train), anna.train
    anna.train = anna.train.select(np.arange(5))
    anna.check_in()
    assert deployment.describe().num_examples == (5,), "the server may have asked before"
    answer = deployment.train(request_for([anna], counts=(known,)))
    task = anna.next_task()
    assert task.num_examples == known
    assert anna.submit(anna.done(task)).reason.startswith("wrong-count")
    answer.result(10)
    anna.train = all_of_them
    answer = deployment.train(request_for([anna], counts=(known,), round_number=2))
    assert anna.take_part().what == pb.Verdict.ACCEPTED
    assert answer.result(10).reports[0].num_examples == known


@pytest.mark.parametrize("counts", [(1,), (1, 2, 3), (-1, 2), (2**31, 2)])
def test_odd_counts_of_a_server_are_refused(
    counts: tuple[int, ...], deployment: Deployment
) -> None:
    phones = deployment.gather("anna", "ben")
    with pytest.raises(ProtocolError, match="counts of 2 clients|a client has"):
        deployment.train(request_for(phones, counts=counts)).result(10)


@pytest.mark.parametrize(
    ("train", "test", "limit"), [(2**31, 0, 0), (2**32 - 1, 0, 0), (5, 2**31, 0), (51, 0, 50)]
)
def test_a_phone_with_an_impossible_count_is_left_out_alone(
    train: int, test: int, limit: int, deployment: Deployment
) -> None:
    deployment.describe(max_examples=limit)
    anna, mallory = deployment.add("anna", "mallory")
    for phone in (anna, mallory):
        phone.arrive()
    (description,) = mallory.holdings
    holding = pb.Holding(description=description, num_examples=train, num_test_examples=test)
    mallory.stub.check_in(
        pb.CheckInRequest(ready=True, formats=["torch"], abilities=["sgd"], holdings=[holding])
    )
    for _ in range(3):
        assert deployment.describe(max_examples=limit).clients == (anna.client,)
    assert deployment.counters["wrong-count"] == 1
    mallory.check_in()
    assert len(deployment.describe(max_examples=limit).clients) == 2


def test_a_phone_that_asks_all_the_time_is_told_to_stop(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RATE", 0.0)
    anna, ben = deployment.add("anna", "ben")
    for _ in range(60):
        anna.check_in()
    assert code(anna.check_in) == grpc.StatusCode.RESOURCE_EXHAUSTED
    ben.check_in()
    assert deployment.counters["too-many-calls"] == 1


def test_a_phone_has_a_few_calls_at_once(deployment: Deployment) -> None:
    anna, ben = deployment.gather("anna", "ben")
    door = anna.channel.unary_unary("/fedhead.phones.v1.Phones/CheckIn")
    request = pb.CheckInRequest(ready=True).SerializeToString()
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(20)
        yield request

    # Calls whose message does not come: held check-ins would give way to the next one.
    call = anna.channel.stream_unary("/fedhead.phones.v1.Phones/CheckIn")
    open_calls = [call.future(nothing()) for _ in range(4)]
    wait_until(lambda: code_or_none(lambda: door(request)) == grpc.StatusCode.RESOURCE_EXHAUSTED)
    ben.check_in()
    never.set()
    for one in open_calls:
        one.cancel()


def code_or_none(call: Callable[[], object]) -> grpc.StatusCode | None:
    try:
        call()
    except grpc.RpcError as exc:
        found: grpc.StatusCode = exc.code()  # type: ignore[attr-defined]
        return found
    return None


def wait_until(happens: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_what_is_known_of_phones_outlives_the_process(deployment: Deployment) -> None:
    phones = deployment.gather("anna", "ben")
    deployment.round(request_for(phones), phones)
    deployment.stop()
    fleet = read_fleet(deployment.place.fleet)
    assert fleet["counters"] == {"accepted": 2}
    assert set(fleet["phones"]) == {"anna", "ben"}
    deployment.start()
    assert len(deployment.describe().clients) == 2, "they were there a moment ago"
    deployment.round(request_for(phones, round_number=2), phones)
    assert deployment.counters["accepted"] == 4
    deployment.stop()
    fleet = read_fleet(deployment.place.fleet)
    assert [(r["round"], r["accepted"]) for r in fleet["rounds"]] == [(1, 2), (2, 2)]
    deployment.place.fleet.write_text("{}")
    deployment.start()
    assert deployment.describe().clients == (), "a damaged file is not used"


def test_figures_are_written_after_each_round(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_KEEP_SECONDS", 1000.0)
    phones = deployment.gather("anna", "ben")
    for number in (1, 2):
        deployment.round(request_for(phones, round_number=number), phones)
        wait_until(lambda: deployment.place.fleet.exists())
        wait_until(lambda n=number: len(read_fleet(deployment.place.fleet)["rounds"]) == n)


def test_a_run_is_forgotten_after_a_month(deployment: Deployment) -> None:
    phones = deployment.gather("anna")
    plan = ClientPlan(weighting="uniform", mu=0.1, correction="feddyn")
    deployment.round(request_for(phones, plan=plan, memory_rounds=(0,)), phones)
    deployment.stop()
    file, memory = (folder / RUN for folder in (deployment.place.runs, deployment.place.clients))
    for days, remains in ((29, True), (31, False)):
        past = time.time() - days * 86_400
        os.utime(file, (past, past))
        deployment.start()
        deployment.stop()
        assert file.exists() == memory.exists() == remains


def test_settings(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert read_settings(place) == Settings()
    toml = tmp_path / "server.toml"
    toml.write_text("port = 1\ngateway-port = 9000\ncheck-ins-per-second = 3\n")
    assert read_settings(place) == Settings(gateway_port=9000, check_ins_per_second=3.0)
    toml.write_text("gateway-port = true\ncheck-ins-per-second = -1.0\nmax-held-calls = 0\n")
    with pytest.raises(ConfigError, match="3 problems: gateway-port is True.*max-held-calls is 0"):
        read_settings(place)
    toml.write_text("=")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(place)
