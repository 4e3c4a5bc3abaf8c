"""The service is killed at any moment: what it has accepted counts, and counts once."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from common.messages import DescribeReply, TrainReply, TrainRequest
from common.phones import phones_pb2 as pb
from common.types import ClientPlan
from tests.client.gateway.actors import D, Deployment, K, Node, Phone, request_for
from tests.client.gateway.test_equal import agree

NAMES = ("anna", "ben", "cleo", "dora", "emil", "fay", "gus", "hal")


def patiently(phone: Phone, rng: random.Random, stopped: threading.Event, told: list[str]) -> None:
    """What a phone does all day: each call may fail, and is made again."""
    while not stopped.is_set():
        try:
            reply = phone.check_in(wait=1)
        except grpc.RpcError:
            time.sleep(0.05)
            continue
        if reply.WhichOneof("what") != "task":
            continue
        result = phone.done(reply.task)
        time.sleep(rng.random() * 0.3)
        while not stopped.is_set():
            try:
                verdict = phone.submit(result)
            except grpc.RpcError as exc:
                if exc.code() == grpc.StatusCode.NOT_FOUND:  # type: ignore[attr-defined]
                    break
                time.sleep(0.05)
                continue
            if verdict.what == pb.Verdict.ACCEPTED:
                told.append(result.task)
            break


def scaffold(phones: list[Phone], number: int) -> TrainRequest:
    control = np.random.default_rng(number).normal(0, 0.02, (K, D + 1)).astype(np.float32)
    plan = ClientPlan(
        fields=("delta", "control_delta"), weighting="uniform", correction="scaffold",
        arrays={"control": control},
    )  # fmt: skip
    return request_for(
        phones, plan=plan, round_number=number, memory_rounds=(number - 1,) * len(phones)
    )


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_and_count_nothing_twice(
    apart: Deployment, tmp_path: Path
) -> None:
    rng = random.Random(11)
    apart.spawn()
    apart.describe()
    phones = apart.add(*NAMES)
    stopped = threading.Event()
    told: dict[str, list[str]] = {phone.name: [] for phone in phones}
    threads = [
        threading.Thread(
            target=patiently, args=(phone, random.Random(i), stopped, told[phone.name])
        )
        for i, phone in enumerate(phones)
    ]
    for thread in threads:
        thread.start()
    node, kills = Node(tmp_path / "node", phones), 0
    try:
        for number in range(1, 9):
            while len(apart.describe().clients) < len(phones):
                time.sleep(0.1)
            request = scaffold(phones, number)
            answer = apart.train(request)
            while not answer.done():
                time.sleep(rng.random() * 0.5)
                if kills < 4 * number:
                    apart.kill()
                    kills += 1
                    apart.spawn()
                    time.sleep(1.2)
            agree(answer.result(), node.update(request), request)
            assert all(len(set(tasks)) == number for tasks in told.values())
    finally:
        stopped.set()
        for thread in threads:
            thread.join(20)
    assert kills >= 8
    log = (tmp_path / "gateway.log").read_text()
    assert "Traceback" not in log


def wait_for_port(deployment: Deployment, seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while True:
        try:
            assert isinstance(deployment.describe(), DescribeReply)
            return
        except Exception:
            assert time.monotonic() < ends
            time.sleep(0.1)


@pytest.mark.wide
def test_an_accepted_update_survives_a_kill_and_is_not_asked_for_again(
    apart: Deployment, tmp_path: Path
) -> None:
    apart.spawn()
    phones = apart.gather(*NAMES[:3])
    request = request_for(phones)
    answer = apart.train(request)
    assert phones[0].take_part().what == pb.Verdict.ACCEPTED
    half = phones[1].done(phones[1].next_task())
    apart.kill()
    phones[0].train = phones[2].train  # whatever it would send now would be something else
    apart.spawn()
    wait_for_port(apart)
    assert phones[0].check_in().WhichOneof("what") == "later"
    again = phones[1].next_task()
    assert again.id == half.task
    assert phones[1].submit(half).what == pb.Verdict.ACCEPTED
    assert phones[2].take_part().what == pb.Verdict.ACCEPTED
    reply: TrainReply = answer.result(30)
    assert {r.client for r in reply.reports} == {phone.client for phone in phones}
    apart.kill()
    apart.spawn()
    kept = apart.train(replace(request, seconds=31.0, has_constant=True)).result(30)
    assert kept.payloads == reply.payloads, "asked again, it gives the reply that it has kept"
    assert phones[1].submit(half).what == pb.Verdict.ACCEPTED


@pytest.mark.wide
def test_the_service_is_small(apart: Deployment) -> None:
    apart.spawn()
    phones = apart.gather(*NAMES)
    apart.round(request_for(phones), phones)
    assert apart.process
    process = psutil.Process(apart.process.pid)
    assert process.memory_info().rss < 150e6
    assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
    before = process.cpu_times().user
    assert before > 0
    process.terminate()
    assert apart.process.wait(10) == 0, "it ends cleanly"
    assert apart.place.fleet.exists()
    apart.process = None
