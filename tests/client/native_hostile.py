"""A server that means a C++ phone no good, and a phone to meet it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from common.phones import phones_pb2 as pb
from simulations.deploy.authority import ensure_authority, sign_server, spread
from tests.client.native_phones import NativePhone


def lone_phone(folder: Path, program: Path) -> NativePhone:
    """A phone whose gateway has an authority of its own; no server runs."""
    ensure_authority(folder)
    sign_server(folder, ["127.0.0.1"], 2)
    spread(folder)
    path = folder / "phone"
    (path / "images" / "a").mkdir(parents=True)
    (path / "images" / "a" / "1.rgb").write_bytes(bytes(3 * 32 * 32))
    shutil.copy(folder / "server" / "ca.crt", path / "ca.crt")
    (path / "phone.token").write_text("secret")
    (path / "phone.token").chmod(0o600)
    return NativePhone(path, program, "anna")


def meet(phone: NativePhone, port: int) -> None:
    text = f'gateway = "127.0.0.1:{port}"\ndata = "folder:images"\n'
    (phone.path / "phone.toml").write_text(text)


class Hostile(grpc.GenericRpcHandler):
    """Answers each call with the next bytes of a list, then with a short pause."""

    def __init__(self, replies: Sequence[bytes]) -> None:
        self._replies = [*replies]
        self.served = 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(
            self._answer, request_deserializer=None, response_serializer=None
        )

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.served += 1
        if self._replies:
            return self._replies.pop(0)
        later = pb.Later(min_seconds=0.05, max_seconds=0.1)
        return pb.CheckInReply(later=later).SerializeToString()

    @property
    def is_done(self) -> bool:
        return not self._replies


@contextlib.contextmanager
def serving(folder: Path, handler: Hostile) -> Iterator[int]:
    server = grpc.server(
        ThreadPoolExecutor(4), handlers=[handler], options=[("grpc.max_send_message_length", -1)]
    )
    keys = ((folder / "server.key").read_bytes(), (folder / "server.crt").read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([keys]))
    server.start()
    try:
        yield port
    finally:
        server.stop(None)
