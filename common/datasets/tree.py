"""Lists everything in a folder of images. Part of the device path.

Links are not followed. So every file is found once, and a link cannot lead to a loop, to the same
image in both train and test, or to somebody else's file.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from common.errors import DataError
from common.files import shown
from common.images import HEIC_REMEDY, heic_is_read
from common.words import some

__all__ = [
    "Folder",
    "class_name",
    "has_image_suffix",
    "left_out",
    "near_folder",
    "not_read",
    "scan",
]

_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpf", ".jpg",
     ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)  # fmt: skip
_HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
# Thumbnails, previews and waste bins of macOS archives, Synology, QNAP, Windows and Lightroom.
_JUNK_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found",
     "$recycle.bin", "system volume information"}
)  # fmt: skip
_JUNK_ENDINGS = (".lrdata", ".lrprev")
_JUNK_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_MOST_KINDS = 8  # that one line names


@dataclass(eq=False)
class Folder:
    """A folder and what may be used directly in it, sorted by name.

    Attributes:
        path: the folder.
        images: files that are images by their names. Some may turn out to be unreadable: a link, a
            pipe, a folder without permission.
        folders: its folders, except hidden ones and those of thumbnails.
        links: links to folders.
        others: number of other files, by suffix or name.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def below(self) -> Iterator[Folder]:
        """This folder and all folders below it; each comes before the folders in it."""
        stack = [self]  # no recursion, because a file system allows more levels than Python
        while stack:
            folder = stack.pop()
            yield folder
            stack += reversed(folder.folders)

    def all_images(self) -> list[Path]:
        """``images`` of all levels."""
        return [path for folder in self.below() for path in (*folder.images, *folder.links)]


def near_folder(path: Path) -> str:
    """The name of the folder that a path may mean: its own or one beside it; else empty."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except (OSError, ValueError):  # the path may be any text
        return ""
    return next(iter(get_close_matches(path.name, names, n=1, cutoff=0.75)), "")


def scan(path: Path) -> Folder:
    """Read a folder and everything below it.

    Raises:
        DataError: the folder does not exist or cannot be read.
    """
    root = Folder(path)
    try:
        _fill(root)
    except FileNotFoundError as exc:
        raise DataError(f"{shown(path)}: no such folder") from exc
    except NotADirectoryError as exc:
        raise DataError(f"{shown(path)}: a file, expected a folder") from exc
    except OSError as exc:
        raise DataError(f"{shown(path)}: cannot be read ({exc.strerror or exc})") from exc
    stack = [*root.folders]
    while stack:
        folder = stack.pop()
        try:
            _fill(folder)
        except OSError:
            folder.images.append(folder.path)
        stack += folder.folders
    return root


def _fill(folder: Folder) -> None:
    with os.scandir(folder.path) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        name, path = entry.name.lower(), folder.path / entry.name
        suffix = Path(name).suffix
        readable = suffix in _SUFFIXES or (suffix in _HEIC_SUFFIXES and heic_is_read())
        if entry.is_dir(follow_symlinks=False):
            if name.startswith(".") or name in _JUNK_FOLDERS or name.endswith(_JUNK_ENDINGS):
                folder.others[f"{shown(entry.name)}/"] += 1
            else:
                folder.folders.append(Folder(path))
        elif name.startswith("."):
            # On other file systems, macOS leaves a ._NAME beside each file: not worth a report.
            if readable and not name.startswith("._"):
                folder.others["hidden"] += 1
        elif readable:
            folder.images.append(path)
        elif entry.is_symlink() and _leads_to_folder(path):
            folder.links.append(path)
        elif name not in _JUNK_FILES:
            plain = re.fullmatch(r"\.[a-z0-9_-]{1,10}", suffix)
            folder.others[suffix if plain else "other files"] += 1


def _leads_to_folder(link: Path) -> bool:
    with suppress(OSError):
        return link.is_dir()
    return False


def has_image_suffix(name: str) -> bool:
    """Whether a file's name is that of an image.

    >>> has_image_suffix("a.JPG"), has_image_suffix("a.txt")
    (True, False)
    """
    return Path(name).suffix.lower() in _SUFFIXES | _HEIC_SUFFIXES


def class_name(path: Path) -> str:
    """The class of a folder: its name in Unicode's composed form (NFC), as macOS decomposes it."""
    return unicodedata.normalize("NFC", shown(path.name))


def left_out(root: Folder) -> str:
    """For a message: number of files below that are not images, by suffix; empty if none."""
    total = Counter[str]()
    for folder in root.below():
        total.update(folder.others)
    # Kinds that a user can do something about come first.
    order = sorted(total, key=lambda kind: (kind not in _HEIC_SUFFIXES, -total[kind], kind))
    kinds = [
        f"{total[kind]} {kind}" + (f" ({HEIC_REMEDY})" if kind in _HEIC_SUFFIXES else "")
        for kind in order
    ]
    return some(kinds, _MOST_KINDS)


def not_read(root: Folder) -> str:
    """For a message: what below is neither image nor folder, with linked folders; empty if none."""
    links = sum(len(folder.links) for folder in root.below())
    words = [f"linked folders: {links}"] if links else []
    return ", ".join(filter(None, [*words, left_out(root)]))
