"""Finds the class, split and client of each image in a folder. Part of the device path.

Classes are never guessed. A level of folders that may mean something else is refused, with what to
do about it. If a folder is read differently from how it looks, the log says so.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.datasets.labels import named_otherwise
from common.datasets.split_names import is_filler, split_of
from common.datasets.tree import Folder, class_name, left_out
from common.errors import DataError
from common.files import shown
from common.words import some

__all__ = ["Labelled", "by_class", "by_client", "by_split", "unused"]

logger = logging.getLogger("fedhead")


@dataclass(frozen=True)
class Labelled:
    """An image with what its place in the folder says.

    Attributes:
        path: its file.
        label: its class.
        group: words for the group that must keep a readable image.
        client: its owner; empty if unknown.
    """

    path: Path
    label: str
    group: str
    client: str = ""


def by_split(root: Folder) -> tuple[list[Labelled], list[Labelled]]:
    """Training and test images: from one sub-folder per class, or from splits with such folders.

    If there is a test split, a validation split joins the training images, as in torchvision's
    data sets; otherwise it is the test set.

    Returns:
        Training images, and the test images if there is a split of them.

    Raises:
        DataError: it is not clear which folders are the classes, or a class is empty.
    """
    top = _unwrapped(root)
    splits = _splits(top)
    if not splits:
        return _rows(_classes(top)), []
    parts = {kind: _unwrapped(folder) for kind, folder in splits.items()}
    # A test set without labels has no class folders.
    parts = {k: part for k, part in parts.items() if k == "train" or part.folders or part.links}
    test = "test" if "test" in parts else "val"
    classes = {kind: _classes(part) for kind, part in parts.items()}
    for kind, found in classes.items():
        _refuse_unknown(top, (splits["train"], splits[kind]), classes["train"], found)
    trained = [kind for kind in classes if kind != test]
    logger.info(
        "%s: trains on %s, tests on %s", shown(top.path),
        " and ".join(shown(splits[kind].path.name) for kind in trained),
        shown(splits[test].path.name) if test in classes else "a part of it",
    )  # fmt: skip
    train = [row for kind in trained for row in _rows(classes[kind])]
    return train, _rows(classes[test]) if test in classes else []


def by_client(root: Folder) -> list[Labelled]:
    """Images from one folder per client, with one sub-folder per class in each.

    Raises:
        DataError: there are no such folders, or no client has an image of some class.
    """
    clients = {name: _named(folder) for name, folder in _named(root).items()}
    path = shown(root.path)
    if not any(clients.values()):
        raise DataError(
            f"{path}: expected one folder per client with one sub-folder per class in each, found "
            f"no sub-folders in {some(list(clients)) or 'it'}; folder:PATH reads class folders"
        )
    owned = [(client, k, folder) for client, own in clients.items() for k, folder in own.items()]
    _refuse_deep(root, [folder for _, _, folder in owned], may_be_clients=False)
    rows = [
        Labelled(image, label, f"class {label} of {path}", client)
        for client, label, folder in owned
        for image in folder.all_images()
    ]
    if empty := sorted({k for _, k, _ in owned} - {row.label for row in rows}):
        raise DataError(f"{path}: classes of which no client has an image: {some(empty)}")
    if idle := sorted(clients.keys() - {row.client for row in rows}):
        logger.warning("%s: clients without images in class folders: %s", path, some(idle))
    return rows


def by_class(root: Folder, classes: Sequence[str]) -> list[Labelled]:
    """A device's images of the server's classes; it need not have images of all.

    Raises:
        DataError: a folder's name is not a class of the server.
    """
    label_of = {unicodedata.normalize("NFC", label): label for label in classes}
    rows, unknown = [], []
    # A linked image is refused when it is read, so that the other folders can still be used.
    links = [Folder(path, images=[path]) for path in root.links]
    for folder in (*root.folders, *links):
        name = class_name(folder.path)
        if name in label_of:
            rows += [Labelled(p, label_of[name], name) for p in folder.all_images()]
        else:
            unknown.append(name)
    if unknown:
        raise DataError(
            f"{shown(root.path)}: folders that are not classes of the server: "
            f"{some(named_otherwise(unknown, label_of), 20)}; "
            f"its classes are {some(list(classes), 20)}"
        )
    return rows


def unused(root: Folder, used: Sequence[Labelled]) -> str:
    """For a message: what a folder holds beside the used images; empty if nothing."""
    taken = {row.path for row in used}
    places = Counter[str]()
    for folder in root.below():
        inner = folder.path.relative_to(root.path).parts
        count = sum(path not in taken for path in (*folder.images, *folder.links))
        places[shown(inner[0]) if inner else "it"] += count
    words = [f"{count} in {place}" for place, count in places.items() if count]
    outside = f"{places.total()} outside class folders ({some(words)})" if words else ""
    return ", ".join(filter(None, (outside, left_out(root))))


def _rows(classes: Mapping[str, Folder]) -> list[Labelled]:
    return [
        Labelled(image, label, shown(folder.path))
        for label, folder in classes.items()
        for image in folder.all_images()
    ]


def _splits(root: Folder) -> dict[str, Folder]:
    """Its folders by the splits that their names say; empty if they are classes."""
    found: dict[str, list[Folder]] = {}
    for folder in root.folders:
        if kind := split_of(folder.path.name):
            found.setdefault(kind, []).append(folder)
    rest = [folder for folder in root.folders if not split_of(folder.path.name)]
    names = some([shown(folder.path.name) for folders in found.values() for folder in folders])
    if "train" not in found:
        if found and not rest:
            raise DataError(f"{shown(root.path)}: holds {names}, but nothing to train on")
        return {}
    # Beside other classes, a folder "train" is a class too, unless it holds class folders.
    shallow = any(folder.images for folder in found["train"])
    if len(found) == 1 and (shallow or any(folder.all_images() for folder in rest)):
        return {}
    if twice := [kind for kind, folders in found.items() if len(folders) > 1]:
        raise DataError(
            f"{shown(root.path)}: among {names} there are several splits to {twice[0]}; "
            "expected one of each kind"
        )
    _refuse_links([link for link in root.links if split_of(link.name)])
    return {kind: folders[0] for kind, folders in found.items()}


def _refuse_unknown(
    top: Folder, splits: tuple[Folder, Folder], known: Iterable[str], found: Iterable[str]
) -> None:
    """Refuse a split with classes that the training split does not have."""
    train, other = (shown(split.path.name) for split in splits)
    if unknown := sorted({*found} - {*known}):
        hint = ""
        if all(map(is_filler, unknown)):
            hint = (
                f"; if its images have no labels, move {other} elsewhere: "
                "then a part of the training images becomes the test set"
            )
        raise DataError(
            f"{shown(top.path)}: classes in {other} but not in {train}: "
            f"{some(named_otherwise(unknown, known), 20)}{hint}"
        )


def _unwrapped(folder: Folder) -> Folder:
    """The inner folder if a folder holds only that, as an unpacked archive does.

    One folder of folders cannot be the only class.
    """
    inner = folder
    while len(inner.folders) == 1 and not (inner.images or inner.links):
        only = inner.folders[0]
        if only.images or only.links or not only.folders:
            break
        inner = only
    if inner is not folder:
        logger.info("%s: read from %s, its only folder", shown(folder.path), shown(inner.path))
    return inner


def _named(folder: Folder) -> dict[str, Folder]:
    """The folders in it by class name, in the order of the names."""
    path = shown(folder.path)
    _refuse_links(folder.links)
    found: dict[str, Folder] = {}
    for one in folder.folders:
        name = class_name(one.path)
        if name in found:
            twins = f"{found[name].path.name!a} and {one.path.name!a}"
            raise DataError(f"{path}: {twins} are the same name in Unicode; merge the folders")
        if shown(one.path.name) != one.path.name:
            logger.warning(
                "%s: the name is not plain text; it is shown with escapes", shown(one.path)
            )
        found[name] = one
    cases = Counter(name.casefold() for name in found)
    if alike := sorted(name for name in found if cases[name.casefold()] > 1):
        logger.warning("%s: names that differ in case only: %s", path, some(alike))
    return dict(sorted(found.items()))


def _refuse_links(links: Sequence[Path]) -> None:
    """Refuse linked folders at a level where each folder is a class, split or client."""
    for link in links:
        raise DataError(
            f"{shown(link)}: a link, and links are not followed; put the folder itself there"
        )


def _classes(folder: Folder) -> dict[str, Folder]:
    classes = _named(folder)
    if not classes:
        loose = f" (images in it: {len(folder.images)})" if folder.images else ""
        raise DataError(
            f"{shown(folder.path)}: no class folders in it; "
            f"expected one sub-folder per class{loose}"
        )
    _refuse_deep(folder, list(classes.values()), may_be_clients=True)
    for one in classes.values():
        if not one.all_images():
            others = left_out(one)
            hint = f" (it holds {others})" if others else ""
            raise DataError(f"{shown(one.path)}: class folder without images{hint}")
    return classes


def _refuse_deep(root: Folder, classes: Sequence[Folder], *, may_be_clients: bool) -> None:
    """Refuse class folders that hold only folders. Log if images in inner folders count."""
    deep = [f for f in classes if not (f.images or f.links) and f.all_images()]
    if deep:
        inner = [{class_name(sub.path) for sub in folder.folders} for folder in deep]
        examples = [
            f"{class_name(folder.path)} ({some(sorted(names), 3)})"
            for folder, names in zip(deep, inner, strict=True)
        ]
        repeated = [
            name for name, n in Counter(k for names in inner for k in names).items() if n > 1
        ]
        hint = "move the images up into them"
        if repeated and all(map(split_of, repeated)):
            hint = "put splits above classes, as in train/CLASS and test/CLASS"
        elif may_be_clients and len(repeated) > 1 and len(deep) == len(classes):
            hint = "folder-by-client:PATH if these are clients, with one sub-folder per class"
        raise DataError(
            f"{shown(root.path)}: class folders that hold only sub-folders: {some(examples, 3)}; "
            f"{hint}"
        )
    nested = [sub for folder in classes for sub in folder.folders if sub.all_images()]
    if nested:
        count = sum(len(sub.all_images()) for sub in nested)
        places = [shown(sub.path.relative_to(root.path)) for sub in nested]
        logger.warning(
            "%s: images in sub-folders count for their class: %d (%s)",
            shown(root.path), count, some(places, 3),
        )  # fmt: skip
