"""Names of a network's tensors in a file, and the tensors of our network that they belong to.

Two families of names are known: the network's own, which are mostly torchvision's, and timm's. Both
may have any prefix: "module." of DataParallel, "model.", "backbone.", "encoder.", ...
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
        names: from the network's names to the file's, in the network's order.
        prefix: prefix of all names in the file.
        timm: the timm network that has these names; None: they are the network's own names.
        unexpected: names in the file that look like the features' but are not in the network.
        others: names in the file that do not belong to features: classifiers and the like.
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
        The naming that fits most of the network's tensors; some may be missing.

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
            f"{' and '.join(repr(twin) for twin in twins)}: save only the one to use"
        )
    names = {key: f"{prefix}{name}" for key, name in families[timm].items()}
    rest = sorted(set(found) - set(names.values()))
    within = {name.removeprefix(prefix).partition(".")[0] for name in names.values()}
    unexpected = tuple(n for n in rest if _belongs(n, prefix, found[n], within, timm=bool(timm)))
    return Naming(names, prefix, timm, unexpected, tuple(sorted(set(rest) - set(unexpected))))


def _prefixes(names: Iterable[str], found: Iterable[str]) -> Counter[str]:
    """Each prefix under which the file has some of these names, with their number."""
    known, hits = set(names), Counter[str]()
    for full in found:
        parts = full.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in known:
                hits["".join(f"{part}." for part in parts[:i])] += 1
    return hits


def _belongs(name: str, prefix: str, tensor: Tensor, within: set[str], *, timm: bool) -> bool:
    """Whether a name that the network lacks looks like a name of its features."""
    if not name.startswith(prefix):
        return False
    first = name.removeprefix(prefix).partition(".")[0]
    if first in within or (not timm and prefix.endswith("features.")):
        return True
    # In a plain sequence the classifier has the next number. A convolution would be a feature.
    return first.isdigit() and tensor.ndim == 4


@cache
def _timm_names(arch: str, timm: Timm) -> Mapping[str, str]:
    """From the network's names to timm's.

    In MobileNetV3 timm's conv_head comes after pooling, like torchvision's first linear layer, so
    neither belongs to the features. In V2 conv_head comes before pooling.
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
    """Layers of one block: their names in the network and in timm."""
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
