"""Fold batch norm and fuse convolutions with their ReLU, in any tree of modules."""

from __future__ import annotations

from torch import nn
from torch.ao.nn import intrinsic
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.errors import BackboneError

__all__ = ["fused", "keep_biases_small"]

# Share of a channel's bias: far below one step of uint8, but large enough for a step of weights.
_LEAST = 2.0**-14


def fused(network: nn.Module) -> nn.Module:
    """The same function in eval mode, in which only convolutions are left to quantize.

    In each ``Sequential``, at any depth, a batch norm is folded into the convolution before it, and
    a ReLU or ReLU6 is fused with it. Every convolution gets a bias.

    Args:
        network: changed in place; its other modules stay.

    Raises:
        BackboneError: a batch norm does not follow a convolution in a ``Sequential``.
    """
    for sequence in [module for module in network.modules() if type(module) is nn.Sequential]:
        names = list(sequence._modules)
        for i, name in enumerate(names):
            if type(sequence.get_submodule(name)) is nn.Conv2d:
                _join(sequence, names[i : i + 3])
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            raise BackboneError(
                f"the network's batch norm {name} cannot be folded: it must follow a convolution "
                "in the same Sequential"
            )
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(module.weight.data.new_zeros(module.out_channels))
    return network


def keep_biases_small(network: nn.Module) -> None:
    """Make each bias fit into int32, in which engines add it in steps of its channel's weights.

    A channel that died in training has a bias and nearly no weights, so its steps are so small that
    sums wrap around. Setting one weight makes the steps larger. The weight is too small, compared
    with the bias, to change anything else.

    Args:
        network: with batch norm folded; changed in place.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            weight = module.weight.data.flatten(1)
            least = _LEAST * module.bias.data.abs()
            dead = weight.abs().amax(1) < least
            weight[dead, 0] = least[dead]


def _join(sequence: nn.Sequential, names: list[str]) -> None:
    """Join a convolution with the batch norm, the ReLU or both that follow it."""
    first, *rest = names
    convolution = sequence.get_submodule(first)
    if rest and isinstance(norm := sequence.get_submodule(rest[0]), nn.BatchNorm2d):
        convolution = fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var]
        sequence._modules[rest.pop(0)] = nn.Identity()
    relu = sequence.get_submodule(rest[0]) if rest else None
    if rest and type(relu) in (nn.ReLU, nn.ReLU6):
        joined = intrinsic.ConvReLU2d(convolution, nn.ReLU())  # type: ignore[no-untyped-call]
        if isinstance(relu, nn.ReLU6):
            joined[1] = nn.ReLU6()  # the constructor takes only a ReLU
        convolution, sequence._modules[rest[0]] = joined, nn.Identity()
    sequence._modules[first] = convolution
