"""A fine-tuned network as a file that ``backbone.weights = "file:PATH"`` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
from torch import nn

__all__ = ["PROVENANCE", "tuned_file"]

PROVENANCE = "fedhead"
"""The key of the file's metadata that says, as JSON, how the weights were made."""


def tuned_file(network: nn.Module, provenance: Mapping[str, object]) -> bytes:
    """A safetensors file of the network's weights, under torchvision's names.

    Args:
        network: the network without its classifier.
        provenance: how it was made, fit for JSON.
    """
    tensors = {f"features.{name}": value for name, value in network.state_dict().items()}
    # One key only: safetensors writes several in an order that differs from process to process.
    return safetensors.torch.save(tensors, {PROVENANCE: json.dumps(provenance, sort_keys=True)})
