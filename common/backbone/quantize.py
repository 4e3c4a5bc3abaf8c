"""Everything that uses torch's quantization: from a float network to an int8 one.

Recipe: fold batch norm, equalize channels (in ``equalize``), fake-quantize, observe unlabelled
images, correct biases, distil, convert.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.nn import intrinsic
from torch.ao.quantization.fake_quantize import FakeQuantize
from torch.ao.quantization.observer import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torch.utils.hooks import RemovableHandle

from common.backbone._deprecations import accepted_deprecations
from common.backbone.fuse import fused, keep_biases_small
from common.backbone.module import Tapped
from common.backbone.networks import QuantizableNetwork

__all__ = [
    "Converted",
    "Student",
    "calibrate",
    "convert",
    "correct_bias",
    "distill",
    "fold",
    "pooled",
    "prepare_student",
]


class _Relu6FakeQuantize(FakeQuantize):
    """Clips at 6, so that no range exceeds it: int8 saturation then IS ReLU6, at no cost."""

    def forward(self, X: Tensor) -> Tensor:
        out: Tensor = super().forward(X.clamp(max=6.0))  # type: ignore[no-untyped-call]
        return out


class Student(nn.Module):
    """The network under fake quantization; normalized float images to blocks' activations."""

    def __init__(self, body: Tapped) -> None:
        super().__init__()
        self.quant = tq.QuantStub()
        self.body = body

    def forward(self, images: Tensor) -> list[Tensor]:
        """float32 (n, 3, H, W) to float32 (n, c, h, w) of each block."""
        out: list[Tensor] = self.body(self.quant(images))
        return out


def _qconfig(engine: str, *, relu6: bool) -> tq.QConfig:
    # x86 kernels add pairs of 8-bit products in 16 bits. On processors without VNNI that overflows
    # with 8-bit activations, so these get seven bits, as in torch's own x86 configuration.
    module = _Relu6FakeQuantize if relu6 else FakeQuantize
    activation = module.with_args(  # type: ignore[no-untyped-call]
        observer=MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=255 if engine == "qnnpack" else 127,
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
    )
    # Not torch's fused_per_channel_wt_fake_quant_range_neg_127_to_127: it rounds weights in
    # training to another grid (max/127.5, floor 6e-5) than convert does (max/127, floor 2e-4), so
    # the student would learn to correct errors that the int8 network does not have.
    weight = FakeQuantize.with_args(  # type: ignore[no-untyped-call]
        observer=MovingAveragePerChannelMinMaxObserver,
        averaging_constant=1.0,  # only the current range of the weights counts
        quant_min=-127,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    return tq.QConfig(activation=activation, weight=weight)  # type: ignore[no-untyped-call]


def fold(network: QuantizableNetwork) -> nn.Module:
    """The float network with batch norm folded into its convolutions; teacher and reference.

    Folding before training also freezes batch norm. So the student's statistics cannot drift, and
    a step costs a third less than with the ConvBn modules of torch's recipe.
    """
    folded = copy.deepcopy(network.module).eval()
    if not hasattr(folded, "fuse_model"):
        features = fused(folded).requires_grad_(False)
        keep_biases_small(features)
        return features
    with accepted_deprecations():
        folded.fuse_model(is_qat=False)  # type: ignore[operator]
    features = folded.get_submodule("features").requires_grad_(False)
    if network.relu6:
        for module in features.modules():
            if isinstance(module, intrinsic.ConvReLU2d):
                module[1] = nn.ReLU6()
    keep_biases_small(features)
    return features


def prepare_student(folded: Tapped, engine: str) -> Student:
    """Insert fake quantization.

    Args:
        folded: what ``fold`` returned, or its equalized version; not changed.
        engine: quantized engine that the student will be converted for.
    """
    student = Student(copy.deepcopy(folded).requires_grad_(True)).train()
    with accepted_deprecations():
        student.qconfig = _qconfig(engine, relu6=False)  # type: ignore[assignment]
        for module in student.modules():
            if isinstance(module, intrinsic.ConvReLU2d) and isinstance(module[1], nn.ReLU6):
                module.qconfig = _qconfig(engine, relu6=True)  # type: ignore[assignment]
        tq.prepare_qat(student, inplace=True)  # type: ignore[no-untyped-call]
    return student


def calibrate(student: Student, batches: Iterable[Tensor]) -> None:
    """Observe the range of every activation of the float network, then fix it.

    Fake quantization is off meanwhile. Otherwise the ranges would include errors that
    ``correct_bias`` removes later, and fit badly afterwards (cosine to fp32 between 0.89 and 0.99,
    depending on the seed, against 0.98 for all seeds). The smallest and largest value over all
    images fit even worse (0.88): one outlier makes every step coarse.

    Args:
        student: its observers change in place.
        batches: float32 (b, 3, H, W), normalized.
    """
    student.train().apply(tq.disable_fake_quant)
    with torch.no_grad():
        for batch in batches:
            student(batch)
    student.apply(tq.enable_fake_quant)
    for module in student.modules():
        # Weight observers stay on, because training changes the weights and so their range.
        if isinstance(module, FakeQuantize) and module.dtype == torch.quint8:
            module.disable_observer()


def correct_bias(student: Student, folded: nn.Module, batch: Tensor) -> None:
    """Shift every convolution's bias so that its mean output equals the float network's.

    In uniform parts of an image rounding errs to the same side, so errors add up instead of
    cancelling out. One pass corrects layer after layer, each with the layers before it corrected.

    Nagel, van Baalen, Blankevoort, Welling: "Data-Free Quantization Through Weight
    Equalization and Bias Correction", ICCV 2019, arXiv 1906.04721, section 4.2.
    Differs from the paper: means are measured on images, before the activation, instead of
    derived from batch norm.

    Args:
        student: calibrated; its biases change in place.
        folded: the network that it was prepared from.
        batch: float32 (b, 3, H, W), normalized.
    """
    want: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            want[name] = output.mean((0, 2, 3))

        return hook

    def shift(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            weight = module.weight_fake_quant(module.weight)  # type: ignore[operator]
            output = module._conv_forward(inputs[0], weight, module.bias)  # type: ignore[operator]
            # A convolution that is fused with its ReLU lies one level deeper.
            target = want[name] if name in want else want[f"{name}.0"]
            module.bias.add_(target - output.mean((0, 2, 3)))  # type: ignore[operator]

        return hook

    with torch.no_grad():
        _run_hooked(folded, folded, batch, lambda m, n: m.register_forward_hook(record(n)))
        _run_hooked(
            student, student.body, batch, lambda m, n: m.register_forward_pre_hook(shift(n))
        )


def _run_hooked(
    network: nn.Module,
    body: nn.Module,
    batch: Tensor,
    register: Callable[[nn.Module, str], RemovableHandle],
) -> None:
    """One forward pass with a hook on every convolution of the body."""
    convolutions = [(n, m) for n, m in body.named_modules() if isinstance(m, nn.Conv2d)]
    handles = [register(module, name) for name, module in convolutions]
    try:
        network(batch)
    finally:
        for handle in handles:
            handle.remove()


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterator[Tensor],
    *,
    steps: int,
    lr: float,
) -> list[float]:
    """Train the student to give the float network's pooled features; needs no labels.

    Args:
        student: from normalized float32 (b, 3, H, W) to activations of blocks; its weights change
            in place.
        teacher: the same of floats.
        batches: at least ``steps`` batches of float32 (b, 3, H, W), normalized.
        steps: number of training steps.
        lr: peak learning rate of Adam, see ``_schedule``.

    Returns:
        The loss of each step: squared error over the teacher's mean square, the mean over blocks.
    """
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, steps))
    losses = []
    for _, batch in zip(range(steps), batches, strict=False):
        with torch.no_grad():
            targets = pooled(teacher, batch)
        pairs = zip(pooled(student, batch), targets, strict=True)
        loss = torch.stack([_difference(got, want) for got, want in pairs]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.detach().item())
    return losses


def pooled(network: nn.Module, batch: Tensor) -> list[Tensor]:
    """Float features (b, c) of each block, of normalized images (b, 3, H, W)."""
    return [tap.mean((2, 3)) for tap in network(batch)]


def _difference(got: Tensor, want: Tensor) -> Tensor:
    return (got - want).square().mean() / want.square().mean().clamp_min(1e-12)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over 30%, then a cosine to zero.

    The warm-up is needed because Adam's first steps have full size whatever the gradient's size.
    """
    warm_up = min(1.0, (step + 1) / max(0.3 * steps, 1.0))
    return warm_up * 0.5 * (1.0 + math.cos(math.pi * step / max(steps, 1)))


@dataclass(frozen=True)
class Converted:
    """An int8 network without its pooling: quint8 in, quint8 (n, c, h, w) of each block out."""

    quant: nn.Module
    body: Tapped


def convert(student: Student) -> Converted:
    """Int8 copy of the student; the engine must be set around this call."""
    student = copy.deepcopy(student).eval().requires_grad_(False)
    student.apply(tq.disable_observer)
    with accepted_deprecations():
        tq.convert(student, inplace=True)  # type: ignore[no-untyped-call]
    return Converted(student.quant, student.body)
