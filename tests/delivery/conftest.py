"""A deployment's authority, published files, a real server with TLS on loopback."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.delivery.remote import Remote
from common.delivery.identity import Identity
from common.delivery.tokens import issue_token
from common.files import write_private
from server.delivery.limits import Clock
from server.delivery.publish import Sign, exported, publish_version
from server.delivery.service import Limits, start
from server.export.card import BESIDE, Card, FileFacts, SelfCheck, card_path

UNLIMITED = Limits(downloads=16, bytes_per_second=1e12)


def certificate(
    folder: Path,
    name: str,
    signer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None,
    *,
    host: str = "127.0.0.1",
    days: int = 1,
) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
    """Write NAME.crt and NAME.key; without a signer, an authority's own."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    key = ec.generate_private_key(ec.SECP256R1())
    issuer, signing_key = signer or (subject, key)
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=10))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]),
            critical=False,
        )
        .sign(signing_key, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    write_private(
        folder / f"{name}.key",
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    return subject, key


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ca, other-ca, and servers: server, expired, elsewhere, foreign."""
    folder = tmp_path_factory.mktemp("pki")
    authority = certificate(folder, "ca")
    certificate(folder, "server", authority)
    certificate(folder, "expired", authority, days=-1)
    certificate(folder, "elsewhere", authority, host="127.0.0.9")
    certificate(folder, "foreign", certificate(folder, "other-ca"))
    return folder


CARD = Card(
    target="model",
    usage=("",),
    usage_elsewhere={},
    engine="qnnpack",
    classes=("cat", "dog"),
    arch="none",
    input="",
    output="",
    input_size=8,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    num_features=3,
    weights="none",
    weights_licence="none",
    fingerprint="f" * 64,
    head_sha256="0",
    torch_version="",
    metrics={},
    self_check=SelfCheck(
        images=1,
        accuracy=1.0,
        argmax_agreement=1.0,
        max_logit_difference=0.0,
        logit_spread=1.0,
    ),
)


class Deployment:
    """A delivery folder with one device, phone-1."""

    def __init__(self, path: Path, pki: Path) -> None:
        self.folder = path / "delivery"
        self.models = path / "models"
        self.token = path / "phone-1.token"
        self.pki = pki
        self._path = path
        issue_token(self.folder, "phone-1", self.token)

    def publish(self, seed: int, size: int = 300_000, sign: Sign | None = None) -> bytes:
        """Put random bytes up as the next version of model.bin."""
        data = random.Random(seed).randbytes(size)
        source = self._path / f"source-{seed}.bin"
        source.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        facts = FileFacts(bytes=size, sha256=digest, runtime="none", processor="none")
        card = CARD.model_copy(update={"file": facts}).model_dump(mode="json")
        BESIDE.write(card_path(source), card)
        publish_version(exported(source, self.folder, name="model.bin"), sign)
        return data

    def file(self, version: int = 1) -> Path:
        return self.folder / "artifacts" / "model.bin" / str(version) / "model.bin"

    def remote(
        self,
        port: int,
        *,
        authority: str = "ca",
        token: Path | None = None,
        stall_seconds: float = 60.0,
    ) -> Remote:
        return Remote(
            f"127.0.0.1:{port}",
            authority=self.pki / f"{authority}.crt",
            token=token or self.token,
            stall_seconds=stall_seconds,
        )

    def other_device(self) -> Path:
        """The token of a second device, phone-2."""
        path = self._path / "phone-2.token"
        issue_token(self.folder, "phone-2", path)
        return path


@pytest.fixture
def deployment(tmp_path: Path, pki: Path) -> Deployment:
    return Deployment(tmp_path, pki)


Serve = Callable[..., int]


@pytest.fixture
def serve(deployment: Deployment) -> Iterator[Serve]:
    """Starts a server of the deployment's folder and gives its port."""
    servers = []

    def begin(
        certificate: str = "server", limits: Limits = UNLIMITED, clock: Clock | None = None
    ) -> int:
        server, port = start(
            deployment.folder,
            address="127.0.0.1:0",
            identity=Identity(
                *(deployment.pki / name for name in (f"{certificate}.crt", f"{certificate}.key")),
                authorities=deployment.pki / "ca.crt",
            ),
            limits=limits,
            clock=clock,
        )
        servers.append(server)
        return port

    yield begin
    for server in servers:
        server.stop(0).wait()


class Proxy:
    """Relays TCP to a port, counts what the server sends, resets connections in the middle.

    Args:
        port: of the server.
        cuts: for the first connections, after how many bytes from the server each is reset.
    """

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._target = port
        self._cuts = cuts
        self.received: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                device, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                number = len(self.received)
                self.received.append(0)
                for work in (
                    lambda d=device, s=server: self._upward(d, s),
                    lambda d=device, s=server, n=number: self._downward(d, s, n),
                ):
                    threading.Thread(target=work, daemon=True).start()

    def _upward(self, device: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := device.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _downward(self, device: socket.socket, server: socket.socket, number: int) -> None:
        cut = self._cuts[number] if number < len(self._cuts) else None
        with suppress(OSError), ExitStack() as stack:
            for end in (device, server):
                stack.callback(end.close)
                # Wakes the other thread, whose read would keep the connection open.
                stack.callback(end.shutdown, socket.SHUT_RDWR)
            while data := server.recv(65536):
                count = self.received[number] + len(data)
                if cut is not None and count > cut:
                    device.sendall(data[: cut - self.received[number]])
                    # A reset, not an orderly end.
                    device.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                device.sendall(data)
                self.received[number] = count


@pytest.fixture
def proxy() -> Iterator[Callable[[int, list[int]], Proxy]]:
    proxies = []

    def make(port: int, cuts: list[int]) -> Proxy:
        proxies.append(Proxy(port, cuts))
        return proxies[-1]

    yield make
    for made in proxies:
        made.close()
