"""What lies in a cache, when it was used last, and what may go because it can be made again."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MADE_AGAIN", "Entry", "entries", "keep_newest", "note_use", "prune", "size_of"]

MADE_AGAIN = ("backbones", "features", "partitions")
"""Folders of a cache whose entries are computed, or sent by a server, once more when they are
missing. What clients remember is none of these."""

_OURS = re.compile(r"\.?[0-9a-f]{64}\b.*")  # a folder that is no cache may hold features/, too
_KEYS = "keys"  # small files in backbones/: which recipe gave which
_BEGUN_SECONDS = 86400.0  # what begins with a dot is being written, or was by a killed process


@dataclass(frozen=True)
class Entry:
    """One backbone, the features of one data set, or one partition.

    Attributes:
        path: a file or folder.
        size_bytes: all of it.
        used: when it was made or used last, in seconds since 1970.
    """

    path: Path
    size_bytes: int
    used: float


def note_use(path: Path) -> None:
    """Let an entry count as used now; in a cache that cannot be written nothing is removed."""
    with suppress(OSError):
        os.utime(path)


def entries(folder: Path) -> list[Entry]:
    """What lies in a folder of a cache, the longest unused first."""
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
    """Remove what was not used for some days and can be made again.

    Returns:
        What was removed.

    Raises:
        OSError: it cannot be.
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
    """Remove all but the entries that were used last.

    A process that has mapped one of the others goes on with it: its files are gone from the
    folder, and from the disk once nobody has them open.
    """
    whole = [entry for entry in entries(folder) if not entry.path.name.startswith(".")]
    for entry in whole[:-count]:
        with suppress(OSError):  # it costs no more than its space
            _remove(entry.path)


def _remove(path: Path) -> None:
    """Under another name first: what is half gone must not be found."""
    away = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):  # another process has done the same
        path.rename(away)
        if away.is_dir():
            shutil.rmtree(away)
        else:
            away.unlink()
