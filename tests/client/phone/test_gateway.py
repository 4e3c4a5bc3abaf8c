"""Phones and a real gateway: its reply to the server is what devices with these images send."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from client.device import DeviceHost
from client.node import node_update
from client.phone.images import ImageTrainer
from client.phone.link import Link
from client.phone.phone import Phone
from common.backbone.frozen import quantized_engine
from common.delivery.tokens import issue_token
from common.evaluation import evaluate
from common.identity import client_of_phone
from common.messages import (
    DescribeReply,
    DescribeRequest,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)
from common.types import ClientPlan, Head, LocalTraining
from tests.client.gateway.actors import Deployment, make_deployment
from tests.client.phone.conftest import CLASSES

if TYPE_CHECKING:
    from server.export.trained import TrainedModel

NAMES = ("anna", "ben", "cleo")
RUN, SEED = "4711", 7


class Running:
    """A phone that runs by itself in a thread."""

    def __init__(self, make: Callable[[], tuple[Link, Phone]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._made = threading.Event()
        self._make = make
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def live() -> None:
            link, phone = self._make()
            self._task = asyncio.current_task()
            self._made.set()
            async with link:
                await phone.run()

        try:
            self._loop.run_until_complete(live())
        except asyncio.CancelledError:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    def stop(self) -> None:
        self._made.wait(10)
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(30)
        assert not self._thread.is_alive()


@dataclass
class Fleet:
    """Phones with images of their own, and a real gateway."""

    deployment: Deployment
    trained: TrainedModel
    path: Path

    def __post_init__(self) -> None:
        self.phones: list[Running] = []
        backbone = self.trained.backbone
        folder = self.deployment.place.backbones / backbone.fingerprint
        folder.mkdir(parents=True)
        (folder / "backbone.bin").write_bytes(backbone.to_bytes())
        for turn, name in enumerate(NAMES):
            for label in range(10):
                places = np.flatnonzero(self.trained.labels == label)[turn :: len(NAMES)]
                target = self.path / name / "images" / str(label)
                target.mkdir(parents=True)
                for i in places:
                    pixels = self.trained.images[i].transpose(1, 2, 0)
                    Image.fromarray(pixels).save(target / f"{i}.png")
            issue_token(self.deployment.place.delivery, name, self.path / name / "phone.token")

    def start(self) -> None:
        self.phones = [Running(lambda name=name: self._phone(name)) for name in NAMES]

    def _phone(self, name: str) -> tuple[Link, Phone]:
        folder = self.path / name
        link = Link(
            f"127.0.0.1:{self.deployment.port}",
            authority=self.deployment.place.server / "ca.crt",
            token=folder / "phone.token",
        )
        trainer = ImageTrainer(folder / "images", folder / "state")
        return link, Phone(link, trainer, folder / "state", wait_seconds=5)

    def described(self, *, private: bool = False) -> DescribeRequest:
        return DescribeRequest(
            RUN, CLASSES, 0.25, SEED, "digits", private=private,
            fingerprint=self.trained.backbone.fingerprint,
        )  # fmt: skip

    def clients(self, *, private: bool = False) -> tuple[int, ...]:
        """All phones, once they have met the run."""
        pause = threading.Event()
        for _ in range(600):
            reply = DescribeReply.read(
                self.deployment.ask("describe", self.described(private=private))
            )
            if len(reply.clients) == len(NAMES):
                return reply.clients
            pause.wait(0.05)
        raise AssertionError(reply)

    def request(self, plan: ClientPlan, training: LocalTraining, **changed: Any) -> TrainRequest:
        base = TrainRequest(
            Head.from_matrix(0.3 * self.trained.head.matrix), plan, training,
            self.clients(private=plan.private), 1, RUN, SEED, self.trained.backbone.fingerprint,
            "individual", seconds=60.0, has_constant=bool(plan.constant),
        )  # fmt: skip
        return replace(base, **changed)

    def by_devices(self, request: TrainRequest) -> dict[int, TrainReply]:
        """What devices with the same images and client ids send, each alone."""
        replies = {}
        for name in NAMES:
            client = client_of_phone(name)
            host = DeviceHost(
                {"data": f"folder:{self.path / name / 'images'}",
                 "state": str(self.path / name / "device"), "client-id": client}, 0
            )  # fmt: skip
            host.describe(self.described(private=request.plan.private))
            counted = (1,) if request.memory_rounds else ()
            alone = replace(
                request,
                clients=(client,),
                memory_rounds=counted if request.round_number > 1 else (),
            )
            replies[client] = node_update(alone, self.trained.backbone, host)
        return replies


@pytest.fixture
def fleet(tmp_path: Path, trained: TrainedModel) -> Iterator[Fleet]:
    deployment = make_deployment(tmp_path)
    deployment.start()
    made = Fleet(deployment, trained, tmp_path / "phones")
    # The engine is a setting of the whole process, and these phones share one.
    with quantized_engine(trained.backbone.spec.engine):
        made.start()
        yield made
        for phone in made.phones:
            phone.stop()
    deployment.stop()
    deployment.pool.shutdown()


PLANS: dict[str, tuple[ClientPlan, LocalTraining]] = {
    "fedprox with momentum": (ClientPlan(mu=0.1), LocalTraining(0.01, 2, 5, 0.9, 0.01)),
    "adamw": (ClientPlan(), LocalTraining(0.001, 2, 7, 0.0, 0.1, "adamw")),
    "drive": (ClientPlan(uplink="drive"), LocalTraining(0.01, 1, 100)),
    "eden, which phones cannot": (ClientPlan(uplink="eden"), LocalTraining(0.01, 1, 100)),
    "fednova": (
        ClientPlan(fields=("normalized_delta", "effective_steps")),
        LocalTraining(0.01, 2, 5, 0.5),
    ),
    "q-fedavg, int8": (
        ClientPlan(fields=("fair_delta", "fair_scale"), q=0.5, uplink="int8"),
        LocalTraining(0.01, 1, 8),
    ),
    "private": (
        ClientPlan(
            fields=("clipped_delta", "within_clip"), weighting="uniform", clip=0.05, unit_norm=2.0
        ),
        LocalTraining(1.0, 1, 5),
    ),
    "statistics": (ClientPlan(kind="statistics", fields=("moments", "gram")), LocalTraining(0.1)),
}


def agree(reply: TrainReply, devices: dict[int, TrainReply]) -> None:
    assert not reply.rejected
    assert sorted(reply.clients) == sorted(devices)
    for i, report in enumerate(reply.reports):
        alone = devices[report.client]
        assert report == alone.reports[0]
        for name, rows in alone.payloads.items():
            assert reply.payloads[name][i] == rows[0], name


@pytest.mark.wide
def test_the_gateways_reply_has_the_bytes_of_devices(fleet: Fleet) -> None:
    number = 0
    for name, (plan, training) in PLANS.items():
        if plan.private:
            continue
        number += 1
        request = fleet.request(plan, training, round_number=number)
        print(name)  # pytest shows it if they differ
        agree(fleet.deployment.train(request).result(60), fleet.by_devices(request))


@pytest.mark.wide
def test_a_private_round_has_the_bytes_of_devices(fleet: Fleet) -> None:
    plan, training = PLANS["private"]
    request = fleet.request(plan, training)
    reply = fleet.deployment.train(request).result(60)
    devices = fleet.by_devices(request)
    agree(reply, devices)
    assert {report.num_examples for report in reply.reports} == {1}


@pytest.mark.wide
def test_two_rounds_of_scaffold_have_the_bytes_of_devices(fleet: Fleet) -> None:
    width = fleet.trained.head.num_features + 1
    control = np.random.default_rng(0).normal(0, 0.01, (10, width)).astype(np.float32)
    plan = ClientPlan(
        fields=("delta", "control_delta"), correction="scaffold", arrays={"control": control}
    )
    training = LocalTraining(0.01, 2, 5)
    first = fleet.request(plan, training, memory_rounds=(0, 0, 0))
    agree(fleet.deployment.train(first).result(60), fleet.by_devices(first))
    second = fleet.request(plan, training, memory_rounds=(1, 1, 1), round_number=2)
    agree(fleet.deployment.train(second).result(60), fleet.by_devices(second))


@pytest.mark.wide
def test_an_evaluation_has_the_figures_of_devices(fleet: Fleet) -> None:
    clients = fleet.clients()
    head = fleet.trained.head
    request = EvaluateRequest(head, clients, fleet.trained.backbone.fingerprint, RUN, seconds=60.0)
    reply = fleet.deployment.evaluate(request).result(60)
    assert sorted(found.client for found in reply.evaluations) == sorted(clients)
    by_client = {client_of_phone(name): name for name in NAMES}
    for found in reply.evaluations:
        name = by_client[found.client]
        host = DeviceHost(
            {"data": f"folder:{fleet.path / name / 'images'}",
             "state": str(fleet.path / name / "device"), "client-id": found.client}, 0
        )  # fmt: skip
        host.describe(fleet.described())
        features = host.test_features(found.client, fleet.trained.backbone, RUN)
        want = evaluate(head, features)
        assert (found.num_examples, found.correct) == (want.num_examples, want.correct)
        assert found.loss == want.loss
        assert len(found.curve) == 49
