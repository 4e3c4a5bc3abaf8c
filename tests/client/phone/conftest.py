"""A gateway that does what a test says, with TLS on loopback, and a phone's folder."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
import numpy as np
import pytest
from PIL import Image

from client.phone.link import Link
from client.phone.phone import Phone
from client.phone.trainer import Computed, Order
from common.delivery.tokens import device_of, issue_token
from common.identity import client_of_phone
from common.phones.phones_pb2 import (
    SGD,
    Backbone,
    Blob,
    CheckInReply,
    CheckInRequest,
    Description,
    FetchRequest,
    Later,
    LatestRequest,
    Model,
    Part,
    Submission,
    Task,
    Training,
    UploadReply,
    Verdict,
)
from common.phones.wire import PART, SERVER_OPTIONS, handlers
from tests.delivery.conftest import certificate

if TYPE_CHECKING:
    from server.export.trained import TrainedModel

T = TypeVar("T")
NAME = "anna"
LATER = Later(min_seconds=0.05, max_seconds=0.1)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class FakeGateway:
    """Answers a phone as a test wants, and keeps what came.

    Attributes:
        folder: of the tokens.
        answers: the next answers to check-ins; then it is Later.
        blobs: by SHA-256.
        failures: by call, the next failures: they come before answers.
        model: the answer to `latest`.
    """

    folder: Path
    answers: list[CheckInReply] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, list[grpc.StatusCode | None]] = field(default_factory=dict)
    check_ins: list[CheckInRequest] = field(default_factory=list)
    fetched: list[FetchRequest] = field(default_factory=list)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)
    verdict: Verdict = field(default_factory=lambda: Verdict(what=Verdict.ACCEPTED, later=LATER))
    answer: Callable[[CheckInRequest], CheckInReply] | None = None
    on_failure: Callable[[FakeGateway], None] | None = None
    model: Model | None = None
    port: int = 0

    def blob(self, data: bytes, *, inline: bool = False) -> Blob:
        """A blob that can be fetched."""
        digest = sha256(data)
        self.blobs[digest] = data
        return Blob(sha256=digest, size=len(data), data=data if inline else b"")

    async def _begin(self, call: str, context: Any) -> None:
        sent = dict(context.invocation_metadata()).get("authorization", "")
        if device_of(self.folder, sent.removeprefix("Bearer ")) is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is unknown")
        planned = self.failures.get(call, [])
        if planned and (code := planned.pop(0)) is not None:
            if self.on_failure:
                self.on_failure(self)
            await context.abort(code, "planned by the test")

    async def check_in(self, request: CheckInRequest, context: Any) -> CheckInReply:
        self.check_ins.append(request)
        await self._begin("check_in", context)
        if self.answer:
            return self.answer(request)
        return self.answers.pop(0) if self.answers else CheckInReply(later=LATER)

    async def fetch(self, request: FetchRequest, context: Any) -> Part:
        self.fetched.append(request)
        await self._begin("fetch", context)
        if request.sha256 not in self.blobs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        data, offset = self.blobs[request.sha256], request.offset
        part = data[offset : offset + PART]
        return Part(sha256=request.sha256, size=len(data), offset=offset, data=part)

    async def latest(self, request: LatestRequest, context: Any) -> Model:
        await self._begin("latest", context)
        if self.model is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "nothing is published")
        return self.model

    async def upload(self, request: Part, context: Any) -> UploadReply:
        self.parts.append(request)
        await self._begin("upload", context)
        have = self.uploads.setdefault(request.sha256, bytearray())
        if request.data:
            if request.offset != len(have):
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, "not there")
            have += request.data
            if len(have) == request.size and sha256(bytes(have)) != request.sha256:
                have.clear()
                await context.abort(grpc.StatusCode.DATA_LOSS, "other bytes")
        return UploadReply(size=len(have))

    async def submit(self, request: Submission, context: Any) -> Verdict:
        self.submissions.append(request)
        await self._begin("submit", context)
        return self.verdict


class Standing:
    """Runs gateways in a thread with an event loop."""

    def __init__(self, pki: Path) -> None:
        self._pki, self._loop = pki, asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._servers: list[grpc.aio.Server] = []

    def do(self, work: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(30)

    def start(self, gateway: Any, port: int = 0, name: str = "server") -> grpc.aio.Server:
        async def begin() -> grpc.aio.Server:
            server = grpc.aio.server(options=SERVER_OPTIONS)
            server.add_generic_rpc_handlers(handlers(gateway))
            pair = [(self._pki / f"{name}.{end}").read_bytes() for end in ("key", "crt")]
            credentials = grpc.ssl_server_credentials([(pair[0], pair[1])])
            gateway.port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
            await server.start()
            self._servers.append(server)
            return server

        found: grpc.aio.Server = self.do(begin())
        return found

    def stop(self, server: grpc.aio.Server) -> None:
        self.do(server.stop(0))
        self._servers.remove(server)

    def close(self) -> None:
        for server in [*self._servers]:
            self.stop(server)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def phone_pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    certificate(folder, "server", certificate(folder, "ca"))
    certificate(folder, "foreign", certificate(folder, "other-ca"))
    return folder


@pytest.fixture
def standing(phone_pki: Path) -> Iterator[Standing]:
    made = Standing(phone_pki)
    yield made
    made.close()


@pytest.fixture
def gateway(standing: Standing, tmp_path: Path) -> FakeGateway:
    made = FakeGateway(tmp_path / "delivery")
    standing.start(made)
    return made


@pytest.fixture
def folder(gateway: FakeGateway, phone_pki: Path, tmp_path: Path) -> Path:
    """A phone's folder, without images."""
    path = tmp_path / "phone"
    path.mkdir()
    issue_token(gateway.folder, NAME, path / "phone.token")
    (path / "ca.crt").write_bytes((phone_pki / "ca.crt").read_bytes())
    (path / "phone.toml").write_text(
        f'gateway = "127.0.0.1:{gateway.port}"\ndelivery = "127.0.0.1:1"\n'
        'data = "folder:images"\nstate = "state"\nmax-examples = 0\nallow = ""\n'
    )
    return path


@pytest.fixture
def link(gateway: FakeGateway, folder: Path) -> Link:
    address = f"127.0.0.1:{gateway.port}"
    return Link(address, authority=folder / "ca.crt", token=folder / "phone.token")


CLASSES = tuple(str(digit) for digit in range(10))


def write_images(folder: Path, trained: TrainedModel, per_class: int = 4) -> None:
    """Images of digits, as a phone's owner would have sorted them."""
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for i, place in enumerate(np.flatnonzero(trained.labels == label)[:per_class]):
            pixels = trained.images[place].transpose(1, 2, 0)
            Image.fromarray(pixels).save(folder / str(label) / f"{i}.png")


def description_of(gateway: FakeGateway, trained: TrainedModel, **changed: Any) -> Description:
    """A run of the trained model's backbone."""
    backbone = trained.backbone
    values = {
        "id": sha256(b"a run"), "run": "1234", "name": "digits", "classes": CLASSES,
        "test_fraction": 0.25, "seed": 7, "fingerprint": backbone.fingerprint,
        "client": client_of_phone(NAME),
        "backbones": [Backbone(format="torch", file=gateway.blob(backbone.to_bytes()))],
    }  # fmt: skip
    return Description(**{**values, **changed})


def task_of(
    gateway: FakeGateway,
    description: Description,
    head: np.ndarray,
    num_examples: int,
    **changed: Any,
) -> Task:
    """One round of plain SGD."""
    values = {
        "id": sha256(b"a task")[:32], "run": description.run, "round": 3,
        "description": description.id, "fingerprint": description.fingerprint,
        "seconds_left": 60.0, "kind": SGD, "num_examples": num_examples,
        "num_classes": len(head), "num_features": head.shape[1] - 1, "fields": ["delta"],
        "head": gateway.blob(head.astype("<f4").tobytes()), "codec": "none",
        "training": Training(optimizer="sgd", lr=0.01, epochs=2, batch_size=5, batch_seed=11),
    }  # fmt: skip
    return Task(**{**values, **changed})


@dataclass
class StubTrainer:
    """Counts what it is asked, and sends arrays of a wanted size."""

    arrays: dict[str, bytes] = field(default_factory=lambda: {"delta": bytes(4 * 2 * 4)})
    formats: tuple[str, ...] = ("torch",)
    abilities: tuple[str, ...] = ("sgd", "statistics", "evaluate")
    prepared: list[bytes | None] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    counts: tuple[int, int] = (12, 4)
    problem: Exception | None = None

    def prepare(self, description: Description, backbone: Backbone, data: bytes | None) -> bool:
        if self.problem:
            raise self.problem
        self.prepared.append(data)
        return data is not None

    def holding(self, description: Description) -> tuple[int, int]:
        return self.counts

    def sgd(self, order: Order) -> Computed:
        self.orders.append(order)
        if self.problem:
            raise self.problem
        return Computed(12, 0.7, 0.6, arrays=self.arrays)

    def statistics(self, order: Order) -> Computed:
        return self.sgd(order)

    def evaluate(self, order: Order) -> Computed:
        self.orders.append(order)
        return Computed(4, 0.7, 0.7, 3, bytes(8 * 49))


BACKBONE = random.Random(0).randbytes(3 * PART + 17)
HEAD = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def stub() -> StubTrainer:
    return StubTrainer()


@pytest.fixture
def phone(link: Link, folder: Path, stub: StubTrainer) -> Callable[..., Phone]:
    """Makes phones of the same folder, as one that is started again."""

    def make(**options: Any) -> Phone:
        return Phone(link, stub, folder / "state", wait_seconds=0, **options)

    return make


def small_description(gateway: FakeGateway, **changed: Any) -> Description:
    """A run of two classes with a backbone of random bytes."""
    values = {
        "id": sha256(b"a run"), "run": "1234", "name": "small", "classes": ["a", "b"],
        "test_fraction": 0.25, "seed": 7, "fingerprint": "f" * 64, "client": 5,
        "backbones": [
            Backbone(format="lite", file=gateway.blob(b"other")),
            Backbone(format="torch", file=gateway.blob(BACKBONE)),
        ],
    }  # fmt: skip
    return Description(**{**values, **changed})


def turn(phone: Phone, link: Link, count: int = 1) -> list[float]:
    """Pauses after turns."""

    async def work() -> list[float]:
        async with link:
            return [await phone.turn() for _ in range(count)]

    return asyncio.run(work())


def lines(count: int, phone: Phone, link: Link) -> list[float]:
    """The pauses of a phone that runs by itself, which no time is spent on."""

    class Enough(Exception):  # noqa: N818
        pass

    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == count:
            raise Enough

    async def work() -> None:
        async with link:
            await phone.run(sleep)

    with pytest.raises(Enough):
        asyncio.run(work())
    return pauses
