"""A Kotlin phone and two of Python's in rounds of a real gateway give what one node gives."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from common.delivery.tokens import issue_token
from common.evaluation import evaluate, losses_of
from common.messages import EvaluateRequest
from common.partition import local_split
from common.phones import phones_pb2 as pb
from common.types import ClientPlan, FeatureSet
from tests.client.gateway.actors import (
    AFFINE,
    FINGERPRINT,
    RUN,
    D,
    Deployment,
    K,
    Node,
    Phone,
    make_deployment,
    request_for,
)
from tests.client.gateway.test_equal import ROUNDS, agree

pytestmark = pytest.mark.slow

SIZE, COUNT, SEED = 4, 41, 7
CLASSES = "abcd"


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A deployment whose backbone says how trainers see its features."""
    made = make_deployment(tmp_path / "deployment")
    backbone = {"module": np.zeros(9, np.uint8), "gain": AFFINE.gain, "center": AFFINE.center}
    data = safetensors.numpy.save(backbone, {"spec": "{}", "fingerprint": FINGERPRINT})
    (made.place.backbones / FINGERPRINT / "backbone.bin").write_bytes(data)
    made.start()
    yield made
    made.stop()
    for phone in made.phones.values():
        phone.channel.close()
    made.pool.shutdown()


@pytest.fixture
def kim(deployment: Deployment, tmp_path: Path) -> Phone:
    """The phone that runs Kotlin: its folder, and its examples in Python's order."""
    folder = tmp_path / "kim"
    folder.mkdir()
    issue_token(deployment.place.delivery, "kim", folder / "phone.token")
    (folder / "ca.crt").write_bytes((deployment.place.server / "ca.crt").read_bytes())
    (folder / "phone.toml").write_text(f'gateway = "127.0.0.1:{deployment.port}"\n')
    rng = np.random.default_rng(9)
    images = rng.integers(0, 256, (COUNT, 3 * SIZE * SIZE), dtype=np.uint8)
    q = rng.integers(0, 256, (COUNT, D), dtype=np.uint8)
    labels = np.arange(COUNT) % K
    lines = [
        f"{CLASSES[label]} {image.tobytes().hex()} {row.tobytes().hex()}"
        for label, image, row in zip(labels, images, q, strict=True)
    ]
    (tmp_path / "images").write_text("\n".join([str(SIZE), *lines]))
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    order = sorted(range(COUNT), key=lambda i: (labels[i], digests[i]))
    features = FeatureSet(q[order], labels[order], AFFINE, FINGERPRINT)
    phone = Phone("kim", folder / "phone.token", deployment.port, folder / "ca.crt")
    train, test = local_split(
        np.arange(COUNT), features.labels, client=phone.client, test_fraction=0.2, seed=SEED
    )
    phone.train, phone.test = features.select(train), features.select(test)
    deployment.phones["kim"] = phone
    return phone


@pytest.fixture
def running(
    deployment: Deployment, kim: Phone, java: Callable[..., list[str]], tmp_path: Path
) -> Iterator[Callable[..., None]]:
    """Starts the Kotlin phone, and waits until the gateway counts with it."""
    programs = []

    def start(private: bool) -> None:
        command = java("dev.fedhead.jvm.MainKt", tmp_path / "kim", tmp_path / "images")
        programs.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        while kim.client not in deployment.describe(private=private).clients:
            assert programs[0].poll() is None

    yield start
    for program in programs:
        program.kill()
        program.wait()


KOTLINS = (
    "fedavg", "fedprox with momentum", "adamw", "fednova", "drive", "int8",
    "eden, which phones have not got", "statistics",
)  # fmt: skip


@pytest.mark.parametrize("name", KOTLINS)
def test_a_round_with_a_kotlin_phone_is_what_a_node_would_send(
    name: str,
    deployment: Deployment,
    kim: Phone,
    running: Callable[..., None],
    tmp_path: Path,
) -> None:
    deployment.describe()
    others = deployment.add("anna", "ben")
    for phone in others:
        phone.arrive()
    running(private=False)
    request = request_for([*others, kim], **ROUNDS[name])
    node = Node(tmp_path / "node", [*others, kim]).update(request)
    answer = deployment.train(request)
    verdicts = deployment.at_once(*(phone.take_part for phone in others))
    assert [v.what for v in verdicts] == [pb.Verdict.ACCEPTED] * 2
    agree(answer.result(60), node, request)


def test_scaffolds_rounds_and_an_evaluation_with_a_kotlin_phone(
    deployment: Deployment, kim: Phone, running: Callable[..., None], tmp_path: Path
) -> None:
    deployment.describe()
    running(private=False)
    node = Node(tmp_path / "node", [kim])
    rng = np.random.default_rng(3)
    for number in (1, 2, 3):
        control = {"control": rng.normal(0, 0.02, (K, D + 1)).astype(np.float32)}
        plan = ClientPlan(
            fields=("delta", "control_delta"), weighting="uniform", correction="scaffold",
            arrays=control,
        )  # fmt: skip
        request = request_for([kim], plan=plan, round_number=number, memory_rounds=(number - 1,))
        agree(deployment.train(request).result(60), node.update(request), request)
    asked = EvaluateRequest(request.head, (kim.client,), FINGERPRINT, RUN, seconds=30.0)
    (found,) = deployment.evaluate(asked).result(60).evaluations
    expected = evaluate(request.head, kim.test)
    assert (found.num_examples, found.correct) == (len(kim.test), expected.correct)
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    np.testing.assert_allclose(found.curve, losses_of(request.head, kim.test), rtol=1e-5)


def test_a_private_round_with_a_kotlin_phone(
    deployment: Deployment, kim: Phone, running: Callable[..., None]
) -> None:
    deployment.describe(private=True)
    running(private=True)
    plan = ClientPlan(
        fields=("clipped_delta", "within_clip"), weighting="uniform", clip=0.65, unit_norm=2.0
    )
    reply = deployment.train(request_for([kim], plan=plan)).result(60)
    assert reply.clients == (kim.client,)
    assert [(r.num_examples, r.loss_before, r.loss_after) for r in reply.reports] == [(1, 0.0, 0.0)]
