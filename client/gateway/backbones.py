"""Files of backbones for phones, by fingerprint and format, and blobs in general."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from common.files import sha256_file
from common.phones import FORMATS, file_name
from common.phones import phones_pb2 as pb
from common.phones.wire import INLINE_BLOB

__all__ = ["Blobs", "backbones_in", "blob_in", "blob_of", "files_in", "offer_backbones"]

_KEPT_BYTES = 64 << 20


def blob_of(data: bytes) -> pb.Blob:
    """Bytes as a task names them; small ones are in it."""
    digest = hashlib.sha256(data).hexdigest()
    return pb.Blob(sha256=digest, size=len(data), data=data if len(data) <= INLINE_BLOB else b"")


def files_in(folder: Path) -> list[Path]:
    """A backbone's files for phones, of every list of classes."""
    suffixes = {*FORMATS.values()}
    return sorted(path for path in folder.glob("[!.]*") if path.suffix in suffixes)


def backbones_in(folder: Path, classes: Sequence[str]) -> list[pb.Backbone]:
    """The files of a backbone for a list of classes."""
    found = []
    for kind in FORMATS:
        path = folder / file_name(kind, classes)
        try:
            file = blob_in(path)
        except FileNotFoundError:
            continue
        found.append(
            pb.Backbone(
                format=kind,
                file=file,
                statement=_beside(path, "statement"),
                signature=_beside(path, "signature"),
            )
        )
    return found


def blob_in(path: Path) -> pb.Blob:
    """A file's content as a message names it. A file that is replaced is read again.

    Raises:
        OSError: it cannot be read.
    """
    stat = path.stat()
    return pb.Blob(sha256=_digest(path, stat.st_mtime_ns, stat.st_size), size=stat.st_size)


@lru_cache(maxsize=256)
def _digest(path: Path, _changed: int, _size: int) -> str:
    return sha256_file(path)


def _beside(path: Path, what: str) -> bytes:
    """The other file of a signed one. What is wrong with a signature, the phones find."""
    try:
        return path.with_name(f"{path.name}.{what}").read_bytes()
    except FileNotFoundError:
        return b""


@dataclass
class _Made:
    """Bytes that are made when they are asked for.

    Attributes:
        make: makes them.
        offers: how many times they were offered and not withdrawn.
    """

    make: Callable[[], bytes]
    offers: int = 0


class Blobs:
    """What phones may fetch, by SHA-256. Some of it is for one client alone."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._made: dict[tuple[str, int | None], _Made] = {}
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def offer_file(self, sha256: str, path: Path) -> None:
        """Let phones fetch a file, and what was there before no more."""
        with self._lock:
            if self._files.get(sha256) != path:
                kept = {s: other for s, other in self._files.items() if other != path}
                self._files = kept | {sha256: path}

    def offer(self, sha256: str, make: Callable[[], bytes], client: int | None = None) -> None:
        """Let all phones, or one client's, fetch bytes; ``make`` is called in a thread."""
        with self._lock:
            self._made.setdefault((sha256, client), _Made(make)).offers += 1

    def withdraw(self, sha256: str, client: int | None = None) -> None:
        """Take an offer back. The same bytes may have been offered twice."""
        with self._lock:
            if made := self._made.get((sha256, client)):
                made.offers -= 1
                if not made.offers:
                    del self._made[sha256, client]

    def has(self, sha256: str, client: int) -> bool:
        """Whether a client may fetch a blob."""
        return sha256 in self._files or self._maker(sha256, client) is not None

    def _maker(self, sha256: str, client: int) -> _Made | None:
        return self._made.get((sha256, None)) or self._made.get((sha256, client))

    def part(self, sha256: str, client: int, offset: int, most: int) -> tuple[int, bytes]:
        """The blob's size and its bytes from an offset on.

        Raises:
            KeyError: there is none for this client.
            OSError: its file is gone.
        """
        if path := self._files.get(sha256):
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(offset)
                return size, file.read(most)
        with self._lock:
            maker = self._maker(sha256, client)
            if maker is None:
                raise KeyError(sha256)
            data = self._kept.get(sha256)
            if data is None:
                data = self._kept[sha256] = maker.make()
                while sum(map(len, self._kept.values())) > _KEPT_BYTES and len(self._kept) > 1:
                    self._kept.popitem(last=False)
        return len(data), data[offset : offset + most]


def offer_backbones(blobs: Blobs, folder: Path) -> None:
    """Let phones fetch the files for a fingerprint."""
    for path in files_in(folder):
        try:
            blobs.offer_file(blob_in(path).sha256, path)
        except FileNotFoundError:  # it has just been removed
            continue
