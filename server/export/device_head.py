"""The head that a phone trains, and the terms of its round: one part of ``DeviceModel``."""

# No `from __future__ import annotations`: TorchScript cannot read annotations that are strings.

import torch
from torch import Tensor

from server.export.device_checks import check_array
from server.export.device_training import check_terms

__all__ = ["DeviceHead"]


class DeviceHead(torch.nn.Module):
    """Keeps a head, where it started, and what a round adds to its steps.

    Args:
        matrix: float32 (K, d + 1), weight and bias.
        fingerprint: of the backbone that the head reads.
    """

    matrix: Tensor
    start: Tensor
    rates: list[float]
    correction: Tensor
    preconditioner: Tensor

    def __init__(self, matrix: Tensor, fingerprint: str) -> None:
        super().__init__()
        self.num_classes, self.num_features = matrix.size(0), matrix.size(1) - 1
        self.fingerprint_ = fingerprint
        # Training replaces tensors and never writes into them, so both may be one.
        self.register_buffer("matrix", matrix)
        self.register_buffer("start", matrix)
        self.rates = [0.0, 0.0, 0.0]
        for name in ("correction", "preconditioner"):
            self.register_buffer(name, torch.zeros([0, 0]))

    @torch.jit.export
    def get_head(self) -> tuple[Tensor, Tensor]:
        """The head as it is: weight float32 (K, d) and bias float32 (K,)."""
        return self.matrix[:, :-1].contiguous(), self.matrix[:, -1].contiguous()

    @torch.jit.export
    def set_head(self, weight: Tensor, bias: Tensor, fingerprint: str) -> None:
        """Start from another head, the next round's or one that the app has kept; without terms.

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
        self.rates = [0.0, 0.0, 0.0]
        self.correction = torch.zeros([0, 0])
        self.preconditioner = torch.zeros([0, 0])
        self.start = matrix
        self.matrix = matrix

    @torch.jit.export
    def set_terms(
        self,
        momentum: float,
        weight_decay: float,
        mu: float,
        correction: Tensor,
        preconditioner: Tensor,
    ) -> None:
        """What the round's plan adds to each step of ``train_epochs``, until the next ``set_head``.

        Args:
            momentum: in [0, 1); its velocity begins at 0 in each training.
            weight_decay: times the head, added to each gradient.
            mu: proximal coefficient, times the way from the round's head.
            correction: float32 (K, d + 1), added; empty: none.
            preconditioner: float32 (d + 1, d + 1), multiplies the gradient; empty: none.
        """
        rates = [momentum, weight_decay, mu]
        check_terms(rates, correction, preconditioner, list(self.matrix.shape))
        self.rates = rates
        self.correction = correction
        self.preconditioner = preconditioner

    @torch.jit.export
    def head_delta(self) -> Tensor:
        """What goes to the server: the head minus the one that ``set_head`` (or the export) gave.

        float32 (K, d + 1), bias last: the field "delta" of an update.
        """
        return self.matrix - self.start

    @torch.jit.export
    def fingerprint(self) -> str:
        """Of the backbone, 64 hex digits."""
        return self.fingerprint_
