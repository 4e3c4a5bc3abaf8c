"""How to get the images, labels and class names of each torchvision data set.

torchvision's classes have no common interface: some hold arrays, some paths, under a dozen
attribute names. There is one row per data set. The functions take the torchvision object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # torchvision's objects have no common type

import numpy as np

from common.errors import DataError
from common.images import ByteArray

__all__ = ["TABLE", "Spec"]

Pixels = ByteArray  # (n, H, W) or (n, H, W, 3)
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Spec:
    """One row of the table.

    Attributes:
        train: constructor arguments of each split that clients train on.
        test: constructor arguments of the server's test set; None: there is none.
        images: returns pixels, or a path for each image.
        labels: returns an integer for each image.
        classes: returns the class names.
        downloads: whether its constructor takes ``download``.
        factory: class in torchvision.datasets, if it is not called like the row.
    """

    train: tuple[Arguments, ...]
    test: Arguments | None
    images: Callable[[Any], Pixels | Sequence[Path]]
    labels: Callable[[Any], Sequence[int]]
    classes: Callable[[Any], Sequence[str]]
    downloads: bool = True
    factory: str = ""


def _numbers(count: int) -> Callable[[Any], Sequence[str]]:
    return lambda _: [str(k) for k in range(count)]


def _distinct(names: Sequence[str]) -> Sequence[str]:
    """Add the class number to a name if two classes share it."""
    return [name if names.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(names)]


def _names(data: Any) -> Sequence[str]:
    """Class names; if a class has several, the first."""
    return _distinct([name if isinstance(name, str) else name[0] for name in data.classes])


def _grey(data: Any) -> Pixels:
    return np.asarray(data.data, np.uint8)


def _channels_first(data: Any) -> Pixels:
    return np.asarray(data.data, np.uint8).transpose(0, 2, 3, 1)


def _emnist(data: Any) -> Pixels:
    # NIST stored columns first, so torchvision returns the images transposed.
    return _grey(data).transpose(0, 2, 1)


def _fer_labels(data: Any) -> Sequence[int]:
    labels = [label for _, label in data._samples]
    if None in labels:
        raise DataError("FER2013: test.csv has no labels; use fer2013.csv or icml_face_data.csv")
    return labels


def _paths(attribute: str) -> Callable[[Any], Sequence[Path]]:
    return lambda data: [Path(path) for path in getattr(data, attribute)]


def _pair_paths(attribute: str) -> Callable[[Any], Sequence[Path]]:
    return lambda data: [Path(path) for path, _ in getattr(data, attribute)]


def _pair_labels(attribute: str) -> Callable[[Any], Sequence[int]]:
    return lambda data: [label for _, label in getattr(data, attribute)]


def _attribute(name: str) -> Callable[[Any], Sequence[int]]:
    return lambda data: getattr(data, name)


def _caltech101(data: Any) -> Sequence[Path]:
    folder = Path(data.root, "101_ObjectCategories")
    return [
        folder / data.categories[y] / f"image_{i:04d}.jpg"
        for y, i in zip(data.y, data.index, strict=True)
    ]


def _caltech256(data: Any) -> Sequence[Path]:
    folder = Path(data.root, "256_ObjectCategories")
    return [
        folder / data.categories[y] / f"{y + 1:03d}_{i:04d}.jpg"
        for y, i in zip(data.y, data.index, strict=True)
    ]


def _omniglot(data: Any) -> Sequence[Path]:
    return [
        Path(data.target_folder, data._characters[label], name)
        for name, label in data._flat_character_images
    ]


def _omniglot_labels(data: Any) -> Sequence[int]:
    # torchvision numbers the characters in the disk's order.
    number = {character: k for k, character in enumerate(sorted(data._characters))}
    return [number[data._characters[label]] for _, label in data._flat_character_images]


def _inaturalist(data: Any) -> Sequence[Path]:
    return [Path(data.root, data.all_categories[k], name) for k, name in data.index]


def _species(data: Any) -> Sequence[str]:
    """Genus and species; a folder is called 00012_kingdom_..._genus_species."""
    return _distinct([" ".join(name.split("_")[6:]) for name in data.all_categories])


_FLAG = ({"train": True},), {"train": False}
_SPLIT = ({"split": "train"},), {"split": "test"}
_TRAIN_VAL_TEST = ({"split": "train"}, {"split": "val"}), {"split": "test"}
_WHOLE: tuple[tuple[Arguments, ...], None] = ({},), None
_TARGETS, _LABELS, _PRIVATE = _attribute("targets"), _attribute("labels"), _attribute("_labels")
_MNIST = Spec(*_FLAG, _grey, _TARGETS, _names)
_FEELINGS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def _emnist_spec(split: str) -> Spec:
    train, test = {"split": split, "train": True}, {"split": split, "train": False}
    return Spec((train,), test, _emnist, _TARGETS, _names, factory="EMNIST")


def _files(
    splits: tuple[tuple[Arguments, ...], Arguments | None], attribute: str = "_image_files"
) -> Spec:
    return Spec(*splits, _paths(attribute), _PRIVATE, _names)


def _pairs(
    splits: tuple[tuple[Arguments, ...], Arguments | None],
    attribute: str,
    classes: Callable[[Any], Sequence[str]] = _names,
    *,
    downloads: bool = True,
) -> Spec:
    return Spec(*splits, _pair_paths(attribute), _pair_labels(attribute), classes, downloads)


TABLE: Mapping[str, Spec] = {
    "Caltech101": Spec(*_WHOLE, _caltech101, _attribute("y"), lambda data: data.categories),
    "Caltech256": Spec(*_WHOLE, _caltech256, _attribute("y"), lambda data: data.categories),
    "CIFAR10": _MNIST,
    "CIFAR100": _MNIST,
    "Country211": _pairs(
        (({"split": "train"}, {"split": "valid"}), {"split": "test"}), "samples"
    ),
    "DTD": _files(_TRAIN_VAL_TEST),
    "EMNIST": _emnist_spec("balanced"),
    **{f"EMNIST-{split}": _emnist_spec(split) for split in
       ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")},
    "EuroSAT": _pairs(_WHOLE, "samples"),
    "FashionMNIST": _MNIST,
    "FER2013": Spec(
        *_SPLIT, lambda data: np.stack([np.asarray(image) for image, _ in data._samples]),
        _fer_labels, lambda _: _FEELINGS, downloads=False,
    ),
    "FGVCAircraft": _files((({"split": "trainval"},), {"split": "test"})),
    "Flowers102": _files(_TRAIN_VAL_TEST),
    "Food101": _files(_SPLIT),
    "GTSRB": _pairs(_SPLIT, "_samples", _numbers(43)),
    "ImageNet": _pairs(
        (({"split": "train"},), {"split": "val"}), "samples", downloads=False
    ),
    "Imagenette": _pairs((({"split": "train"},), {"split": "val"}), "_samples"),
    "INaturalist": Spec(
        ({"version": "2021_train_mini"},), {"version": "2021_valid"},
        _inaturalist, lambda data: [k for k, _ in data.index], _species,
    ),
    "KMNIST": _MNIST,
    "LFWPeople": Spec(
        *_WHOLE, _paths("data"), _TARGETS, lambda data: list(data.class_to_idx),
        downloads=False,
    ),
    "MNIST": _MNIST,
    "Omniglot": Spec(
        *_WHOLE, _omniglot, _omniglot_labels, lambda data: sorted(data._characters)
    ),
    "OxfordIIITPet": _files((({"split": "trainval"},), {"split": "test"}), "_images"),
    "Places365": Spec(
        ({"split": "train-standard", "small": True},), {"split": "val", "small": True},
        _pair_paths("imgs"), _pair_labels("imgs"), _names,
    ),
    "QMNIST": Spec(*_FLAG, _grey, lambda data: data.targets[:, 0], _names),
    "RenderedSST2": _pairs(_TRAIN_VAL_TEST, "_samples"),
    "SEMEION": Spec(*_WHOLE, _grey, _LABELS, _numbers(10)),
    "StanfordCars": _pairs(_SPLIT, "_samples", downloads=False),
    "STL10": Spec(*_SPLIT, _channels_first, _LABELS, _names),
    "SUN397": _files(_WHOLE),
    "SVHN": Spec(*_SPLIT, _channels_first, _LABELS, _numbers(10)),
    "USPS": Spec(*_FLAG, _grey, _TARGETS, _numbers(10)),
}  # fmt: skip
