"""What lies in a folder of images, whatever it may be; part of the device path.

Links are not followed: what lies in the folder is found where it lies, once, and a loop, an image
in both train and test or a file of somebody else's cannot come in through one.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import DataError
from common.files import shown
from common.images import HEIC_REMEDY, heic_is_read
from common.words import some

__all__ = ["Folder", "class_name", "has_image_suffix", "left_out", "not_read", "scan"]

_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpf", ".jpg",
     ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)  # fmt: skip
_HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
# Thumbnails, previews and waste bins of macOS' archives, Synology, QNAP, Windows and Lightroom.
_JUNK_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found",
     "$recycle.bin", "system volume information"}
)  # fmt: skip
_JUNK_ENDINGS = (".lrdata", ".lrprev")
_JUNK_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_MOST_KINDS = 8  # named in one line


@dataclass(eq=False)
class Folder:
    """A folder and, directly in it, what may be used; all in the order of their names.

    Attributes:
        path: of the folder.
        images: files that are images by their names, and whatever stands in an image's
            place and cannot be read: a link, a pipe, a folder that is closed. Reading tells.
        folders: its folders, without hidden ones and those that hold thumbnails.
        links: links to folders.
        others: how many of what else, by suffix or name.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def below(self) -> Iterator[Folder]:
        """It and all folders in it; each before its own."""
        stack = [self]  # not by recursion: a file system allows more levels than Python
        while stack:
            folder = stack.pop()
            yield folder
            stack += reversed(folder.folders)

    def all_images(self) -> list[Path]:
        """Of all levels, with what stands in the place of images."""
        return [path for folder in self.below() for path in (*folder.images, *folder.links)]


def scan(path: Path) -> Folder:
    """Look through a folder and all below it.

    Raises:
        DataError: there is no such folder, or it cannot be read.
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
            # macOS leaves a ._NAME beside each file on other file systems; nobody misses it.
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
    """Whether a file is an image by its name.

    >>> has_image_suffix("a.JPG"), has_image_suffix("a.txt")
    (True, False)
    """
    return Path(name).suffix.lower() in _SUFFIXES | _HEIC_SUFFIXES


def class_name(path: Path) -> str:
    """The class that a folder stands for: its name, composed (NFC; macOS' disks decompose it)."""
    return unicodedata.normalize("NFC", shown(path.name))


def left_out(root: Folder) -> str:
    """How many of what else than images there is below, by suffix, for a message; or nothing."""
    total = Counter[str]()
    for folder in root.below():
        total.update(folder.others)
    # What has a remedy comes first.
    order = sorted(total, key=lambda kind: (kind not in _HEIC_SUFFIXES, -total[kind], kind))
    kinds = [
        f"{total[kind]} {kind}" + (f" ({HEIC_REMEDY})" if kind in _HEIC_SUFFIXES else "")
        for kind in order
    ]
    return some(kinds, _MOST_KINDS)


def not_read(root: Folder) -> str:
    """What else than images there is below, links to folders too, for a message; or nothing."""
    links = sum(len(folder.links) for folder in root.below())
    words = [f"linked folders: {links}"] if links else []
    return ", ".join(filter(None, [*words, left_out(root)]))
