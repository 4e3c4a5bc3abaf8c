"""The C++ phone and a server that means it no good: it refuses, goes on, and stays well."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from common.phones import phones_pb2 as pb
from tests.client.native_hostile import Hostile, lone_phone, meet, serving
from tests.client.native_phones import SOURCE, NativePhone, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FOLDER = Path(__file__).parent
READERS = ("card", "change", "frame", "percent", "safetensors", "settings", "statement", "task")


def test_damaged_bytes_end_in_an_error_and_touch_no_other_memory(tmp_path):
    """Address and undefined-behaviour sanitizers watch 200,000 inputs of each reader."""
    for tool, package in {"c++": "g++", "protoc": "protobuf-compiler"}.items():
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install {package}")
    proto = SOURCE.parent.parent / "common" / "phones"
    subprocess.run(
        ["protoc", f"--cpp_out=lite:{tmp_path}", "-I", proto, "phones.proto"], check=True
    )
    phone = SOURCE / "phone"
    names = ("card", "channel", "files", "settings", "split", "trainer", "trust", "work")
    files = [*(phone / f"{name}.cpp" for name in names), SOURCE / "codecs.cpp"]
    files += [SOURCE / "safetensors.cpp", tmp_path / "phones.pb.cc", FOLDER / "native_fuzz.cpp"]
    command = [
        "c++", "-std=c++20", "-O1", "-g", "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all", "-ffp-contract=off", f"-I{phone}", f"-I{tmp_path}",
        *map(str, files), "-o", str(tmp_path / "fuzz"),
        "-lprotobuf-lite", "-lcurl", "-lcrypto", "-lpthread",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    done = subprocess.run([tmp_path / "fuzz", "200000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = {
        name: (int(read), int(refused))
        for name, read, refused in map(str.split, done.stdout.splitlines())
    }
    assert tuple(counts) == READERS
    for name, (read, refused) in counts.items():
        assert read > 4, name
        if name == "percent":  # any text is one
            assert refused == 0
        else:
            assert refused > 1000, name


@pytest.fixture
def phone(tmp_path: Path, phone_program) -> Iterator[NativePhone]:
    """A phone that no server knows."""
    made = lone_phone(tmp_path, phone_program("executorch"))
    yield made
    if made.process and made.process.poll() is None:
        made.kill()


def hostile_replies() -> list[bytes]:
    """What no gateway says, as the bytes of messages."""
    random.seed(1)
    digest = "a" * 64
    blob = pb.Blob(sha256=digest, size=2**63)
    backbone = pb.Backbone(format="executorch", file=blob)
    good = {
        "id": digest, "run": "r", "name": "n", "classes": ["a", "b"], "seed": 1,
        "fingerprint": digest, "backbones": [backbone],
    }  # fmt: skip
    descriptions = [
        {}, {"id": "../../x"}, {"id": digest}, {**good, "classes": ["a", "a"]},
        {**good, "test_fraction": float("nan")}, {**good, "test_fraction": 2.0},
        {**good, "client": 2**63}, {**good, "fingerprint": "x"}, {**good, "backbones": []}, good,
        {**good, "name": "evil\x1b[31m\n" * 99},
        {**good, "backbones": [pb.Backbone(format="executorch", file=pb.Blob(
            sha256="../../../tmp/evil", size=3, data=b"abc"))]},
        {**good, "backbones": [pb.Backbone(format="executorch", file=pb.Blob(
            sha256=digest, size=3, data=b"abc"))]},
    ]  # fmt: skip
    tasks = [
        {}, {"id": "../x"}, {"id": "b" * 32}, {"id": "b" * 32, "description": digest},
        {"id": "b" * 32, "seconds_left": float("inf"), "num_classes": 2**32 - 1},
        {"id": "b" * 32, "seconds_left": -1.0}, {"id": "b" * 32, "seconds_left": float("nan")},
    ]  # fmt: skip
    windows = [(-1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))]
    return [
        b"", b"\xff" * 100, random.randbytes(5000), bytes(5 << 20),
        *(pb.CheckInReply(description=pb.Description(**d)).SerializeToString()
          for d in descriptions),
        *(pb.CheckInReply(task=pb.Task(**t)).SerializeToString() for t in tasks),
        *(pb.CheckInReply(later=pb.Later(min_seconds=a, max_seconds=b)).SerializeToString()
          for a, b in windows),
    ]  # fmt: skip


def test_no_reply_ends_a_phone(phone, tmp_path):
    """Each reply is the first of a new process, so that no pause comes between."""
    for i, reply in enumerate(hostile_replies()):
        handler = Hostile([reply])
        with serving(tmp_path / "server", handler) as port:
            meet(phone, port)
            status = phone.once()
            assert status in (0, 75), (i, reply[:80], phone.log)
            assert handler.served
    assert sorted(p.name for p in phone.path.iterdir()) == [
        "ca.crt", "images", "log", "phone.token", "phone.toml", "state",
    ]  # fmt: skip
    assert "\x1b" not in phone.log
    # With a gateway that is none any more, it is at ease.
    with serving(tmp_path / "server", Hostile([])) as port:
        meet(phone, port)
        assert phone.once() == 0


SHA256, SIZE, PART = "a" * 64, 64 << 20, 256 << 10


def description_of_large() -> bytes:
    backbone = pb.Backbone(format="executorch", file=pb.Blob(sha256=SHA256, size=SIZE))
    description = pb.Description(
        id=SHA256, run="r", name="n", classes=["a", "b"], fingerprint=SHA256, backbones=[backbone]
    )
    return pb.CheckInReply(description=description).SerializeToString()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": b"x"}, {"data": bytes(PART - 1)}, {"data": bytes(PART + 1)}, {"offset": 1},
        {"size": SIZE - 1}, {"sha256": "b" * 64},
    ],
)  # fmt: skip
def test_a_part_that_is_not_what_was_asked_for_is_the_last_one(changes, phone, tmp_path):
    """By parts of a byte a server would hold a phone for ever."""
    part = {"sha256": SHA256, "size": SIZE, "data": bytes(PART)} | changes
    handler = Hostile([description_of_large(), pb.Part(**part).SerializeToString()])
    with serving(tmp_path / "server", handler) as port:
        meet(phone, port)
        assert phone.once() == 75
    assert handler.served == 2
    assert "cannot take part in run n: damaged-blob: a part of" in phone.log


class Slow(Hostile):
    """Serves a large backbone, a part in two seconds."""

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if not self.is_done:
            return super()._answer(request, context)
        self.served += 1
        time.sleep(2)
        offset = pb.FetchRequest.FromString(request).offset
        part = pb.Part(sha256=SHA256, size=SIZE, offset=offset, data=bytes(PART))
        return part.SerializeToString()


def test_an_owners_no_ends_a_download(phone, tmp_path):
    """It is asked for every ten seconds; the whole takes some minutes."""
    handler, no = Slow([description_of_large()]), tmp_path / "no"
    with serving(tmp_path / "server", handler) as port:
        meet(phone, port)
        with (phone.path / "phone.toml").open("a") as file:
            file.write(f"allow = 'test ! -e {no}'\n")
        process = phone.start("--once")
        until(lambda: handler.served > 2, phone.log)
        no.touch()
        assert process.wait(120) == 0, phone.log
    assert handler.served < SIZE // PART
    (partial,) = (phone.state / "blobs").iterdir()
    assert partial.stat().st_size >= 2 * PART  # the next try goes on from there


def test_a_phone_outlives_a_server_of_noise(phone, tmp_path):
    """TLS is right, and what comes through it is no HTTP/2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server" / "server.crt", tmp_path / "server" / "server.key")
    context.set_alpn_protocols(["h2"])
    source = random.Random(3)
    met = []

    def serve(listener: socket.socket) -> None:
        while True:
            with contextlib.suppress(OSError):
                link, _ = listener.accept()
                with context.wrap_socket(link, server_side=True) as secure:
                    secure.recv(1000)
                    secure.sendall(source.randbytes(source.randrange(1, 5000)))
                    met.append(1)
                continue
            if listener.fileno() < 0:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        meet(phone, listener.getsockname()[1])
        for _ in range(5):
            assert phone.once() == 75, phone.log
        phone.start()
        until(lambda: len(met) >= 7, "the phone does not try again")
        time.sleep(0.1)
        phone.stop()
