"""A gateway with TLS on loopback, plain phones that speak the protocol, and the server's side."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import numpy.typing as npt
import torch

from client.budget import Budget
from client.gateway.bridge import forward
from client.gateway.place import Place, Settings
from client.gateway.service import Gateway
from client.node import node_update
from client.sgd import Terms, train_head
from common.backbone.frozen import FrozenBackbone
from common.codecs import find_codec
from common.delivery.tokens import issue_token
from common.evaluation import evaluate, losses_of
from common.fields import fields_of_statistics
from common.files import sha256_file
from common.identity import client_of_phone
from common.listening import listener
from common.messages import (
    DescribeReply,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    content_from,
    content_to,
)
from common.phones import phones_pb2 as pb
from common.phones.wire import CHANNEL_OPTIONS, INLINE_UPDATE, PART, Stub
from common.privacy.integers import clipped, is_within, with_offset
from common.seeding import words
from common.softmax import rows_of_norm
from common.statistics import feature_statistics
from common.types import Affine, ClientPlan, FeatureSet, Head, LocalTraining
from server.delivery.publish import Candidate, Sign, artifacts_of, publish_version
from simulations.deploy.authority import ensure_authority, sign_server, spread

ROOT = Path(__file__).parents[3]
FINGERPRINT = "0f" * 32
RUN = "run-1"
K, D = 4, 12
ABILITIES = (
    "sgd", "momentum", "weight-decay", "mu", "correction", "preconditioner", "adam", "adamw",
    "statistics", "evaluate", "clip", "codec:int8", "codec:drive",
)  # fmt: skip
CONFIG = Settings(host="127.0.0.1", check_ins_per_second=1000.0)
AFFINE = Affine(np.full(D, 0.02, np.float32), np.full(D, 100, np.float32))


def examples(client: int, count: int, num_features: int = D) -> FeatureSet:
    """A client's own data: the same for the same client."""
    rng = np.random.default_rng(client % 1000)
    affine = Affine(np.full(num_features, 0.02, np.float32), np.full(num_features, 100, np.float32))
    q = rng.integers(0, 256, (count, num_features), dtype=np.uint8)
    return FeatureSet(q, rng.integers(0, K, count), affine, FINGERPRINT)


class Phone:
    """A phone that does what the protocol says, in a few lines and without a state on disk.

    Attributes:
        client: its number.
        train: its training part.
        test: its test part.
        stub: the gateway's calls.
        abilities: what it says that it can do.
        holdings: descriptions that it has met.
        private: whether the run is.
    """

    def __init__(self, name: str, token: Path, port: int, authority: Path, count: int = 0) -> None:
        self.name, self.client = name, client_of_phone(name)
        self._token = token.read_text().strip()
        self._authority = authority.read_bytes()
        size = count or 17 + self.client % 30
        self.train, self.test = examples(self.client, size), examples(self.client + 1, 9)
        self.abilities: tuple[str, ...] = ABILITIES
        self.holdings: dict[str, pb.Description] = {}
        self.ready, self.problem, self.formats = True, "", ("torch",)
        self.connect(port)

    def connect(self, port: int) -> None:
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(self._authority),
            grpc.access_token_call_credentials(self._token),
        )
        options = [*CHANNEL_OPTIONS, ("grpc.max_reconnect_backoff_ms", 300)]
        self.channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)
        self.stub = Stub(self.channel)

    def check_in(self, wait: int = 0) -> pb.CheckInReply:
        """One call; keeps what it is told of a run."""
        request = pb.CheckInRequest(
            app="test 1", formats=self.formats, abilities=self.abilities, ready=self.ready,
            wait_seconds=wait, problem=self.problem,
            holdings=[self._holding(d) for d in self.holdings.values()],
        )  # fmt: skip
        reply: pb.CheckInReply = self.stub.check_in(request, timeout=60, wait_for_ready=True)
        if reply.WhichOneof("what") == "description":
            self.holdings[reply.description.id] = reply.description
        return reply

    def _holding(self, description: pb.Description) -> pb.Holding:
        if description.private:
            return pb.Holding(description=description.id, num_examples=1)
        return pb.Holding(
            description=description.id, num_examples=len(self.train),
            num_test_examples=len(self.test),
        )  # fmt: skip

    def arrive(self) -> None:
        """Check in until the gateway has nothing new to tell."""
        while self.check_in().WhichOneof("what") == "description":
            pass

    def next_task(self) -> pb.Task:
        """Wait for something to do."""
        while (reply := self.check_in(wait=10)).WhichOneof("what") != "task":
            pass
        return reply.task

    def fetch(self, blob: pb.Blob) -> bytes:
        """A blob's bytes, part by part."""
        data = blob.data
        while len(data) < blob.size:
            part = self.stub.fetch(pb.FetchRequest(sha256=blob.sha256, offset=len(data)))
            assert 0 < len(part.data) <= PART
            data += part.data
        assert hashlib.sha256(data).hexdigest() == blob.sha256
        return data

    def done(self, task: pb.Task) -> pb.Submission:
        """The result of a task, with its arrays inline however large they are."""
        result = pb.Submission(
            task=task.id, fingerprint=FINGERPRINT, outcome=pb.DONE, num_examples=len(self.train)
        )
        head = self._array(task, task.head)
        if task.kind == pb.EVALUATE:
            found = evaluate(Head.from_matrix(head), self.test)
            result.num_examples, result.correct = len(self.test), found.correct
            result.loss_before = found.loss
            result.losses = losses_of(Head.from_matrix(head), self.test).astype("<f8").tobytes()
        elif task.kind == pb.STATISTICS:
            statistics = feature_statistics(self.train, task.num_classes)
            made = fields_of_statistics(list(task.fields), statistics)
            result.loss_before = evaluate(Head.from_matrix(head), self.train).loss
            for name, array in made.items():
                result.arrays.append(pb.Array(field=name, data=array.tobytes()))
        else:
            self._train(task, head, result)
        return result

    def _train(self, task: pb.Task, head: npt.NDArray[Any], result: pb.Submission) -> None:
        told = task.training
        training = LocalTraining(
            told.lr, told.epochs, told.batch_size, told.momentum, told.weight_decay,
            cast(Any, told.optimizer),
        )  # fmt: skip
        correction = self._array(task, task.correction) if task.correction.sha256 else None
        square = (D + 1, D + 1)
        conditioner = None
        if task.preconditioner.size:
            conditioner = self._array(task, task.preconditioner, square)
        x = torch.from_numpy(self.train.x)
        trained = train_head(
            rows_of_norm(x, task.unit_norm) if task.unit_norm else x,
            torch.from_numpy(self.train.labels),
            torch.from_numpy(head),
            training,
            [order(told.batch_seed, epoch, len(self.train)) for epoch in range(told.epochs)],
            Terms(
                told.mu,
                None if correction is None else torch.from_numpy(correction),
                None if conditioner is None else torch.from_numpy(conditioner),
            ),
        )
        delta = trained.delta.numpy()
        if task.clip:
            result.num_examples = 1
            made = {
                "clipped_delta": with_offset(clipped(delta, task.clip)).tobytes(),
                "within_clip": np.array([is_within(delta, task.clip)], np.uint32).tobytes(),
            }
        else:
            result.loss_before, result.loss_after = trained.loss_before, trained.loss_after
            made = {"delta": find_codec(task.codec).encode(delta, task.codec_seed)}
        for name in task.fields:
            result.arrays.append(pb.Array(field=name, data=made[name]))

    def _array(
        self, task: pb.Task, blob: pb.Blob, shape: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        found = np.frombuffer(self.fetch(blob), "<f4").reshape(
            shape or (task.num_classes, task.num_features + 1)
        )
        return found.copy()

    def submit(self, result: pb.Submission) -> pb.Verdict:
        """Upload what is too large, and submit."""
        sent = pb.Submission()
        sent.CopyFrom(result)
        for array in sent.arrays:
            if len(array.data) > INLINE_UPDATE:
                array.sha256 = self.upload(result.task, array.data)
                array.data = b""
        while True:
            try:
                verdict: pb.Verdict = self.stub.submit(sent, timeout=60, wait_for_ready=True)
            except grpc.RpcError as exc:
                if exc.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:  # type: ignore[attr-defined]
                    raise
                time.sleep(0.05)
                continue
            return verdict

    def upload(self, task: str, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        have = self.stub.upload(pb.Part(task=task, sha256=digest, size=len(data))).size
        while have < len(data):
            part = pb.Part(
                task=task, sha256=digest, size=len(data), offset=have,
                data=data[have : have + PART],
            )  # fmt: skip
            have = self.stub.upload(part).size
        return digest

    def take_part(self) -> pb.Verdict:
        """One task from its beginning to its end."""
        return self.submit(self.done(self.next_task()))


def order(batch_seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The order of visits, as docs/phones.md says."""
    state = words(np.uint64(batch_seed) ^ np.uint64(epoch), np.zeros(1, np.uint64))
    drawn = words(state, np.arange(count, dtype=np.uint64)) >> np.uint64(1)
    return np.argsort(drawn.astype(np.int64), kind="stable")


class Running:
    """A gateway in a thread of its own, with its own event loop."""

    def __init__(self, place: Place, socket: Path, settings: Settings) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.gateway = Gateway(place, settings)
        self.port = self.call(lambda: self.gateway.start(socket, 0))

    def call(self, make: Callable[[], Any]) -> Any:
        """Run a coroutine in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(make(), self.loop).result(60)

    def stop(self) -> None:
        self.call(self.gateway.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@dataclass
class Deployment:
    """A server's folder with phones' tokens, and what happens there.

    Attributes:
        path: a folder for all of it.
        port: of the running gateway.
        running: it, if it runs in this process.
        process: it, if it runs in its own.
        phones: by name.
    """

    path: Path
    port: int = 0
    running: Running | None = None
    process: subprocess.Popen[bytes] | None = None
    phones: dict[str, Phone] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(16)
        self.place = Place(self.path / "server")
        folder = self.place.backbones / FINGERPRINT
        folder.mkdir(parents=True)
        (folder / "backbone.bin").write_bytes(b"the backbone" * 50_000)

    @property
    def socket(self) -> Path:
        return self.path / "socket" / "gateway.sock"

    def start(self, settings: Settings = CONFIG) -> Running:
        self.running = Running(self.place, self.socket, settings)
        self.port = self.running.port
        for phone in self.phones.values():
            phone.connect(self.port)
        return self.running

    def stop(self) -> None:
        if self.running:
            self.running.stop()
            self.running = None
        if self.process:
            self.kill()

    def spawn(self) -> None:
        """Start the gateway as a process of its own, always on the same port."""
        if not self.port:
            with listener("127.0.0.1", 0) as free:
                self.port = free.getsockname()[1]
        command = [sys.executable, "-P", "-m", "client.gateway.service"]
        arguments = [self.place.server, self.socket, "--port", self.port]
        with (self.path / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)], cwd=ROOT, stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def kill(self) -> None:
        """Kill that process."""
        assert self.process
        self.process.kill()
        self.process.wait()
        self.process = None

    def close(self) -> None:
        self.stop()
        for phone in self.phones.values():
            phone.channel.close()
        self.pool.shutdown()

    @property
    def counters(self) -> Mapping[str, int]:
        assert self.running
        return self.running.gateway.figures.counters

    def add(self, *names: str, count: int = 0) -> list[Phone]:
        """Phones with valid tokens."""
        for name in names:
            token = self.path / f"{name}.token"
            issue_token(self.place.delivery, name, token)
            authority = self.place.server / "ca.crt"
            self.phones[name] = Phone(name, token, self.port, authority, count)
        return [self.phones[name] for name in names]

    # The server's side

    def put_up(self, name: str, content: bytes, card: str, sign: Sign | None = None) -> int:
        """Publish a finished model; returns its version."""
        source = self.path / "source"
        source.write_bytes(content)
        shelf = artifacts_of(self.place.delivery) / name
        fingerprint, digest = json.loads(card)["fingerprint"], sha256_file(source)
        candidate = Candidate(source, shelf, "model", card, fingerprint, digest)
        return publish_version(candidate, sign).artifact.version

    def ask(self, kind: str, request: Any, seconds: float = 30.0) -> Any:
        """What the gateway answers to a message's content."""
        return content_from(forward(self.socket, kind, content_to(request.write()), seconds))

    def describe(self, run_id: str = RUN, **changes: Any) -> DescribeReply:
        request = DescribeRequest(
            run_id, tuple("abcd"), 0.2, 7, "a run", fingerprint=FINGERPRINT, **changes
        )
        return DescribeReply.read(self.ask("describe", request))

    def train(self, request: TrainRequest) -> Future[TrainReply]:
        """Begin a round."""
        seconds = request.seconds + 10
        return self.pool.submit(lambda: TrainReply.read(self.ask("train", request, seconds)))

    def evaluate(self, request: EvaluateRequest) -> Future[EvaluateReply]:
        return self.pool.submit(lambda: EvaluateReply.read(self.ask("evaluate", request)))

    def at_once(self, *work: Callable[[], Any]) -> list[Any]:
        """Several calls side by side."""
        return [future.result(60) for future in [self.pool.submit(call) for call in work]]

    def gather(self, *names: str, private: bool = False) -> list[Phone]:
        """Phones that have met the run and are there."""
        self.describe(private=private)
        phones = self.add(*names)
        for phone in phones:
            phone.arrive()
        reply = self.describe(private=private)
        assert set(reply.clients) == {phone.client for phone in self.phones.values()}
        return phones

    def round(self, request: TrainRequest, phones: Sequence[Phone]) -> TrainReply:
        """A round in which all phones do as they are told."""
        answer = self.train(request)
        verdicts = self.at_once(*(phone.take_part for phone in phones))
        assert [v.what for v in verdicts] == [pb.Verdict.ACCEPTED] * len(phones), verdicts
        return answer.result(60)


def request_for(phones: Sequence[Phone], **changes: Any) -> TrainRequest:
    """A round of FedAvg."""
    rng = np.random.default_rng(5)
    head = Head.from_matrix(rng.normal(0, 0.1, (K, D + 1)).astype(np.float32))
    base = TrainRequest(
        head, ClientPlan(), LocalTraining(0.05, local_epochs=2, batch_size=5),
        tuple(sorted(phone.client for phone in phones)), 1, RUN, 7, FINGERPRINT, "sum",
        seconds=60.0,
    )  # fmt: skip
    return replace(base, **changes)


class Node:
    """A SuperNode's host with the same clients: what the gateway must agree with."""

    simulated = False
    budget = Budget()

    def __init__(self, state: Path, phones: Sequence[Phone]) -> None:
        self.state = state
        self._phones = {phone.client: phone for phone in phones}

    def clients(self) -> tuple[int, ...]:
        return tuple(sorted(self._phones))

    def cohort(self, *_: object) -> None:
        return None

    def gradient(self) -> None:
        return None

    def name(self, client: int) -> str:
        return f"client {client}"

    def train_features(self, client: int, *_: object) -> FeatureSet:
        return self._phones[client].train

    def update(self, request: TrainRequest) -> TrainReply:
        frozen = cast(FrozenBackbone, None)  # the host has the features already
        return node_update(request, frozen, cast(Any, self))


def make_deployment(path: Path) -> Deployment:
    """A deployment without phones, whose gateway does not run yet."""
    made = Deployment(path)
    ensure_authority(path)
    sign_server(path, ["127.0.0.1"], 2)
    spread(path)
    return made
