"""Servers that send no more, readers that read no more: neither holds the other for long."""

from __future__ import annotations

import hashlib
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from client.delivery.fetch import fetch
from client.delivery.remote import DeliveryInterruptedError
from client.delivery.shelf import Shelf
from common.delivery import delivery_pb2 as pb
from common.delivery.versions import Artifact, fingerprint_of
from common.delivery.wire import handlers
from common.errors import DeliveryError
from server.delivery.limits import Clock
from server.delivery.reports import survey
from server.delivery.service import Limits

SIZE = 300_000
Pieces = Callable[[bytes, int], Iterator[bytes]]


class Standing:
    """A server of a deployment's only version, whose downloads are the test's own.

    Args:
        data: the version's.
        pieces: of the data from an offset on.
    """

    def __init__(self, data: bytes, pieces: Pieces) -> None:
        self._data, self._pieces = data, pieces
        self.offsets: list[int] = []

    def latest(self, request: pb.LatestRequest, _: grpc.ServicerContext) -> pb.Artifact:
        digest = hashlib.sha256(self._data).hexdigest()
        return pb.Artifact(name=request.name, version=1, size=len(self._data), sha256=digest)

    def download(self, request: pb.DownloadRequest, _: grpc.ServicerContext) -> Iterator[pb.Chunk]:
        self.offsets.append(request.offset)
        for piece in self._pieces(self._data, request.offset):
            yield pb.Chunk(data=piece)

    def report(self, *_: object) -> pb.ReportReply:
        raise NotImplementedError

    def check_in(self, *_: object) -> pb.CheckInReply:
        raise NotImplementedError


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set at the end: until then servers may wait for it."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def standing(deployment, over) -> Iterator[Callable[[Standing], int]]:
    """Starts a server with TLS; gives its port."""
    servers = []

    def begin(servicer: Standing) -> int:
        server = grpc.server(ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers(handlers(servicer))
        pair = [(deployment.pki / f"server.{end}").read_bytes() for end in ("key", "crt")]
        credentials = grpc.ssl_server_credentials([(pair[0], pair[1])])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        servers.append(server)
        return port

    yield begin
    over.set()
    for server in servers:
        server.stop(0).wait()


@pytest.fixture
def shelf(deployment) -> Shelf:
    return Shelf(deployment.models, "model.bin")


def nothing(seconds: float) -> None:
    """Instead of sleeping."""


def partial(shelf: Shelf) -> bytes:
    (file,) = shelf.path.glob(".*.part")
    return file.read_bytes()


def test_a_fetch_ends_where_the_server_stops_in_mid_download_and_goes_on_later(
    deployment, serve, standing, over, shelf
) -> None:
    data = deployment.publish(1, SIZE)

    def half(data: bytes, offset: int) -> Iterator[bytes]:
        yield from (data[offset : SIZE // 2],) * (offset < SIZE // 2)
        over.wait()

    server = Standing(data, half)
    with (
        deployment.remote(standing(server), stall_seconds=0.15) as remote,
        pytest.raises(
            DeliveryInterruptedError, match=r"hardly any content has arrived for 0\.15 s$"
        ),
    ):
        fetch(remote, shelf, keep=2, sleep=nothing)
    assert partial(shelf) == data[: SIZE // 2]
    with deployment.remote(serve()) as remote:
        fetched = fetch(remote, shelf, keep=2)
    assert fetched.received_bytes == SIZE - SIZE // 2
    assert fetched.model.read_bytes() == data


def test_a_stream_that_stands_still_once_is_begun_again_where_it_stood(
    deployment, standing, over, shelf
) -> None:
    data = deployment.publish(1, SIZE)

    def once(data: bytes, offset: int) -> Iterator[bytes]:
        yield data[offset:][:100_000]
        if not offset:
            over.wait()
        yield data[offset:][100_000:]

    server = Standing(data, once)
    with deployment.remote(standing(server), stall_seconds=0.5) as remote:
        assert fetch(remote, shelf, keep=2, sleep=nothing).model.read_bytes() == data
    assert server.offsets == [0, 100_000]


def endless_nothing(data: bytes, offset: int) -> Iterator[bytes]:
    while True:
        yield b""


def byte_by_byte(data: bytes, offset: int) -> Iterator[bytes]:
    for position in range(offset, len(data)):
        yield data[position : position + 1]
        time.sleep(0.005)


def one_byte_a_call(data: bytes, offset: int) -> Iterator[bytes]:
    yield data[offset : offset + 1]


@pytest.mark.parametrize("pieces", [endless_nothing, byte_by_byte, one_byte_a_call])
def test_what_would_take_years_is_no_progress(deployment, standing, shelf, pieces: Pieces) -> None:
    data = deployment.publish(1, SIZE)
    server = Standing(data, pieces)
    with (
        deployment.remote(standing(server), stall_seconds=0.15) as remote,
        pytest.raises(DeliveryInterruptedError),
    ):
        fetch(remote, shelf, keep=2, sleep=nothing)
    assert len(server.offsets) == 6
    if pieces is not endless_nothing:
        assert data.startswith(partial(shelf))


def test_what_is_slow_and_goes_on_is_not_broken_off(deployment, standing, shelf) -> None:
    data = deployment.publish(1, 20_000)

    def slowly(data: bytes, offset: int) -> Iterator[bytes]:
        for position in range(offset, len(data), 1024):
            yield data[position : position + 1024]
            time.sleep(0.05)

    server = Standing(data, slowly)
    with deployment.remote(standing(server), stall_seconds=0.6) as remote:
        assert fetch(remote, shelf, keep=2).model.read_bytes() == data
    assert server.offsets == [0]


def test_a_server_that_sends_more_than_it_promised_is_refused_at_once(
    deployment, standing, shelf
) -> None:
    data = deployment.publish(1, 10_000)

    def more(data: bytes, offset: int) -> Iterator[bytes]:
        while True:
            yield data

    with (
        deployment.remote(standing(Standing(data, more))) as remote,
        pytest.raises(DeliveryError, match="refused and removed"),
    ):
        fetch(remote, shelf, keep=2)
    assert not list(shelf.path.glob(".*.part"))


def test_readers_that_stop_lose_their_places_to_who_waits(deployment, serve, caplog) -> None:
    # Far more than gRPC's flow control lets a stream run ahead of its reader.
    data = deployment.publish(1, 20_000_000)
    artifact = survey(deployment.folder)[0].artifact
    now = [0.0]
    port = serve(limits=Limits(1, 1e12, stall_seconds=30), clock=Clock(lambda: now[0], nothing))
    with (
        deployment.remote(port) as stopped,
        deployment.remote(port, token=deployment.other_device()) as waiting,
    ):
        stream = stopped.download(artifact, 0)
        next(stream)
        time.sleep(0.3)  # until the server can send no more
        with pytest.raises(DeliveryInterruptedError, match="too many downloads at once"):
            next(waiting.download(artifact, 0))
        now[0] = 31.0
        assert b"".join(waiting.download(artifact, 0)) == data
        with pytest.raises(DeliveryError, match="or this one was too slow"):
            list(stream)
    assert "phone-1: its download is ended" in caplog.text


def test_a_reader_that_leaves_the_end_untaken_holds_no_place(deployment, serve) -> None:
    data = deployment.publish(1, 30_000)  # less than gRPC's flow control lets run ahead
    artifact = survey(deployment.folder)[0].artifact
    port = serve(limits=Limits(1, 1e12))
    with (
        deployment.remote(port) as stopped,
        deployment.remote(port, token=deployment.other_device()) as waiting,
    ):
        stream = stopped.download(artifact, 0)
        assert next(stream) == data[:16384]
        deadline = time.monotonic() + 20
        while True:
            try:
                assert b"".join(waiting.download(artifact, 0)) == data
                break
            except DeliveryInterruptedError:
                assert time.monotonic() < deadline
        assert b"".join(stream) == data[16384:]


@pytest.mark.parametrize("have", [1, 1023, 16384, SIZE - 1, SIZE])
def test_a_fetch_goes_on_at_any_byte(deployment, serve, shelf, have: int) -> None:
    data = deployment.publish(1, SIZE)
    keep(shelf, data, have)
    with deployment.remote(serve()) as remote:
        fetched = fetch(remote, shelf, keep=2)
    assert fetched.received_bytes == SIZE - have
    assert fetched.model.read_bytes() == data


def keep(shelf: Shelf, data: bytes, have: int) -> None:
    shelf.path.mkdir(parents=True)
    name = f".1-{hashlib.sha256(data).hexdigest()}.part"
    (shelf.path / name).write_bytes(data[:have])


def test_too_little_space_leaves_what_has_come(deployment, serve, shelf, monkeypatch) -> None:
    data = deployment.publish(1, SIZE)
    keep(shelf, data, 200_000)
    usage = shutil.disk_usage(shelf.path)
    with deployment.remote(serve()) as remote:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=99_999))
            with pytest.raises(DeliveryError, match="100,000 bytes are needed, 99,999 are free"):
                fetch(remote, shelf, keep=2)
        assert partial(shelf) == data[:200_000]
        assert fetch(remote, shelf, keep=2).received_bytes == 100_000


def test_a_disk_that_fills_up_under_way_leaves_what_has_come(deployment, serve, shelf) -> None:
    data = deployment.publish(1, SIZE)
    with deployment.remote(serve()) as remote:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(DeliveryError, match=r"\.part: .*; the received part is kept"):
                fetch(remote, shelf, keep=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        have = len(partial(shelf))
        assert 0 < have <= 100_000
        fetched = fetch(remote, shelf, keep=2)
    assert fetched.received_bytes == SIZE - have
    assert fetched.model.read_bytes() == data


def test_a_disk_that_fills_up_at_the_end_leaves_what_has_come(
    deployment, serve, shelf, monkeypatch
) -> None:
    data = deployment.publish(1, SIZE)

    def full(artifact: Artifact, folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder))

    with deployment.remote(serve()) as remote:
        with monkeypatch.context() as patch:
            patch.setattr(Artifact, "describe", full)
            with pytest.raises(OSError, match="No space left"):
                fetch(remote, shelf, keep=2)
        assert partial(shelf) == data
        assert fetch(remote, shelf, keep=2).received_bytes == 0


def test_a_refusal_leaves_what_has_come(deployment, serve, shelf) -> None:
    data = deployment.publish(1, SIZE)
    keep(shelf, data, 200_000)
    good = deployment.file().read_bytes()
    deployment.file().write_bytes(b"damaged")
    with deployment.remote(serve()) as remote:
        with pytest.raises(DeliveryError, match="damaged on the server"):
            fetch(remote, shelf, keep=2)
        deployment.file().write_bytes(good)
        assert fetch(remote, shelf, keep=2).received_bytes == 100_000


def closed() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_server_that_is_not_there_is_said_in_a_few_words(deployment) -> None:
    port = closed()
    artifact = survey_of(deployment)
    calls = {
        "model.bin": lambda remote: remote.latest("model.bin"),
        "model.bin version 1": lambda remote: list(remote.download(artifact, 0)),
        "report on model.bin version 1": lambda remote: remote.report(
            artifact, num_examples=1, accuracy=1.0, held_out=False
        ),
        "check-in": lambda remote: remote.check_in("fedhead", "0" * 64, {}),
    }
    with deployment.remote(port) as remote:
        for task, call in calls.items():
            with pytest.raises(DeliveryInterruptedError) as caught:
                call(remote)
            where = f"127.0.0.1:{port}: {task}: cannot be reached"
            assert str(caught.value) == f"{where} (Connection refused)"


def survey_of(deployment):
    deployment.publish(1)
    return survey(deployment.folder)[0].artifact


def test_what_a_server_says_is_one_short_line(deployment, standing) -> None:
    class Chatty(Standing):
        def latest(self, request: pb.LatestRequest, context: grpc.ServicerContext) -> pb.Artifact:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no\n" * 1000)

    port = standing(Chatty(b"", endless_nothing))
    with deployment.remote(port) as remote, pytest.raises(DeliveryError) as caught:
        remote.latest("model.bin")
    line = str(caught.value)
    assert line.startswith(f"127.0.0.1:{port}: model.bin: no no no")
    assert "\n" not in line
    assert len(line) < 220


@pytest.mark.parametrize(
    "values",
    [
        {"name": "x" * 100_000},
        {"name": "../x\x1b[2J"},
        {"name": "model.bin", "version": 1, "sha256": "z" * 100_000},
        {"name": "model.bin", "version": 2**63, "sha256": "0" * 64},
    ],
)
def test_an_answer_that_cannot_be_is_one_short_line(deployment, standing, values) -> None:
    class Lying(Standing):
        def latest(self, request: pb.LatestRequest, _: grpc.ServicerContext) -> pb.Artifact:
            return pb.Artifact(**values)

    port = standing(Lying(b"", endless_nothing))
    with deployment.remote(port) as remote, pytest.raises(DeliveryError) as caught:
        remote.latest("model.bin")
    line = str(caught.value)
    assert len(line) < 260
    assert line.isprintable()


def test_a_card_that_is_too_deep_names_no_fingerprint() -> None:
    deep = Artifact("model.bin", 1, 0, "0" * 64, "[" * 1_000_000)
    with pytest.raises(DeliveryError, match="model.bin version 1: its card has no fingerprint"):
        fingerprint_of(deep)


@pytest.mark.parametrize("content", [b"caf\xc3\xa9", b"\xff\xfe", b"two\nlines"])
def test_a_file_that_is_no_token_is_named(deployment, tmp_path, content: bytes) -> None:
    path = tmp_path / "junk.token"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(DeliveryError, match="junk.token: not a token"):
        deployment.remote(1, token=path)
