"""Bytes that a phone has fetched, kept by their SHA-256, so that nothing is fetched twice."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from client.phone.link import Link
from common.cache import note_use
from common.errors import ProtocolError
from common.files import sync
from common.phones.phones_pb2 import Blob, FetchRequest, Part
from common.phones.wire import PART
from common.readback import own_check

__all__ = ["Blobs", "check_blob", "checked_part", "has_bytes"]

_SHA256 = re.compile("[0-9a-f]{64}")
_TRIES = 2  # of a blob whose bytes turned out to be others


def check_blob(blob: Blob, what: str, most: int) -> None:
    """Refuse a blob that cannot be what it says, before a byte of it is fetched.

    Args:
        blob: from a message.
        what: words for it, for the error.
        most: bytes that it may have.

    Raises:
        ProtocolError: says what is wrong.
    """
    problem = ""
    if not _SHA256.fullmatch(blob.sha256):
        problem = "has no SHA-256"
    elif not 0 < blob.size <= most:
        problem = f"has {blob.size:,} bytes, expected 1 to {most:,}"
    elif blob.data and not has_bytes(blob, blob.data):
        problem = "holds other bytes than its SHA-256 says"
    if problem:
        raise ProtocolError(f"{what} {problem}")


def has_bytes(blob: Blob, data: bytes) -> bool:
    """Whether these are a blob's bytes."""
    return len(data) == blob.size and hashlib.sha256(data).hexdigest() == blob.sha256


class Blobs:
    """The blobs in a folder.

    Args:
        folder: of the blobs; a blob's file is named as its SHA-256, and ends with ``.part`` while
            it is incomplete.
        link: where missing ones are fetched from.
        most: bytes that all files together may take; those used longest ago are removed first.
    """

    def __init__(self, folder: Path, link: Link, most: int) -> None:
        self._folder, self._link, self._most = folder, link, most

    async def get(self, blob: Blob) -> bytes:
        """A blob's bytes: from the message, from the disk, or fetched. Call ``check_blob`` before.

        A fetch that was interrupted goes on where it ended, also after a kill.

        Raises:
            CallError: the gateway cannot be reached, or has not got it.
            ProtocolError: the gateway sends something else.
            OSError: the disk is full, or refuses.
        """
        if blob.data or not blob.sha256:
            return blob.data
        if (data := self._read(blob)) is not None:
            return data
        self._make_room(blob.size)
        for _ in range(_TRIES):
            data = await self._fetch(blob)
            if has_bytes(blob, data):
                sync(self._partial(blob))
                self._partial(blob).replace(self._folder / blob.sha256)
                return data
            self._partial(blob).unlink()
        raise ProtocolError(f"blob {blob.sha256[:12]} is sent with other bytes than promised")

    def drop(self, blob: Blob) -> None:
        """Remove a blob that is kept elsewhere from now on."""
        (self._folder / blob.sha256).unlink(missing_ok=True)

    @own_check("blob of a phone")
    def _read(self, blob: Blob) -> bytes | None:
        """A kept blob; None if it is missing or damaged."""
        path = self._folder / blob.sha256
        with suppress(FileNotFoundError):
            if has_bytes(blob, data := path.read_bytes()):
                note_use(path)
                return data
            path.unlink()
        return None

    async def _fetch(self, blob: Blob) -> bytes:
        """All bytes, of which the partial file may have some. The caller checks them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._partial(blob).open("a+b") as file:
            if file.tell() > blob.size:
                file.truncate(0)
            while (offset := file.seek(0, 2)) < blob.size:
                request = FetchRequest(sha256=blob.sha256, offset=offset)
                file.write(checked_part(await self._link.fetch(request), blob, offset))
                file.flush()
            file.seek(0)
            return file.read()

    def _make_room(self, size: int) -> None:
        """Remove the blobs that were used longest ago, so that another one may come."""
        with suppress(FileNotFoundError):
            files = sorted(self._folder.iterdir(), key=lambda path: -path.stat().st_mtime_ns)
            total = size
            for path in files:
                total += path.stat().st_size
                if total > self._most:
                    path.unlink()

    def _partial(self, blob: Blob) -> Path:
        return self._folder / f"{blob.sha256}.part"


def checked_part(part: Part, blob: Blob, offset: int) -> bytes:
    """A part's bytes. Parts that are too small would let a server hold a phone for ever.

    Raises:
        ProtocolError: it is another part, or of another length.
    """
    named = (part.sha256, part.size, part.offset) == (blob.sha256, blob.size, offset)
    if not named or len(part.data) != min(PART, blob.size - offset):
        raise ProtocolError(
            f"blob {blob.sha256[:12]} was asked for at byte {offset}, but the answer is "
            f"{len(part.data)} bytes of another part"
        )
    return part.data
