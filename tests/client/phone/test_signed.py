"""A phone with trusted keys loads a backbone only if one of them has signed it for phones."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.phone.images import ImageTrainer
from client.phone.link import Link
from client.phone.phone import Phone
from common.files import write_atomic
from common.phones.phones_pb2 import DONE, FAILED, Backbone, CheckInReply
from common.signing.statement import Statement
from simulations.deploy.signing_key import sign
from tests.client.phone.conftest import (
    FakeGateway,
    description_of,
    sha256,
    task_of,
    turn,
    write_images,
)

if TYPE_CHECKING:
    from server.export.trained import TrainedModel

KEY, FOREIGN = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
Offer = Callable[..., None]


@pytest.fixture
def trainer(folder: Path, trained: TrainedModel) -> ImageTrainer:
    write_images(folder / "images", trained)
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_atomic(folder / "trusted" / "key.pub", public)
    return ImageTrainer(folder / "images", folder / "state", trusted=folder / "trusted")


@pytest.fixture
def offer(gateway: FakeGateway, trained: TrainedModel) -> Offer:
    """Describes a run whose backbone is signed as a test wants."""
    data = trained.backbone.to_bytes()

    def offer(key: ec.EllipticCurvePrivateKey | None = KEY, **changed: Any) -> None:
        now = int(time.time())
        facts: dict[str, Any] = {
            "kind": "backbone", "name": "digits.torch", "version": 2, "size": len(data),
            "sha256": sha256(data), "card": hashlib.sha256(b"").hexdigest(),
            "fingerprint": trained.backbone.fingerprint, "created": now, "expires": now + 9999,
            **changed,
        }  # fmt: skip
        signed = sign(key, Statement(**facts)) if key else None
        backbone = Backbone(
            format="torch",
            file=gateway.blob(data),
            statement=signed.statement if signed else b"",
            signature=signed.signature if signed else b"",
        )
        description = description_of(gateway, trained, backbones=[backbone])
        gateway.answers.append(CheckInReply(description=description))

    return offer


WRONG: dict[str, dict[str, Any]] = {
    "not signed": {"key": None},
    "a foreign key": {"key": FOREIGN},
    "of another format": {"name": "digits.executorch"},
    "of no format": {"name": "digits"},
    "a model": {"kind": "model"},
    "expired": {"created": 5, "expires": 10},
    "of another file": {"sha256": "a" * 64},
    "of another backbone": {"fingerprint": "a" * 64},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_backbone_that_is_not_signed_for_phones_is_not_loaded(
    name: str,
    offer: Offer,
    gateway: FakeGateway,
    link: Link,
    folder: Path,
    trainer: ImageTrainer,
) -> None:
    offer(**WRONG[name])
    turn(Phone(link, trainer, folder / "state", wait_seconds=0), link, 2)
    assert gateway.check_ins[1].problem.startswith("unsigned-backbone: ")
    assert not gateway.check_ins[1].holdings
    assert not [*(folder / "state").glob("backbones/*/*")]
    # Only what could be known from its bytes alone was fetched at all.
    assert bool(gateway.fetched) == (name == "of another file")


def test_a_signed_backbone_is_used_and_an_older_one_refused_from_then_on(
    offer: Offer,
    gateway: FakeGateway,
    link: Link,
    folder: Path,
    trainer: ImageTrainer,
    trained: TrainedModel,
) -> None:
    offer()
    description = gateway.answers[0].description
    gateway.answers += [CheckInReply(task=task_of(gateway, description, trained.head.matrix, 30))]
    phone = Phone(link, trainer, folder / "state", wait_seconds=0)
    turn(phone, link, 2)
    assert gateway.submissions[0].outcome == DONE

    for path in (folder / "state" / "descriptions").iterdir():
        path.unlink()
    offer(version=1)
    turn(phone, link, 2)
    assert gateway.check_ins[-1].problem.startswith("unsigned-backbone: ")


def test_a_backbone_is_not_used_once_its_key_is_not_trusted_any_more(
    offer: Offer,
    gateway: FakeGateway,
    link: Link,
    folder: Path,
    trainer: ImageTrainer,
    trained: TrainedModel,
) -> None:
    offer()
    description = gateway.answers[0].description
    turn(Phone(link, trainer, folder / "state", wait_seconds=0), link)
    other = FOREIGN.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_atomic(folder / "trusted" / "key.pub", other)
    again = ImageTrainer(folder / "images", folder / "state", trusted=folder / "trusted")
    gateway.answers += [CheckInReply(task=task_of(gateway, description, trained.head.matrix, 30))]
    turn(Phone(link, again, folder / "state", wait_seconds=0), link)
    (sent,) = gateway.submissions
    assert sent.outcome == FAILED
    assert sent.reason.startswith("the backbone is not signed as the device's owner demands")
