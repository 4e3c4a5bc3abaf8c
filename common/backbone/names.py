"""What a network's tensors are called in a file, and where they belong in our network.

Two families of names are known, the network's own, for most of them torchvision's, and timm's,
each below any prefix: "module." of DataParallel, "model.", "backbone.", "encoder.", ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count

from torch import Tensor, nn

from common.backbone.architectures import Timm, architecture
from common.backbone.networks import shapes, skeleton
from common.errors import BackboneError

__all__ = ["Naming", "naming"]


@dataclass(frozen=True)
class Naming:
    """How a file names a network.

    Attributes:
        names: the network's key to the file's, in the network's order.
        prefix: that all names of the file have.
        timm: whose names they are among timm's; None: they are the network's own.
        unexpected: names of the file that would belong to the features, but do not.
        others: names of the file that are no features: classifiers and the like.
    """

    names: Mapping[str, str]
    prefix: str
    timm: Timm | None
    unexpected: tuple[str, ...]
    others: tuple[str, ...]


def naming(arch: str, found: Mapping[str, Tensor], where: str) -> Naming:
    """Recognize the names of a file.

    Args:
        arch: a key of ``ARCHITECTURES``.
        found: the file's tensors.
        where: the file's name, for the error.

    Returns:
        The naming that most of the network's tensors have; some may be missing.

    Raises:
        BackboneError: the file holds the network twice.
    """
    own = list(shapes(arch))
    families: dict[Timm | None, Mapping[str, str]] = {None: {key: key for key in own}}
    if known := architecture(arch).timm:
        families[known] = _timm_names(arch, known)
    ranked = [
        (hits, timm, prefix)
        for timm, names in families.items()
        for prefix, hits in _prefixes(names.values(), found).items()
    ]
    ranked.sort(key=lambda row: -row[0])
    if not ranked:
        names = {key: f"features.{key}" for key in own}
        return Naming(names, "", None, unexpected=tuple(found), others=())
    _, timm, prefix = ranked[0]
    complete = sum(not key.endswith("num_batches_tracked") for key in own)
    twins = sorted(other for hits, _, other in ranked if hits >= complete)
    if len(twins) > 1:
        raise BackboneError(
            f"weights in {where} hold the network {len(twins)} times, below "
            f"{' and '.join(repr(twin) for twin in twins)}: save the one that is meant alone"
        )
    names = {key: f"{prefix}{name}" for key, name in families[timm].items()}
    rest = sorted(set(found) - set(names.values()))
    within = {name.removeprefix(prefix).partition(".")[0] for name in names.values()}
    unexpected = tuple(n for n in rest if _belongs(n, prefix, found[n], within, timm=bool(timm)))
    return Naming(names, prefix, timm, unexpected, tuple(sorted(set(rest) - set(unexpected))))


def _prefixes(names: Iterable[str], found: Iterable[str]) -> Counter[str]:
    """Each prefix below which the file has some of these names, with how many."""
    known, hits = set(names), Counter[str]()
    for full in found:
        parts = full.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in known:
                hits["".join(f"{part}." for part in parts[:i])] += 1
    return hits


def _belongs(name: str, prefix: str, tensor: Tensor, within: set[str], *, timm: bool) -> bool:
    """Whether a name that the network lacks claims to be of its features."""
    if not name.startswith(prefix):
        return False
    first = name.removeprefix(prefix).partition(".")[0]
    if first in within or (not timm and prefix.endswith("features.")):
        return True
    # Of a plain sequence the classifier is the next number; convolutions would be features.
    return first.isdigit() and tensor.ndim == 4


@cache
def _timm_names(arch: str, timm: Timm) -> Mapping[str, str]:
    """The network's keys to timm's.

    timm applies the convolution that ends MobileNetV3's classifier after pooling, as torchvision
    does its first linear layer: neither is a feature. V2's conv_head comes before pooling.
    """
    network = skeleton(arch)
    children = [row for row in network.named_children() if [*row[1].parameters()]]
    stages = [(s, b) for s, blocks in enumerate(timm.stages) for b in range(blocks)]
    (stem, _), *blocks, (last, _) = children
    layers = {f"{stem}.0": "conv_stem", f"{stem}.1": "bn1"}
    for (i, block), (stage, number) in zip(blocks, stages, strict=True):
        for path, layer in _timm_layers(block):
            layers[f"{i}.{path}"] = f"blocks.{stage}.{number}.{layer}"
    layers |= {f"{last}.0": timm.last[0], f"{last}.1": timm.last[1]}
    names = {}
    for key in shapes(arch):
        layer, _, tensor = key.rpartition(".")
        names[key] = f"{layers[layer]}.{tensor}"
    return names


def _timm_layers(block: nn.Module) -> Iterator[tuple[str, str]]:
    """Layers of one block: where the network has them, and what timm calls them."""
    convolutions = [
        path
        for path, layer in block.named_modules()
        if isinstance(layer, nn.Conv2d) and not path.endswith(("fc1", "fc2"))
    ]
    expands = len(convolutions) == 3
    names = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
    called = dict(zip(convolutions, names, strict=True))
    norms = count(1)
    for path, layer in block.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            yield path, f"bn{next(norms)}"
        elif path.endswith("fc1"):
            yield path, "se.conv_reduce"
        elif path.endswith("fc2"):
            yield path, "se.conv_expand"
        elif path in called:
            yield path, called[path]
