"""What a phone trains: the frozen int8 backbone and a float head, in one TorchScript class.

Nothing here needs autograd, which a phone's runtime lacks: a step is ``common.softmax.sgd_step``,
the very function that ``client/sgd`` runs. Batches come in the order of
``common.seeding.batch_order``, so a phone and a simulation take the same steps. Every method
checks what it is given before it changes anything, and changes the head, if at all, in its last
line: after an error the head is what it was.

It lies in server/, because the server makes it; a phone has the compiled file and no Python.
"""

# No `from __future__ import annotations`: TorchScript cannot read annotations that are strings.

import torch
from torch import Tensor

from common.backbone.frozen import FrozenBackbone, probe_images
from common.errors import ExportError
from common.privacy.integers import FINE, RESOLUTION
from common.softmax import rows_of_norm, sgd_step, softmax_gradient, softmax_loss
from common.statistics import EXACT_ROWS
from common.types import Head
from server.export.device_arrays import (
    exact_sums,
    head_logits,
    noise_images,
    trainer_view,
    visiting_orders,
)
from server.export.device_checks import check_array, check_examples, check_learning_rate
from server.export.device_head import DeviceHead
from server.export.device_privacy import check_clip, clipped_integers
from server.export.device_training import step_direction

__all__ = ["DeviceModel"]

# Another engine may give one image the same features: the engine onednn does so with every fifth.
_PROBES = 8


class DeviceModel(DeviceHead):
    """Computes features, trains its head on them and says what has changed.

    Args:
        backbone: frozen, for the quantized engine qnnpack: a phone's arithmetic.
        head: float, for x as ``backbone.affine`` makes it; where training starts.

    Raises:
        ExportError: the backbone is for another quantized engine, or the head for another backbone.
    """

    gain: Tensor
    center: Tensor
    probe: Tensor

    def __init__(self, backbone: FrozenBackbone, head: Head) -> None:
        spec = backbone.spec
        if spec.engine != "qnnpack":
            raise ExportError(
                f"the backbone is for the quantized engine {spec.engine}, and a phone computes "
                "with qnnpack"
            )
        if head.num_features != spec.num_features:
            raise ExportError(
                f"the head has {head.num_features} features, "
                f"but the backbone has {spec.num_features}"
            )
        super().__init__(torch.from_numpy(head.matrix), backbone.fingerprint)
        self.backbone = backbone.module
        self.input_size = spec.input_size
        self.exact_rows = EXACT_ROWS
        self.resolution, self.fine = RESOLUTION, FINE
        self.is_probed = False
        self.register_buffer("gain", torch.from_numpy(backbone.affine.gain.copy()))
        self.register_buffer("center", torch.from_numpy(backbone.affine.center.copy()))
        probe = backbone.features(probe_images(spec.input_size, _PROBES))
        self.register_buffer("probe", torch.from_numpy(probe))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (n, 3, H, W) to float32 logits (n, K); also with another engine."""
        q: Tensor = self.backbone(images)
        return head_logits(q, self.gain, self.center, self.matrix)

    @torch.jit.export
    def features(self, images: Tensor) -> Tensor:
        """uint8 images (n, 3, H, W) to uint8 features (n, d), the training side's to the bit.

        The first call computes those of noise images and refuses to go on where they are not
        what they were at export: heads trained on other features must not be averaged.
        """
        q: Tensor = self.backbone(images)
        if not self.is_probed:
            noise = noise_images(self.input_size, self.probe.size(0))
            if not torch.equal(self.backbone(noise), self.probe):
                raise ValueError(
                    "features differ from the training side's: set torch's quantized engine "
                    "to qnnpack before the file is loaded"
                )
            self.is_probed = True
        return q

    @torch.jit.export
    def train_step(self, features: Tensor, labels: Tensor, lr: float) -> float:
        """One step on one batch.

        Args:
            features: uint8 (n, d).
            labels: int64 (n,), in [0, K).
            lr: learning rate.

        Returns:
            Mean cross-entropy before the step.
        """
        check_examples(features, labels, self.num_features, self.num_classes)
        check_learning_rate(lr)
        x = trainer_view(features, self.gain, self.center)
        loss, matrix = sgd_step(x, labels, self.matrix, lr)
        check_array("the trained head", matrix, [self.num_classes, self.num_features + 1])
        self.matrix = matrix
        return float(loss.item())

    @torch.jit.export
    def train_epochs(
        self,
        features: Tensor,
        labels: Tensor,
        lr: float,
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> Tensor:
        """Local training as a round wants it, with the terms of ``set_terms``.

        Args:
            features: uint8 (n, d).
            labels: int64 (n,), in [0, K).
            lr: learning rate.
            epochs: passes over the examples.
            batch_size: examples a step; the last batch of an epoch may be smaller.
            seed: ``common.seeding.batch_seed`` of run, round and client.

        Returns:
            For each epoch the mean of its examples' losses before their step, float32 (epochs,).
        """
        check_examples(features, labels, self.num_features, self.num_classes)
        check_learning_rate(lr)
        order = visiting_orders(features.size(0), seed, epochs, batch_size)
        losses, matrix = self._trained(features, labels, lr, order, batch_size, 0.0, self.matrix)
        self.matrix = matrix
        return losses

    @torch.jit.export
    def private_update(
        self,
        features: Tensor,
        labels: Tensor,
        lr: float,
        epochs: int,
        batch_size: int,
        seed: int,
        unit_norm: float,
        clip: float,
    ) -> tuple[Tensor, Tensor]:
        """Local training as a private round wants it, from the head that ``set_head`` gave.

        The head stays what it is, and no loss is told: nothing else may leave the phone.

        Args:
            features: uint8 (n, d).
            labels: int64 (n,), in [0, K).
            lr: learning rate.
            epochs: passes over the examples.
            batch_size: examples a step; with more than n it is one.
            seed: as that of ``train_epochs``.
            unit_norm: the plan's, see ``common.softmax.rows_of_norm``; 0: features as they are.
            clip: the plan's bound on the update's norm.

        Returns:
            As ``clipped``.
        """
        check_examples(features, labels, self.num_features, self.num_classes)
        check_learning_rate(lr)
        check_clip(clip, unit_norm)
        order = visiting_orders(features.size(0), seed, epochs, batch_size)
        _, matrix = self._trained(features, labels, lr, order, batch_size, unit_norm, self.start)
        return self.clipped(matrix - self.start, clip)

    @torch.jit.export
    def clipped(self, delta: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        """What a private round sends of an update, and nothing else of it.

        Args:
            delta: float32 (K, d + 1).
            clip: the plan's bound on its norm.

        Returns:
            The field "clipped_delta", int64 (K, d + 1): sent as uint32, which the numbers fit; and
            "within_clip", int64 (1,): the same, where the plan asks for it.
        """
        check_clip(clip, 0.0)
        check_array("the update", delta, [self.num_classes, self.num_features + 1])
        integers, within = clipped_integers(delta, clip, self.resolution, self.fine)
        return integers + self.resolution, within

    def _trained(
        self,
        features: Tensor,
        labels: Tensor,
        lr: float,
        orders: Tensor,
        batch_size: int,
        unit_norm: float,
        matrix: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Each epoch's mean loss before the steps, float32 (epochs,), and the head after them."""
        losses = torch.zeros([orders.size(0)])
        velocity = torch.zeros_like(matrix)
        for epoch in range(orders.size(0)):
            for batch in torch.split(orders[epoch], batch_size):
                x = trainer_view(features[batch], self.gain, self.center)
                if unit_norm > 0.0:
                    x = rows_of_norm(x, unit_norm)
                loss, gradient = softmax_gradient(x, labels[batch], matrix)
                velocity = step_direction(
                    gradient, matrix, velocity, self.start, self.rates, self.correction,
                    self.preconditioner,
                )  # fmt: skip
                matrix = matrix - lr * velocity
                losses[epoch] += loss * batch.size(0) / orders.size(1)
        check_array("the trained head", matrix, [self.num_classes, self.num_features + 1])
        return losses, matrix

    @torch.jit.export
    def loss(self, features: Tensor, labels: Tensor) -> float:
        """Mean cross-entropy of the head as it is."""
        check_examples(features, labels, self.num_features, self.num_classes)
        x = trainer_view(features, self.gain, self.center)
        return float(softmax_loss(x, labels, self.matrix).item())

    @torch.jit.export
    def statistics(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exact integer sums for the closed-form strategies, D = d + 1.

        ``common.statistics.device_statistics`` makes the fields "gram" and "moments" of them.

        Returns:
            A: int64 (D (D + 1) / 2,), upper triangle of ``sum [q 1]^T [q 1]``, row by row;
            B: int64 (K, d), each class's sum of q; N: int64 (K,), its examples.
        """
        check_examples(features, labels, self.num_features, self.num_classes)
        return exact_sums(features, labels, self.num_classes, self.exact_rows)
