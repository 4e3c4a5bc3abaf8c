"""A Python phone computes bit for bit what a device with the same images and client id computes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from client.app import _told
from client.device import DeviceHost
from client.node import node_update
from client.phone.images import ImageTrainer, _described
from client.phone.link import Link
from client.phone.phone import Phone
from common.evaluation import evaluate, losses_of
from common.messages import TrainReply, TrainRequest
from common.phones.phones_pb2 import (
    DONE,
    EVALUATE,
    STATISTICS,
    CheckInReply,
    Submission,
    Task,
    Training,
)
from common.seeding import Purpose, stream_state
from common.types import ClientPlan, Head, LocalTraining
from tests.client.phone.conftest import (
    FakeGateway,
    description_of,
    task_of,
    write_images,
)

if TYPE_CHECKING:
    from common.phones.phones_pb2 import Description
    from server.export.trained import TrainedModel

SEED, ROUND = 7, 3


@pytest.fixture
def images(folder: Path, trained: TrainedModel) -> Path:
    write_images(folder / "images", trained)
    return folder / "images"


def turns(phone: Phone, link: Link) -> None:
    """Up to the first pause."""

    async def work() -> None:
        async with link:
            while not await phone.turn():
                pass

    asyncio.run(work())


def device(images: Path, state: Path, description: Description) -> DeviceHost:
    config = {"data": f"folder:{images}", "state": str(state), "client-id": description.client}
    return DeviceHost(config, 0)


def request_of(
    description: Description, head: Head, plan: ClientPlan, training: LocalTraining
) -> TrainRequest:
    return TrainRequest(
        head=head, plan=plan, training=training, clients=(description.client,), round_number=ROUND,
        run_id=description.run, seed=SEED, fingerprint=description.fingerprint,
        reduce="individual",
    )  # fmt: skip


PLANS: dict[str, tuple[ClientPlan, LocalTraining]] = {
    "plain": (ClientPlan(), LocalTraining(0.01, 2, 5)),
    "momentum, decay, mu": (ClientPlan(mu=0.1), LocalTraining(0.01, 3, 4, 0.9, 0.01)),
    "adam": (ClientPlan(), LocalTraining(0.001, 2, 5, 0.0, 0.01, "adam")),
    "adamw": (ClientPlan(mu=0.2), LocalTraining(0.001, 2, 7, 0.0, 0.1, "adamw")),
    "int8": (ClientPlan(uplink="int8"), LocalTraining(0.01, 1, 100)),
    "drive": (ClientPlan(uplink="drive"), LocalTraining(0.01, 1, 100)),
    "private": (
        ClientPlan(
            fields=("clipped_delta", "within_clip"), weighting="uniform", clip=0.05, unit_norm=2.0
        ),
        LocalTraining(1.0, 1, 5),
    ),
    "moments": (ClientPlan(kind="statistics", fields=("moments",)), LocalTraining(0.1)),
    "statistics": (ClientPlan(kind="statistics", fields=("moments", "gram")), LocalTraining(0.1)),
}  # fmt: skip


def order_task(
    gateway: FakeGateway, description: Description, head: Head, n: int, plan: ClientPlan,
    training: LocalTraining, **changed: Any,
) -> Task:  # fmt: skip
    """The task by which a gateway passes such a request on."""
    client = description.client
    values: dict[str, Any] = {"fields": plan.fields, "codec": plan.uplink, "clip": plan.clip,
                              "unit_norm": plan.unit_norm}  # fmt: skip
    values["codec_seed"] = stream_state(SEED, Purpose.UPLINK, ROUND, client, 0)
    values["training"] = Training(
        optimizer=training.optimizer, lr=training.lr, epochs=training.local_epochs,
        batch_size=training.batch_size, momentum=training.momentum,
        weight_decay=training.weight_decay, mu=plan.mu,
        batch_seed=stream_state(SEED, Purpose.BATCH_ORDER, ROUND, client),
    )  # fmt: skip
    if plan.kind == "statistics":
        values["kind"] = STATISTICS
    if plan.constant:
        pre = plan.constant["preconditioner"]
        values["preconditioner"] = gateway.blob(pre.astype("<f4").tobytes())
    return task_of(gateway, description, head.matrix, n, **values, **changed)


def submitted(
    gateway: FakeGateway, link: Link, folder: Path, description: Description, task: Task
) -> Submission:
    gateway.answers = [CheckInReply(description=description), CheckInReply(task=task)]
    trainer = ImageTrainer(folder / "images", folder / "state")
    turns(Phone(link, trainer, folder / "state"), link)
    return gateway.submissions[-1]


def payloads(gateway: FakeGateway, submission: Submission) -> dict[str, bytes]:
    return {
        array.field: bytes(gateway.uploads[array.sha256]) if array.sha256 else array.data
        for array in submission.arrays
    }


@pytest.mark.parametrize("name", PLANS)
def test_a_phone_sends_the_bytes_that_a_device_sends(
    name: str, gateway: FakeGateway, link: Link, folder: Path, images: Path, trained: TrainedModel
) -> None:
    plan, training = PLANS[name]
    description = description_of(gateway, trained, private=plan.private)
    head = Head.from_matrix(0.3 * trained.head.matrix)
    task = order_task(gateway, description, head, 1 if plan.private else 30, plan, training)
    sent = submitted(gateway, link, folder, description, task)
    assert sent.outcome == DONE, sent.reason

    reply = by_device(images, folder / "other", description, head, plan, training, trained)
    report = reply.reports[0]
    assert payloads(gateway, sent) == {name: rows[0] for name, rows in reply.payloads.items()}
    assert (sent.num_examples, sent.loss_before, sent.loss_after) == (
        report.num_examples, report.loss_before, report.loss_after
    )  # fmt: skip
    assert [h.num_examples for h in gateway.check_ins[1].holdings] == [1 if plan.private else 30]
    assert [h.num_test_examples for h in gateway.check_ins[1].holdings] == [
        0 if plan.private else 10
    ]


def by_device(
    images: Path, state: Path, description: Description, head: Head, plan: ClientPlan,
    training: LocalTraining, trained: TrainedModel,
) -> TrainReply:  # fmt: skip
    host = device(images, state, description)
    host.describe(_described(description))
    return node_update(request_of(description, head, plan, training), trained.backbone, host)


def test_correction_and_preconditioner_are_those_of_a_device(
    gateway: FakeGateway, link: Link, folder: Path, images: Path, trained: TrainedModel
) -> None:
    description = description_of(gateway, trained)
    head = Head.from_matrix(0.3 * trained.head.matrix)
    width = head.num_features + 1
    rng = np.random.default_rng(0)
    control = rng.normal(0, 0.01, (10, width)).astype(np.float32)
    pre = np.eye(width, dtype=np.float32) + rng.normal(0, 1e-3, (width, width)).astype(np.float32)
    plan = ClientPlan(correction="scaffold", arrays={"control": control},
                      constant={"preconditioner": pre})  # fmt: skip
    training = LocalTraining(0.01, 2, 5)
    # SCAFFOLD's first round: the client remembers zeros, so the correction is c.
    correction = gateway.blob(control.astype("<f4").tobytes())
    task = order_task(gateway, description, head, 30, plan, training, correction=correction)
    sent = submitted(gateway, link, folder, description, task)
    reply = by_device(images, folder / "other", description, head, plan, training, trained)
    assert payloads(gateway, sent)["delta"] == reply.payloads["delta"][0]


def test_a_phone_evaluates_as_a_device_does(
    gateway: FakeGateway, link: Link, folder: Path, images: Path, trained: TrainedModel
) -> None:
    description = description_of(gateway, trained)
    task = task_of(gateway, description, trained.head.matrix, 10, kind=EVALUATE, fields=[])
    sent = submitted(gateway, link, folder, description, task)
    host = device(images, folder / "other", description)
    host.describe(_described(description))
    features = host.test_features(description.client, trained.backbone, description.run)
    want = evaluate(trained.head, features)
    assert (sent.num_examples, sent.correct, sent.loss_before) == (10, want.correct, want.loss)
    assert sent.losses == _told(losses_of(trained.head, features))
    assert not sent.arrays
