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
from common.softmax import sgd_step, softmax_loss
from common.statistics import EXACT_ROWS
from common.types import Head
from server.export.device_checks import check_array, check_examples, check_learning_rate

__all__ = ["DeviceModel", "head_logits", "visiting_order"]


def visiting_order(n: int, seed: int, epoch: int) -> Tensor:
    """``common.seeding.batch_order`` in int64 arithmetic, which wraps as uint64 does.

    Args:
        n: examples.
        seed: ``common.seeding.batch_seed`` of run, round and client.
        epoch: from 0.

    Returns:
        int64 (n,), a permutation.
    """
    state = splitmix64(torch.full([1], (seed ^ epoch)) - 7046029254386353131)
    draws = splitmix64(state + (torch.arange(n) + 1) * -7046029254386353131)
    return torch.sort((draws >> 1) & 0x7FFFFFFFFFFFFFFF, stable=True)[1]


def splitmix64(z: Tensor) -> Tensor:
    """The mixing function; shifts are arithmetic, so what they fill in is masked away."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def noise_image(size: int) -> Tensor:
    """The first of ``common.backbone.frozen.probe_images``, uint8 (1, 3, size, size)."""
    state = torch.arange(3 * size * size) + 1
    state = (state ^ (state >> 7)) * -7046029254386353131
    return ((state >> 56) & 0xFF).to(torch.uint8).reshape(1, 3, size, size)


def trainer_view(q: Tensor, gain: Tensor, center: Tensor) -> Tensor:
    """uint8 (n, d) to x, float32 (n, d + 1): ``FeatureSet.x`` to the bit."""
    x = (q.to(torch.float32) - center) * gain
    return torch.cat([x, torch.ones([q.size(0), 1])], dim=1)


def head_logits(q: Tensor, gain: Tensor, center: Tensor, matrix: Tensor) -> Tensor:
    """uint8 features (n, d) to float32 logits (n, K)."""
    return trainer_view(q, gain, center) @ matrix.t()


class DeviceModel(torch.nn.Module):
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
    matrix: Tensor
    start: Tensor

    def __init__(self, backbone: FrozenBackbone, head: Head) -> None:
        super().__init__()
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
        self.backbone = backbone.module
        self.input_size = spec.input_size
        self.num_features = spec.num_features
        self.num_classes = head.num_classes
        self.exact_rows = EXACT_ROWS
        self.fingerprint_ = backbone.fingerprint
        self.is_probed = False
        self.register_buffer("gain", torch.from_numpy(backbone.affine.gain.copy()))
        self.register_buffer("center", torch.from_numpy(backbone.affine.center.copy()))
        probe = backbone.features(probe_images(spec.input_size)[:1])
        self.register_buffer("probe", torch.from_numpy(probe))
        # Training replaces tensors and never writes into them, so both may be one.
        self.register_buffer("matrix", torch.from_numpy(head.matrix))
        self.register_buffer("start", self.matrix)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (n, 3, H, W) to float32 logits (n, K); also with another engine."""
        q: Tensor = self.backbone(images)
        return head_logits(q, self.gain, self.center, self.matrix)

    @torch.jit.export
    def features(self, images: Tensor) -> Tensor:
        """uint8 images (n, 3, H, W) to uint8 features (n, d), the training side's to the bit.

        The first call computes those of a noise image and refuses to go on where they are not
        what they were at export: heads trained on other features must not be averaged.
        """
        q: Tensor = self.backbone(images)
        if not self.is_probed:
            if not torch.equal(self.backbone(noise_image(self.input_size)), self.probe):
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
        """Local training as a round wants it.

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
        if epochs < 1 or batch_size < 1:
            raise ValueError(f"epochs is {epochs} and batch_size {batch_size}, expected at least 1")
        n = features.size(0)
        matrix = self.matrix
        losses = torch.zeros([epochs])
        for epoch in range(epochs):
            order = visiting_order(n, seed, epoch)
            for batch in torch.split(order, batch_size):
                x = trainer_view(features[batch], self.gain, self.center)
                loss, matrix = sgd_step(x, labels[batch], matrix, lr)
                losses[epoch] += loss * batch.size(0) / n
        check_array("the trained head", matrix, [self.num_classes, self.num_features + 1])
        self.matrix = matrix
        return losses

    @torch.jit.export
    def loss(self, features: Tensor, labels: Tensor) -> float:
        """Mean cross-entropy of the head as it is."""
        check_examples(features, labels, self.num_features, self.num_classes)
        x = trainer_view(features, self.gain, self.center)
        return float(softmax_loss(x, labels, self.matrix).item())

    @torch.jit.export
    def get_head(self) -> tuple[Tensor, Tensor]:
        """The head as it is: weight float32 (K, d) and bias float32 (K,)."""
        return self.matrix[:, :-1].contiguous(), self.matrix[:, -1].contiguous()

    @torch.jit.export
    def set_head(self, weight: Tensor, bias: Tensor, fingerprint: str) -> None:
        """Start from another head, the next round's or one that the app has kept.

        Args:
            weight: float32 (K, d).
            bias: float32 (K,).
            fingerprint: of the backbone that the head was trained on.
        """
        if fingerprint != self.fingerprint_:
            raise ValueError(
                f"the head is of backbone {fingerprint[:12]}, expected {self.fingerprint_[:12]}"
            )
        check_array("weight", weight, [self.num_classes, self.num_features])
        check_array("bias", bias, [self.num_classes])
        matrix = torch.cat([weight, bias.unsqueeze(1)], dim=1)
        self.start = matrix
        self.matrix = matrix

    @torch.jit.export
    def head_delta(self) -> Tensor:
        """What goes to the server: the head minus the one that ``set_head`` (or the export) gave.

        float32 (K, d + 1), bias last: the field "delta" of an update.
        """
        return self.matrix - self.start

    @torch.jit.export
    def statistics(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exact integer sums for the closed-form strategies, D = d + 1.

        ``common.statistics.device_statistics`` makes the fields "gram" and "moments" of them.

        Returns:
            A: int64 (D (D + 1) / 2,), upper triangle of ``sum [q 1]^T [q 1]``, row by row;
            B: int64 (K, d), each class's sum of q; N: int64 (K,), its examples.
        """
        check_examples(features, labels, self.num_features, self.num_classes)
        width = self.num_features + 1
        gram = torch.zeros([width, width], dtype=torch.float64)
        moments = torch.zeros([self.num_classes, width], dtype=torch.float64)
        for start in range(0, features.size(0), self.exact_rows):
            rows = features[start : start + self.exact_rows]
            classes = labels[start : start + self.exact_rows]
            ones = torch.ones([rows.size(0), 1])
            block = torch.cat([rows.to(torch.float32), ones], dim=1)
            onehot = torch.zeros([rows.size(0), self.num_classes])
            onehot.scatter_(1, classes.unsqueeze(1), 1.0)
            gram += (block.t() @ block).to(torch.float64)
            moments += (onehot.t() @ block).to(torch.float64)
        upper = torch.triu_indices(width, width)
        counts = moments.to(torch.int64)
        return gram[upper[0], upper[1]].to(torch.int64), counts[:, :-1], counts[:, -1]

    @torch.jit.export
    def fingerprint(self) -> str:
        """Of the backbone, 64 hex digits."""
        return self.fingerprint_
