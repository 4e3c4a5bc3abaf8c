"""What a cache holds, when it was last used, and what may be removed and made again."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MADE_AGAIN", "Entry", "entries", "keep_newest", "note_use", "prune", "size_of"]

MADE_AGAIN = ("backbones", "features", "partitions", "privacy")
"""Folders of a cache whose entries are computed, or sent by a server, again when they are missing.
Clients' memories are not among them."""

_OURS = re.compile(r"\.?[0-9a-f]{64}\b.*")  # a folder features/ may also be no cache of ours
_KEYS = "keys"  # small files in backbones/ that say which recipe gave which backbone
_BEGUN_SECONDS = 86400.0  # a name with a dot in front is being written, or its writer was killed


@dataclass(frozen=True)
class Entry:
    """One backbone, the features of one data set, one partition, or one figure of privacy.

    Attributes:
        path: a file or folder.
        size_bytes: its size, with all files in it.
        used: when it was made or used last, in seconds since 1970.
    """

    path: Path
    size_bytes: int
    used: float


def note_use(path: Path) -> None:
    """Mark an entry as used now. A read-only cache needs no mark: nothing is removed from it."""
    with suppress(OSError):
        os.utime(path)


def entries(folder: Path) -> list[Entry]:
    """The entries of a cache's folder, the longest unused first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # another process has just removed it
            if path.name != _KEYS:
                found.append(Entry(path, size_of(path), path.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def prune(cache: Path, unused_days: float) -> list[Entry]:
    """Remove entries that were not used for some days and can be made again.

    Returns:
        The removed entries.

    Raises:
        OSError: an entry cannot be removed.
    """
    now = time.time()
    removed = []
    for entry in (entry for kind in MADE_AGAIN for entry in entries(cache / kind)):
        is_begun = entry.path.name.startswith(".")
        unused = max(unused_days * 86400, _BEGUN_SECONDS if is_begun else 0)
        if _OURS.fullmatch(entry.path.name) and now - entry.used >= unused:
            _remove(entry.path)
            removed.append(entry)
    return removed


def keep_newest(folder: Path, count: int) -> None:
    """Remove all entries but those that were used last.

    A process that has mapped a removed entry can go on reading it: the files leave the disk only
    when no process has them open.
    """
    whole = [entry for entry in entries(folder) if not entry.path.name.startswith(".")]
    for entry in whole[:-count]:
        with suppress(OSError):  # an entry that stays costs only disk space
            _remove(entry.path)


def _remove(path: Path) -> None:
    """Remove an entry. It is renamed first, so that nobody finds it half removed."""
    away = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):  # another process has done the same
        path.rename(away)
        if away.is_dir():
            shutil.rmtree(away)
        else:
            away.unlink()
