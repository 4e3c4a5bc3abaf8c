"""A phone's trainer on its own folder of images, with the very functions of a device.

So a phone computes bit for bit what a device with the same images and the same client id computes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from client.backbones import Backbones
from client.device import DeviceHost
from client.local import check_examples
from client.phone.trainer import Computed, Order
from client.sgd import Terms, train_head
from client.trust import Trust
from common.backbone.frozen import FrozenBackbone
from common.cache import keep_newest
from common.codecs import NONE, find_codec
from common.errors import BackboneError, ReplyError, SignatureError
from common.evaluation import evaluate, losses_of
from common.fields import Trained, field_layouts, fields_of_statistics, fields_of_training
from common.messages import BackboneRequest, DescribeRequest
from common.phones.phones_pb2 import Backbone, Description
from common.seeding import seeded_order
from common.signing.statement import Statement
from common.softmax import rows_of_norm
from common.statistics import feature_statistics
from common.types import ClientPlan, FeatureSet
from common.validate import check_fields

__all__ = ["ImageTrainer"]

_FORMAT = "torch"
_KEPT_BACKBONES, _KEPT_RUNS = 4, 16


class ImageTrainer:
    """Trains on the images in a folder, as ``client.device`` does.

    Args:
        images: folder with one sub-folder per class.
        state: folder for backbones, features and what is known of runs.
        trusted: folder of the keys that must have signed backbones; None: nothing need be signed.
        max_examples: largest number of images to use; 0: all.

    Raises:
        SignatureError: the trusted keys cannot be used.
    """

    formats = (_FORMAT,)
    abilities = (
        "sgd", "momentum", "weight-decay", "mu", "correction", "preconditioner", "adam", "adamw",
        "statistics", "evaluate", "clip", "codec:int8", "codec:drive",
    )  # fmt: skip

    def __init__(
        self, images: Path, state: Path, *, trusted: Path | None = None, max_examples: int = 0
    ) -> None:
        self._images, self._state, self._max_examples = images, state, max_examples
        self._signed = trusted is not None
        self._backbones = Backbones(state, Trust.of(trusted, state) if trusted else None)

    def prepare(self, description: Description, backbone: Backbone, data: bytes | None) -> bool:
        """Keep the backbone and compute the features of all images.

        Raises:
            FedheadError: backbone or images cannot be used.
        """
        if self._signed:
            _check_name(backbone)
        fingerprint = description.fingerprint
        signed = backbone.statement, backbone.signature
        if not self._backbones.receive(BackboneRequest(fingerprint, data or b"", *signed)):
            return False
        host = self._host(description)
        host.describe(_described(description))
        host.train_features(description.client, self._frozen(fingerprint), description.run)
        keep_newest(self._state / "backbones", _KEPT_BACKBONES)
        keep_newest(host.state, _KEPT_RUNS)
        return True

    def holding(self, description: Description) -> tuple[int, int]:
        """Examples of the train and of the test part, of the images as they are now."""
        return self._host(description).counts(_described(description))

    def sgd(self, order: Order) -> Computed:
        """Train the head; what is sent is what the order's fields say.

        Raises:
            FedheadError: the examples do not fit, or the update would be refused.
        """
        features = self._train_part(order)
        x, training = torch.from_numpy(features.x), order.training
        epochs = range(training.local_epochs)
        result = train_head(
            rows_of_norm(x, order.unit_norm) if order.unit_norm else x,
            torch.from_numpy(features.labels),
            torch.from_numpy(order.head.matrix),
            training,
            [seeded_order(order.batch_seed, len(features), epoch) for epoch in epochs],
            Terms(
                order.mu,
                None if order.correction is None else torch.from_numpy(order.correction),
                None if order.preconditioner is None else torch.from_numpy(order.preconditioner),
            ),
        )
        plan = ClientPlan(fields=order.fields, clip=order.clip, mu=order.mu)
        trained = Trained(
            result.delta.numpy(), result.steps, result.loss_before, training, plan, {}
        )
        fields = fields_of_training(order.fields, trained)
        head = order.head
        layouts = field_layouts(order.fields, head.num_classes, head.num_features)
        check_fields(fields, layouts, order.max_norm)
        codec = find_codec(order.codec)
        arrays = {
            name: (codec if name == "delta" else NONE).encode(array, order.codec_seed)
            for name, array in fields.items()
        }
        if order.clip:
            return Computed(1, 0.0, arrays=arrays)
        losses = result.loss_before, result.loss_after
        return Computed(len(features), *losses, arrays=arrays)

    def statistics(self, order: Order) -> Computed:
        """Sum up the train part's features, exactly.

        Raises:
            FedheadError: the examples do not fit.
        """
        features = self._train_part(order)
        statistics = feature_statistics(features, order.head.num_classes)
        loss = evaluate(order.head, features).loss
        fields = fields_of_statistics(order.fields, statistics)
        arrays = {name: NONE.encode(array, 0) for name, array in fields.items()}
        return Computed(len(features), loss, loss, arrays=arrays)

    def evaluate(self, order: Order) -> Computed:
        """Test the head on the test part.

        Raises:
            FedheadError: the examples do not fit.
        """
        description = order.description
        frozen = self._frozen(description.fingerprint)
        host = self._host(description)
        features = host.test_features(description.client, frozen, description.run)
        if not len(features):
            raise ReplyError("has no examples to test with")
        check_examples(features, order.head)
        found = evaluate(order.head, features)
        curve = losses_of(order.head, features).astype("<f8").tobytes()
        return Computed(len(features), found.loss, found.loss, found.correct, curve)

    def _train_part(self, order: Order) -> FeatureSet:
        description = order.description
        frozen = self._frozen(description.fingerprint)
        host = self._host(description)
        features = host.train_features(description.client, frozen, description.run)
        check_examples(features, order.head)
        # The gateway has told the server a number, so another one would be refused there.
        if not order.clip and len(features) != order.num_examples:
            raise ReplyError("has other images than when it checked in")
        return features

    def _host(self, description: Description) -> DeviceHost:
        config = {
            "data": f"folder:{self._images}",
            "state": str(self._state),
            "client-id": description.client,
            "max-examples": self._max_examples,
        }
        return DeviceHost(config, 0)

    def _frozen(self, fingerprint: str) -> FrozenBackbone:
        frozen = self._backbones.get(fingerprint)
        if frozen is None:
            raise BackboneError("the backbone is not on this phone")
        return frozen


def _described(description: Description) -> DescribeRequest:
    return DescribeRequest(
        run_id=description.run,
        classes=tuple(description.classes),
        test_fraction=description.test_fraction,
        seed=int(np.uint64(description.seed).astype(np.int64)),
        name=description.name,
        max_examples=description.max_examples,
        private=description.private,
        fingerprint=description.fingerprint,
    )


def _check_name(backbone: Backbone) -> None:
    """Refuse a statement on the backbone in another format; its signature is checked later."""
    if not backbone.statement:
        return
    name = Statement.from_bytes(backbone.statement).name
    if not name.endswith(f".{_FORMAT}"):
        raise SignatureError(
            f"the backbone is refused: the signed name is {name}, expected one that ends in "
            f".{_FORMAT}"
        )
