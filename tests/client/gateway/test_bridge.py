"""The SuperNode's side: messages over the socket, a service that dies, and Flower's own app."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.gateway import bridge
from client.gateway.bridge import app, forward
from client.gateway.frames import framed, receive
from common.errors import ConfigError, FedheadError, ProtocolError
from common.messages import (
    BackboneReply,
    BackboneRequest,
    DescribeReply,
    DescribeRequest,
    TrainReply,
    TrainRequest,
    content_from,
    content_to,
    write_head,
)
from tests.client.gateway.actors import (
    FINGERPRINT,
    ROOT,
    RUN,
    Deployment,
    request_for,
)
from tests.client.test_fork_server import OURS, SuperNode, start
from tests.client.test_fork_server import pytestmark as builds_a_bundle

__all__ = ["start"]


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)  # Flower asks for it to make a message


def message(content: RecordDict, kind: str) -> Message:
    return Message(content=content, dst_node_id=1, message_type=kind)


def context(path: Path | None) -> Context:
    config = {} if path is None else {"gateway": str(path)}
    return Context(1, 1, config, RecordDict(), {})  # type: ignore[arg-type]


def test_flowers_messages_reach_the_service_and_its_answers_come_back(
    deployment: Deployment,
) -> None:
    request = DescribeRequest(RUN, tuple("abcd"), 0.2, 7, "a run", fingerprint=FINGERPRINT)
    reply = app(message(request.write(), "query.describe"), context(deployment.socket))
    assert DescribeReply.read(reply.content) == DescribeReply(
        (), (), simulated=False, changing=True
    )
    asked = BackboneRequest(FINGERPRINT).write()
    reply = app(message(asked, "query.backbone"), context(deployment.socket))
    assert BackboneReply.read(reply.content).present
    asked = BackboneRequest("ab" * 32).write()
    with pytest.raises(
        FedheadError, match="no files of backbone abab.* `fedhead run --deployment`"
    ):
        app(message(asked, "query.backbone"), context(deployment.socket))

    phones = deployment.gather("anna")
    train = message(request_for(phones).write(), "train")
    answer = deployment.pool.submit(lambda: app(train, context(deployment.socket)))
    phones[0].take_part()
    assert TrainReply.read(answer.result(10).content).clients == (phones[0].client,)


def test_a_node_without_the_socket_says_so(tmp_path: Path) -> None:
    request = DescribeRequest(RUN, ("a",), 0.2, 7)
    with pytest.raises(ConfigError, match='expected gateway="PATH'):
        app(message(request.write(), "query.describe"), context(None))


def test_the_bridge_waits_for_a_service_that_is_not_there_yet(apart: Deployment) -> None:
    answer = apart.pool.submit(apart.describe)
    time.sleep(0.5)
    assert not answer.done()
    apart.start()
    assert answer.result(10).changing


def test_the_bridge_sends_again_to_the_service_that_follows(apart: Deployment) -> None:
    apart.start()
    phones = apart.gather("anna", "ben")
    answer = apart.train(request_for(phones))
    phones[0].take_part()
    apart.stop()
    apart.start()
    phones[1].take_part()
    assert len(answer.result(20).clients) == 2


def test_the_bridge_gives_up_when_its_time_is_over(tmp_path: Path) -> None:
    with pytest.raises(FedheadError, match="did not answer within 0.3 s: .*No such file"):
        forward(tmp_path / "none", "train", b"", 0.3)


def content_of(request: TrainRequest, **changes: Any) -> bytes:
    return content_to(replace(request, **changes).write())


def test_wrong_messages_are_answered_in_words(deployment: Deployment) -> None:
    phones = deployment.gather("anna")
    request = request_for(phones)
    stock = replace(request, reduce="stock").write()
    stock["arrays"] = write_head(request.head)
    wrong = {
        "a gateway answers no 'x'": ("x", b""),
        "cannot be read": ("train", b"\xff"),
        "'config' is missing": ("train", b""),
        "Flower's own strategies": ("train", content_to(stock)),
        "the server must describe it first": ("train", content_of(request, run_id="other")),
        "no files of backbone": ("train", content_of(request, fingerprint="ab" * 32)),
        "'../x' is not a plain name": ("train", content_of(request, run_id="../x")),
    }
    for words, (kind, content) in wrong.items():
        with pytest.raises(FedheadError, match=words):
            forward(deployment.socket, kind, content, 5)
    unnamed = DescribeRequest(RUN, ("a",), 0.2, 7)
    with pytest.raises(ProtocolError, match="does not name the run's backbone"):
        deployment.ask("describe", unnamed)
    folder = deployment.place.backbones / ("cd" * 32)
    folder.mkdir()
    (folder / "device.pte").write_bytes(b"other")
    with pytest.raises(ProtocolError, match="backbone is cdcd.* was described with 0f0f"):
        deployment.ask("train", replace(request, fingerprint="cd" * 32))


def test_only_the_owner_reaches_the_socket(deployment: Deployment) -> None:
    assert stat.S_IMODE(deployment.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(deployment.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(deployment.place.state.stat().st_mode) == 0o700


def test_a_connection_that_breaks_off_or_talks_nonsense_harms_nobody(
    deployment: Deployment,
) -> None:
    for data in (
        b"", b"\0", struct.pack(">IQ", 5, 0), struct.pack(">IQ", 1 << 30, 1 << 60),
        struct.pack(">IQ", 3, 0) + b"abc", framed({}, b"x"), framed({"kind": ["a"]}, b""),
    ):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(deployment.socket))
            connection.sendall(data)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(deployment.socket))
        connection.sendall(framed({"kind": "describe"}, b"\xff"))
        words, content = receive(connection)
        assert "cannot be read" in str(words["error"])
        assert content == b""
    assert deployment.describe().changing


def test_the_time_of_a_message_is_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def forwarded(_path: Path, _kind: str, _content: bytes, seconds: float) -> bytes:
        seen.append(seconds)
        return b""

    monkeypatch.setattr(bridge, "forward", forwarded)
    for config in ({"seconds": 5.5}, {}, {"seconds": -1.0}):
        content = RecordDict({"config": ConfigRecord(config)})  # type: ignore[arg-type]
        app(message(content, "train"), context(Path("x")))
    assert seen == [5.5, 60.0, 60.0]
    assert content_from(b"") == RecordDict()


CHILD = """
import sys
from pathlib import Path
import client.fork_server as server
server._load("client.gateway.bridge")
print(sorted({"torch", "scipy", "ray"} & {*sys.modules}))
"""


@pytest.mark.wide
def test_what_takes_messages_of_a_gateway_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", CHILD], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def serve(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "client.gateway.service", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.wide
def test_the_service_says_in_one_line_why_it_does_not_start(deployment: Deployment) -> None:
    server, other = deployment.place.server, deployment.path / "other.sock"
    taken = serve(server, other, "--port", deployment.port)
    assert taken.returncode == 1
    assert f"cannot listen on 0.0.0.0:{deployment.port}: Address already in use" in taken.stderr
    assert "Traceback" not in taken.stderr
    (server / "server.toml").write_text("gateway-port = 'x'\n")
    wrong = serve(server, other)
    assert "1 problem: gateway-port is 'x', expected int" in wrong.stderr
    (server / "server.toml").unlink()
    (server / "server.key").chmod(0o644)
    wrong = serve(server, other, "--port", 0)
    assert "lets others read a secret" in wrong.stderr
    assert wrong.stderr.count("\n") <= 3


@pytest.mark.slow
@builds_a_bundle
def test_a_supernode_hands_a_message_to_the_gateway(
    deployment: Deployment, start: Callable[..., SuperNode]
) -> None:
    config = {"gateway": str(deployment.socket)}
    node = start(app="client.gateway.bridge", config=config)
    node.send(OURS)
    reply = node.answer()
    assert "no files of backbone ffff" in (reply.error.reason or ""), node.log.read_text()
    folder = deployment.place.backbones / ("f" * 64)
    folder.mkdir()
    (folder / "device.pte").write_bytes(b"a backbone")
    node.send(OURS)
    assert not node.answer().has_error(), node.log.read_text()
    assert "torch" not in Path(f"/proc/{node.process.pid}/maps").read_text()
