"""The health service, asked by a real gRPC client while a run is on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.app import Context, Message, RecordDict
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

import server.app
from client.app import app as client_app
from common.errors import RunError
from server.app import app as server_app
from server.export.runtime_cards import ExportReport
from server.record.health import health_service
from server.record.progress import Progress
from simulations.engines.in_process import InProcessGrid

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture
def address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def stub(address: str) -> Iterator[Any]:
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(60)
        yield HealthStub(channel)


def check(health: Any, service: str = "") -> tuple[int, dict[str, int]]:
    answer, call = health.Check.with_call(HealthCheckRequest(service=service))
    pairs = ((key, value) for key, value in call.initial_metadata() if key.startswith("fedhead-"))
    return answer.status, {key: int(value) for key, value in pairs}


def test_a_run_serves_only_while_it_can_progress(
    tiny: Callable[..., Path],
    device_grid: type[InProcessGrid],
    address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))
    in_round_2, go_on = threading.Event(), threading.Event()
    waiting, back = threading.Event(), threading.Event()

    class Slow(device_grid):  # type: ignore[valid-type,misc]
        looks_away = 0

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if messages[0].metadata.group_id.startswith("2 "):
                in_round_2.set()
                go_on.wait(60)
            return super().push_messages(messages)

        def get_node_ids(self) -> Iterable[int]:
            if in_round_2.is_set() and not back.is_set():
                self.looks_away += 1
                if self.looks_away > 1:
                    waiting.set()  # the server has told the health service before it looks again
                return [1]
            return super().get_node_ids()

    folder = tiny("train.rounds=3", "train.clients-per-round=3", "round.quorum=0.6")
    values = {"experiment": str(folder / "config.toml"), "overrides": "", "health": address}
    context = Context(1, 1, {}, RecordDict(), values)
    run = threading.Thread(target=server_app, args=(Slow(client_app, 3, values), context))
    run.start()
    try:
        with stub(address) as health:
            watched = health.Watch(HealthCheckRequest(service="fedhead"))
            assert in_round_2.wait(60)
            told = {"fedhead-round": 2, "fedhead-rounds": 3, "fedhead-connected": 3,
                    "fedhead-quorum": 2}  # fmt: skip
            assert check(health) == check(health, "fedhead") == (SERVING, told)
            with pytest.raises(grpc.RpcError) as unknown:
                check(health, "other")
            assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
            go_on.set()
            assert waiting.wait(60)
            status, told = check(health)
            assert (status, told["fedhead-round"], told["fedhead-connected"]) == (NOT_SERVING, 3, 1)
            back.set()
            run.join(60)
            statuses = [answer.status for answer in ended(watched)]
            # From before the clients were there, to after the last round.
            assert statuses[-4:] == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    finally:
        go_on.set()
        back.set()
        run.join(60)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1)


def ended(watched: Any) -> Iterator[Any]:
    """A stream's answers until the server ends it."""
    try:
        yield from watched
    except grpc.RpcError:
        return


def test_before_any_client_is_there_it_does_not_serve(address: str) -> None:
    with health_service(address) as progress, stub(address) as health:
        assert isinstance(progress, Progress)
        assert check(health)[0] == NOT_SERVING
        progress.update(connected=2)
        assert check(health)[0] == NOT_SERVING  # no round has begun
        progress.update(round_number=1, quorum=2)
        assert check(health)[0] == SERVING


def test_a_port_in_use_is_one_clear_line(address: str) -> None:
    with (
        health_service(address),
        pytest.raises(RunError, match=f"cannot listen on {address}: Address already in use"),
        health_service(address),
    ):
        pass
