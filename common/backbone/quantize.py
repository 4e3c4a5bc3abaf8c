"""Everything that touches torch's quantization: from a float network to an int8 one.

Recipe: fold batch norm, fake-quantize, observe unlabelled images, distil, convert, script.
"""

from __future__ import annotations

import copy
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

from common.backbone._deprecations import accepted_deprecations
from common.backbone.networks import QuantizableNetwork

__all__ = ["Converted", "Student", "calibrate", "convert", "distill", "prepare_student"]


class _Relu6Observer(MovingAverageMinMaxObserver):
    """Sees what ReLU6 lets through: int8 saturation then IS the clip at 6, at no cost."""

    def forward(self, x_orig: Tensor) -> Tensor:
        super().forward(x_orig.detach().clamp(max=6.0))  # type: ignore[no-untyped-call]
        return x_orig


class Student(nn.Module):
    """The network under fake quantization; normalized float images to activations."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.quant = tq.QuantStub()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        """float32 (n, 3, H, W) to float32 (n, d, h, w)."""
        out: Tensor = self.body(self.quant(images))
        return out


def _qconfig(engine: str, *, relu6: bool) -> tq.QConfig:
    # x86 kernels add pairs of 8-bit products in 16 bits, which overflows with 8-bit activations
    # on processors without VNNI: seven bits there, as torch's own x86 configuration has it.
    activation = FakeQuantize.with_args(  # type: ignore[no-untyped-call]
        observer=_Relu6Observer if relu6 else MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=255 if engine == "qnnpack" else 127,
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
    )
    # Not torch's fused_per_channel_wt_fake_quant_range_neg_127_to_127: it rounds training
    # weights to another grid than convert does (max/127.5, floor 6e-5, against max/127, floor
    # 2e-4), so the student would learn to make up for errors that the int8 network lacks.
    weight = FakeQuantize.with_args(  # type: ignore[no-untyped-call]
        observer=MovingAveragePerChannelMinMaxObserver,
        averaging_constant=1.0,  # the range of the weights as they are now
        quant_min=-127,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    return tq.QConfig(activation=activation, weight=weight)  # type: ignore[no-untyped-call]


def prepare_student(network: QuantizableNetwork, engine: str) -> Student:
    """Fold batch norm, fuse ReLU and insert fake quantization.

    Args:
        network: a float MobileNet that torchvision can quantize; not changed.
        engine: quantized engine it will be converted for.
    """
    folded = copy.deepcopy(network.module).eval()
    with accepted_deprecations():
        # Folding batch norm before training freezes it: the student has no statistics to drift
        # and steps cost a third less than with the ConvBn modules of the stock recipe.
        folded.fuse_model(is_qat=False)  # type: ignore[operator]
        student = Student(folded.get_submodule("features")).train()
        student.qconfig = _qconfig(engine, relu6=False)  # type: ignore[assignment]
        if network.relu6:
            for module in student.modules():
                if isinstance(module, intrinsic.ConvReLU2d):
                    module.qconfig = _qconfig(engine, relu6=True)  # type: ignore[assignment]
        tq.prepare_qat(student, inplace=True)  # type: ignore[no-untyped-call]
    return student


def calibrate(student: Student, batches: Iterable[Tensor]) -> None:
    """Observe the range of every activation, then fix it.

    Each layer sees what the fake-quantized layers before it let through, as it will in int8.

    Args:
        student: its observers change in place.
        batches: float32 (b, 3, H, W), normalized.
    """
    student.train()
    with torch.no_grad():
        for batch in batches:
            student(batch)
    for module in student.modules():
        # Weight observers stay on: weights move in training, and their range with them.
        if isinstance(module, FakeQuantize) and module.dtype == torch.quint8:
            module.disable_observer()


def distill(
    student: Student,
    teacher: Callable[[Tensor], Tensor],
    batches: Iterator[Tensor],
    *,
    steps: int,
    lr: float,
) -> list[float]:
    """Teach the student the float network's pooled features; needs no labels.

    Args:
        student: its weights change in place.
        teacher: normalized float32 (b, 3, H, W) to pooled float32 (b, d).
        batches: float32 (b, 3, H, W), normalized, at least ``steps`` of them.
        steps: how many to take.
        lr: peak learning rate of Adam, brought to zero along a cosine.

    Returns:
        The loss of each step: squared error over the teacher's mean square.
    """
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    losses = []
    for _, batch in zip(range(steps), batches, strict=False):
        with torch.no_grad():
            target = teacher(batch)
        pooled = student(batch).mean((2, 3))
        loss = (pooled - target).square().mean() / target.square().mean().clamp_min(1e-12)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach().item())
    return losses


@dataclass(frozen=True)
class Converted:
    """An int8 network that still lacks its pooling: quint8 in, quint8 (n, d, h, w) out."""

    quant: nn.Module
    body: nn.Module


def convert(student: Student) -> Converted:
    """Int8 copy of the student; the engine must be set around this call."""
    student = copy.deepcopy(student).eval().requires_grad_(False)
    student.apply(tq.disable_observer)
    with accepted_deprecations():
        tq.convert(student, inplace=True)  # type: ignore[no-untyped-call]
    return Converted(student.quant, student.body)
