"""Hostile callers at a gateway: each ends with a clear status, and the service lives on.

After each attack the same process answers an honest phone, and has grown by a bounded amount.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from client.gateway.bridge import forward
from common.identity import client_of_phone
from common.messages import DescribeReply, DescribeRequest, TrainRequest, content_from, content_to
from common.phones import phones_pb2 as pb
from common.phones.wire import PART, Stub
from common.types import ClientPlan, Head, LocalTraining
from simulations.bench.fleet.deployment import Place, make_place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAMES = ("honest", "hostile", *(f"victim-{number}" for number in range(20)))
FINGERPRINT = "ab" * 32
HEAD = Head.zeros(3, 40)
MOST_GROWTH = 200 << 20  # bytes, of all attacks together
FEW_FILES = 256
MOST_DISK = 64 << 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = PREFACE + b"\0\0\0\x04\0\0\0\0\0"
METHODS = ("CheckIn", "Fetch", "Upload", "Submit")
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DATA_LOSS,
}
TRICKS = (
    "", ".", "..", "../../../etc/passwd", "/etc/passwd", "a/../../b", "a\x00b", "\n", "%2e%2e%2f",
    "ü" * 50, "x" * 5000, "0" * 63, "g" * 64, "A" * 64, "COM1", "~", "-rf",
)  # fmt: skip


@dataclass
class Gateway:
    """A running service.

    Attributes:
        place: its files.
        process: the service.
        idle: bytes that it had in memory before the first attack.
        victims: names of phones that no test has used.
    """

    place: Place
    process: psutil.Process
    idle: int = 0
    victims: Iterator[str] = field(default_factory=lambda: iter(NAMES[2:]))

    def channel(self) -> grpc.Channel:
        authority = (self.place.server / "ca.crt").read_bytes()
        credentials = grpc.ssl_channel_credentials(authority)
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(self.place.address, credentials, options)

    def token(self, name: str) -> str:
        return self.place.tokens[NAMES.index(name)]

    def by(self, name: str) -> dict[str, Any]:
        """Options of a phone's call."""
        return {"metadata": (("authorization", f"Bearer {self.token(name)}"),), "timeout": 60}

    def check_in(self, name: str = "honest", **values: Any) -> pb.CheckInReply:
        request = pb.CheckInRequest(
            app="test", formats=["torch"], abilities=["sgd"], ready=True, **values
        )
        with self.channel() as channel:
            reply: pb.CheckInReply = Stub(channel).check_in(request, **self.by(name))
            return reply

    def check_lives(self) -> None:
        """The same process answers an honest phone, and has not grown much."""
        assert self.process.is_running()
        assert self.process.status() != psutil.STATUS_ZOMBIE
        assert self.check_in().WhichOneof("what")
        assert self.process.memory_info().rss - self.idle < MOST_GROWTH
        used = sum(p.stat().st_size for p in self.place.server.rglob("*") if p.is_file())
        assert used < MOST_DISK

    def connect(self, *, tls: bool = True) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.place.port), timeout=30)
        if not tls:
            return plain
        context = ssl.create_default_context(cafile=self.place.server / "ca.crt")
        context.set_alpn_protocols(["h2"])
        return context.wrap_socket(plain, server_hostname="localhost")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("g")
    place = make_place(folder, NAMES, {FINGERPRINT: b"a backbone"}, {})
    log = folder / "log"
    with log.open("wb") as output, ExitStack() as stack:
        # Fewer open files than a test has connections; most systems begin with 1,024.
        few = ["sh", "-c", f'ulimit -Sn {FEW_FILES} && exec "$@"', "sh"]
        process = subprocess.Popen(
            [*few, *place.service_command()], stdout=output, stderr=subprocess.STDOUT
        )
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        for _ in range(300):
            assert process.poll() is None, log.read_text()
            if place.socket.exists():
                break
            time.sleep(0.1)
        gateway = Gateway(place, psutil.Process(process.pid))
        for name in NAMES:  # whatever is loaded late is there before the first attack
            gateway.check_in(name)
        gateway.idle = gateway.process.memory_info().rss
        yield gateway
        assert process.poll() is None, log.read_text()
        assert "Traceback" not in log.read_text()


@pytest.fixture
def gateway(running: Gateway) -> Iterator[Gateway]:
    yield running
    running.check_lives()


@dataclass(frozen=True)
class Victim:
    """A phone with a task in an open round."""

    name: str
    task: pb.Task


@pytest.fixture
def victim(gateway: Gateway) -> Victim:
    name = next(gateway.victims)
    number = 1 + NAMES.index(name)
    describe = DescribeRequest(
        run_id="run-1", classes=("a", "b", "c"), test_fraction=0.1, seed=1, name="run",
        fingerprint=FINGERPRINT,
    )  # fmt: skip
    content = content_to(describe.write())
    forward(gateway.place.socket, "describe", content, 30)
    reply = gateway.check_in(name)
    assert reply.WhichOneof("what") == "description"
    holding = pb.Holding(description=reply.description.id, num_examples=7)
    gateway.check_in(name, holdings=[holding])
    answer = content_from(forward(gateway.place.socket, "describe", content, 30))
    there = DescribeReply.read(answer)
    client = client_of_phone(name)
    assert client in there.clients
    request = TrainRequest(
        HEAD, ClientPlan(), LocalTraining(0.1), (client,), number, "run-1", 1, FINGERPRINT,
        reduce="individual", seconds=120.0, enough=1,
    )  # fmt: skip
    train = [
        sys.executable, "-c",
        "import sys; from pathlib import Path; from client.gateway.bridge import forward\n"
        "forward(Path(sys.argv[1]), 'train', sys.stdin.buffer.read(), 120.0)",
        str(gateway.place.socket),
    ]  # fmt: skip
    with subprocess.Popen(train, stdin=subprocess.PIPE) as asking:
        assert asking.stdin
        asking.stdin.write(content_to(request.write()))
        asking.stdin.close()
        try:
            reply = gateway.check_in(name, holdings=[holding], wait_seconds=20)
        finally:
            asking.kill()
    assert reply.WhichOneof("what") == "task"
    return Victim(name, reply.task)


def raw(channel: grpc.Channel, method: str) -> Callable[..., bytes]:
    return channel.unary_unary(f"/fedhead.phones.v1.Phones/{method}")


def code_of(call: Callable[..., object], *values: object, **options: object) -> grpc.StatusCode:
    try:
        call(*values, **options)
    except grpc.RpcError as exc:
        return exc.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS)
def test_random_bytes_end_in_a_clear_status(gateway: Gateway, method: str) -> None:
    rng, found = np.random.default_rng(METHODS.index(method)), set()
    with gateway.channel() as channel:
        call = raw(channel, method)
        for _ in range(300):
            size = int(rng.integers(0, 200))
            data = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
            found.add(code_of(call, data, **gateway.by("hostile")))
    assert found <= {grpc.StatusCode.OK, *REFUSALS}
    assert grpc.StatusCode.INVALID_ARGUMENT in found


@pytest.mark.parametrize("method", METHODS)
def test_messages_with_a_byte_changed_end_in_a_clear_status(gateway: Gateway, method: str) -> None:
    whole = {
        "CheckIn": pb.CheckInRequest(
            app="x", abilities=["sgd"], holdings=[pb.Holding(description="a" * 64, num_examples=3)],
            ready=True,
        ),
        "Fetch": pb.FetchRequest(sha256="a" * 64, offset=3),
        "Upload": pb.Part(task="b" * 32, sha256="a" * 64, size=9, data=b"123456789"),
        "Submit": pb.Submission(
            task="b" * 32, fingerprint=FINGERPRINT, outcome=pb.DONE, num_examples=3,
            losses=b"12345678", arrays=[pb.Array(field="delta", data=b"1234")],
        ),
    }[method].SerializeToString()  # fmt: skip
    rng, found = np.random.default_rng(1), set()
    with gateway.channel() as channel:
        call = raw(channel, method)
        for _ in range(200):
            data = bytearray(whole)
            data[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
            found.add(code_of(call, bytes(data), **gateway.by("hostile")))
    assert found <= {grpc.StatusCode.OK, *REFUSALS}


@pytest.mark.parametrize("method", METHODS)
def test_a_message_above_the_limit_is_refused(gateway: Gateway, method: str) -> None:
    with gateway.channel() as channel:
        code = code_of(raw(channel, method), bytes(8 << 20), **gateway.by("hostile"))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_tokens_that_are_none_are_refused(gateway: Gateway) -> None:
    right = gateway.token("hostile")
    tokens = [
        "", ".", "..", "x", right[:-1], right + "A", right.replace("hostile", "victim"),
        "../tokens/victim." + "a" * 43, "/etc/passwd.x", "a" * 7000, f"{right} ", right.upper(),
        *(f"{trick}.secret" for trick in TRICKS if trick.isprintable() and trick.isascii()),
    ]  # fmt: skip
    metadata: list[tuple[tuple[str, str | bytes], ...]] = [
        (("authorization", f"Bearer {token}"),) for token in tokens
    ]
    metadata += [(), (("authorization", right),), (("authorization-bin", b"\x00\xff"),)]
    with gateway.channel() as channel:
        stub = Stub(channel)
        for own in metadata:
            code = code_of(stub.check_in, pb.CheckInRequest(), metadata=own, timeout=30)
            if own == (("authorization", right),):
                continue  # whether the word before it matters is not what is asked here
            assert code == grpc.StatusCode.UNAUTHENTICATED, own


def test_long_tokens_of_strangers_are_not_kept(gateway: Gateway) -> None:
    before = gateway.process.memory_info().rss
    with gateway.channel() as channel:
        stub = Stub(channel)
        for number in range(6000):
            metadata = (("authorization", f"Bearer honest.{number:07}{'x' * 7000}"),)
            code = code_of(stub.check_in, pb.CheckInRequest(), metadata=metadata, timeout=60)
            assert code == grpc.StatusCode.UNAUTHENTICATED
    assert gateway.process.memory_info().rss - before < 25 << 20  # they have 42 MB together


def test_huge_metadata_is_refused(gateway: Gateway) -> None:
    with gateway.channel() as channel:
        for own in ([("x", "y" * 100_000)], [(f"x{i}", "y" * 500) for i in range(300)]):
            code = code_of(Stub(channel).check_in, pb.CheckInRequest(), metadata=own, timeout=30)
            assert code in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED}


def test_names_that_are_paths_find_nothing(gateway: Gateway) -> None:
    own = gateway.by("hostile")
    missing = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}
    before = {path for path in gateway.place.folder.rglob("*") if "state" not in path.parts}
    with gateway.channel() as channel:
        stub = Stub(channel)
        for name in TRICKS:
            for call, request in (
                (stub.fetch, pb.FetchRequest(sha256=name)),
                (stub.upload, pb.Part(task=name, sha256=name, size=4, data=b"1234")),
                (stub.upload, pb.Part(task="b" * 32, sha256=name, size=4, data=b"1234")),
            ):
                assert code_of(call, request, **own) in missing, name
            done = pb.Submission(task=name, fingerprint=name, outcome=pb.DONE, reason=name)
            done.arrays.append(pb.Array(field=name, sha256=name))
            code = code_of(stub.submit, done, **own)
            # A task that the gateway does not know any more is late, whatever its name.
            assert code in {grpc.StatusCode.OK, *missing}, name
    after = {path for path in gateway.place.folder.rglob("*") if "state" not in path.parts}
    assert after == before


def test_fields_of_a_check_in_are_bounded(gateway: Gateway) -> None:
    with gateway.channel() as channel:
        stub, own = Stub(channel), gateway.by("hostile")
        holding = pb.Holding(description="a" * 64, num_examples=2**32 - 1)
        for request in (
            pb.CheckInRequest(app="x" * 900_000),
            pb.CheckInRequest(problem="x" * 900_000),
            pb.CheckInRequest(holdings=[holding] * 10_000),
            pb.CheckInRequest(abilities=["x"] * 100_000),
            pb.CheckInRequest(formats=["y" * 1000] * 900),
            pb.CheckInRequest(holdings=[pb.Holding(description="z" * 900_000)]),
        ):
            code = code_of(stub.check_in, request, **own)
            assert code == grpc.StatusCode.INVALID_ARGUMENT
    counted = (gateway.place.server / "gateway" / "state").rglob("*")
    assert sum(path.stat().st_size for path in counted if path.is_file()) < 1 << 20


def test_more_held_calls_than_a_phone_may_have_are_refused(gateway: Gateway) -> None:
    request = pb.CheckInRequest(ready=True, abilities=["sgd"], formats=["torch"], wait_seconds=30)
    own = gateway.by("hostile")
    with gateway.channel() as channel:
        calls = [Stub(channel).check_in.future(request, **own) for _ in range(500)]
        codes = [code_of(call.result) for call in calls]
    assert {*codes} <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) > 400


def test_a_phone_cannot_touch_another_ones_task(gateway: Gateway, victim: Victim) -> None:
    delta = np.full((3, 41), 0.01, "<f4").tobytes()
    done = pb.Submission(
        task=victim.task.id, fingerprint=FINGERPRINT, outcome=pb.DONE, num_examples=7,
        loss_before=1.0, loss_after=0.9, arrays=[pb.Array(field="delta", data=delta)],
    )  # fmt: skip
    part = pb.Part(
        task=victim.task.id, sha256=hashlib.sha256(delta).hexdigest(), size=len(delta), data=delta
    )
    with gateway.channel() as channel:
        stub = Stub(channel)
        own = gateway.by("hostile")
        foreign = code_of(stub.submit, done, **own)
        if foreign == grpc.StatusCode.OK:
            verdict = stub.submit(done, **own)
            assert verdict.what in (pb.Verdict.LATE, pb.Verdict.REFUSED)
        else:
            assert foreign == grpc.StatusCode.NOT_FOUND
        assert code_of(stub.upload, part, **own) == grpc.StatusCode.NOT_FOUND
        declined = pb.Submission(task=victim.task.id, outcome=pb.DECLINED, reason="no")
        assert code_of(stub.submit, declined, **own) in {foreign, grpc.StatusCode.NOT_FOUND}

        # Its owner's result still counts.
        verdict = stub.submit(done, **gateway.by(victim.name))
        assert verdict.what == pb.Verdict.ACCEPTED


def test_uploads_beyond_what_a_task_needs_are_refused(gateway: Gateway, victim: Victim) -> None:
    own = gateway.by(victim.name)
    refused = REFUSALS - {grpc.StatusCode.NOT_FOUND}
    with gateway.channel() as channel:
        stub = Stub(channel)
        for size in (2**63, 2**64 - 1, 1 << 40, 1 << 30):
            part = pb.Part(task=victim.task.id, sha256="c" * 64, size=size, data=bytes(PART))
            assert code_of(stub.upload, part, **own) in refused, size
        part = pb.Part(task=victim.task.id, sha256="c" * 64, size=10, data=bytes(20))
        assert code_of(stub.upload, part, **own) in refused
        part = pb.Part(task=victim.task.id, sha256="c" * 64, size=10, offset=2**63, data=b"1")
        assert code_of(stub.upload, part, **own) in refused
        wrong = pb.Part(task=victim.task.id, sha256="c" * 64, size=10, data=bytes(10))
        assert code_of(stub.upload, wrong, **own) == grpc.StatusCode.DATA_LOSS

        # Ever new names do not fill the disk.
        for number in range(2000):
            name = hashlib.sha256(str(number).encode()).hexdigest()
            part = pb.Part(task=victim.task.id, sha256=name, size=400, data=bytes(300))
            code_of(stub.upload, part, **own)
    state = gateway.place.server / "gateway" / "state"
    files = [path for path in state.rglob("*") if path.is_file()]
    assert len(files) < 500
    assert sum(path.stat().st_size for path in files) < 4 << 20


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"delta": np.full((3, 41), np.nan)}, "not-finite"),
        ({"delta": np.full((3, 41), np.inf)}, "not-finite"),
        ({"delta": np.zeros((3, 40))}, "wrong-shape"),
        ({"delta": np.zeros(0)}, "wrong-shape"),
        ({"field": "gram"}, "wrong-shape"),
        ({"num_examples": 8}, "wrong-count"),
        ({"num_examples": 2**32 - 1}, "wrong-count"),
        ({"fingerprint": "cd" * 32}, "foreign-fingerprint"),
        ({"loss_before": float("nan")}, "not-finite"),
        ({"loss_before": -1.0}, "impossible"),
    ],
)
def test_what_must_not_be_added_up_is_refused(
    gateway: Gateway, victim: Victim, values: dict[str, Any], reason: str
) -> None:
    delta = np.asarray(values.get("delta", np.full((3, 41), 0.01)), "<f4").tobytes()
    array = pb.Array(field=values.get("field", "delta"), data=delta)
    done = pb.Submission(
        task=victim.task.id, fingerprint=values.get("fingerprint", FINGERPRINT), outcome=pb.DONE,
        num_examples=values.get("num_examples", 7), loss_before=values.get("loss_before", 1.0),
        loss_after=0.9, arrays=[array],
    )  # fmt: skip
    with gateway.channel() as channel:
        verdict = Stub(channel).submit(done, **gateway.by(victim.name))
    assert verdict.what == pb.Verdict.REFUSED
    assert reason in verdict.reason


def test_more_arrays_than_a_task_has_are_refused(gateway: Gateway, victim: Victim) -> None:
    array = pb.Array(field="delta", data=np.full((3, 41), 0.01, "<f4").tobytes())
    for count in (2, 500):
        done = pb.Submission(
            task=victim.task.id, fingerprint=FINGERPRINT, outcome=pb.DONE, num_examples=7,
            loss_before=1.0, loss_after=0.9, arrays=[array] * count,
        )  # fmt: skip
        with gateway.channel() as channel:
            code = code_of(Stub(channel).submit, done, **gateway.by(victim.name))
        assert code == grpc.StatusCode.INVALID_ARGUMENT


def test_three_hundred_silent_connections_of_one_address_keep_nobody_out(
    gateway: Gateway,
) -> None:
    with ExitStack() as stack:
        for number in range(300):
            # Some do not shake hands, some say a part of the preface, some nothing after it.
            connection = stack.enter_context(gateway.connect(tls=number % 3 > 0))
            if number % 3 == 1:
                connection.sendall(b"PRI * HTTP/2.0\r\n"[: number % 16])
        for _ in range(5):
            assert gateway.check_in().WhichOneof("what")


def test_slow_handshakes_and_slow_requests_keep_nobody_out(gateway: Gateway) -> None:
    hello = client_hello()
    with ExitStack() as stack:
        slow = [stack.enter_context(gateway.connect(tls=False)) for _ in range(100)]
        open_ = [stack.enter_context(gateway.connect()) for _ in range(50)]
        for byte in range(30):
            for connection in slow:
                with suppress(OSError):
                    connection.sendall(hello[byte : byte + 1])
            for connection in open_:
                with suppress(OSError):
                    connection.sendall(SETTINGS[byte : byte + 1])
            if byte % 10 == 0:
                assert gateway.check_in().WhichOneof("what")


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    session = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    "data",
    [
        bytes(100_000),
        b"\xff" * 100_000,
        b"GET / HTTP/1.1\r\n\r\n" * 1000,
        # A frame of HTTP/2 that claims 16 MB; headers without an end; a window of 2^31.
        PREFACE + bytes(9) + b"\xff\xff\xff\x00" + bytes(5) + b"x" * 9000,
        SETTINGS
        + (b"\0\x3f\xff\x01\x00\0\0\0\x01" + b"\x00" * 0x3FFF)
        + (b"\0\x3f\xff\x09\x00\0\0\0\x01" + b"\x00" * 0x3FFF) * 30,
        SETTINGS + b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\xff\xff" * 100,
        # Ten thousand pings.
        SETTINGS + b"\0\0\x08\x06\0\0\0\0\0aaaaaaaa" * 10_000,
    ],
    ids=["zeros", "ones", "http1", "length", "headers", "window", "pings"],
)
def test_bytes_that_are_no_http2_end_their_connection_alone(gateway: Gateway, data: bytes) -> None:
    for tls in (True, False):
        for _ in range(5):
            with suppress(OSError), gateway.connect(tls=tls) as connection:
                connection.sendall(data)
                connection.settimeout(0.2)
                while connection.recv(1 << 16):
                    pass
