"""Arrays that arrive in parts, kept on the disk, so that a phone can go on after a cut."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from common.errors import FedheadError
from common.readback import own_check

__all__ = ["DamagedUploadError", "UploadError", "Uploads", "WrongOffsetError"]

_SHA256 = re.compile("[0-9a-f]{64}")


class UploadError(FedheadError):
    """Something that no phone of the protocol sends."""


class WrongOffsetError(FedheadError):
    """A part that does not begin where the last one ended, or an array that is not complete."""


class DamagedUploadError(FedheadError):
    """Bytes that do not have their SHA-256; they were removed."""


class Uploads:
    """Parts of arrays, by task.

    Args:
        folder: one folder for each task.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def size(self, task: str, sha256: str) -> int:
        """Number of bytes that are there."""
        path = self._path(task, sha256)
        for found in (path, _part(path)):
            try:
                return found.stat().st_size
            except FileNotFoundError:
                continue
        return 0

    def add(self, task: str, sha256: str, size: int, offset: int, data: bytes, files: int) -> int:
        """Take a part; return the number of bytes that are there now.

        Args:
            task: its id, which must be one of ours.
            sha256: of the whole.
            size: of the whole.
            offset: where the part begins; a part that is there already changes nothing.
            data: its bytes; none: nothing is taken.
            files: largest number of arrays of one task.

        Raises:
            UploadError: it is longer than the whole, or one array too many.
            WrongOffsetError: it does not begin where the last part ended.
            DamagedUploadError: it was the last part, and the whole has another SHA-256.
        """
        path = self._path(task, sha256)
        have = self.size(task, sha256)
        if not data or offset + len(data) <= have:
            return have
        if offset != have:
            raise WrongOffsetError(f"a part at {offset}, but {have} bytes are there")
        if have + len(data) > size:
            raise UploadError(f"{have + len(data)} bytes of an array of {size}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not have and sum(1 for _ in path.parent.iterdir()) >= files:
            raise UploadError(f"one array more than the {files} of the task")
        with _part(path).open("ab") as file:
            file.write(data)
        if have + len(data) == size:
            self._finish(path, task, sha256)
        return have + len(data)

    def _finish(self, path: Path, task: str, sha256: str) -> None:
        if _sound(_part(path), sha256) is None:
            raise DamagedUploadError(_damaged(task, sha256))
        _part(path).replace(path)

    def read(self, task: str, sha256: str) -> bytes:
        """A whole array.

        Raises:
            UploadError: that is no SHA-256.
            WrongOffsetError: not all of it is there.
            DamagedUploadError: it has changed on the disk.
        """
        path = self._path(task, sha256)
        try:
            data = _sound(path, sha256)
        except FileNotFoundError as exc:
            there = self.size(task, sha256)
            raise WrongOffsetError(f"{there} bytes of {sha256[:12]} are there, not all") from exc
        if data is None:
            raise DamagedUploadError(_damaged(task, sha256))
        return data

    def drop(self, task: str) -> None:
        """Remove what belongs to a task."""
        shutil.rmtree(self._folder / task, ignore_errors=True)

    def keep_only(self, tasks: Iterable[str]) -> None:
        """Remove what belongs to any other task."""
        known = set(tasks)
        for path in self._folder.glob("*"):
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, task: str, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise UploadError("a SHA-256 has 64 lower-case hexadecimal digits")
        return self._folder / task / sha256


def _damaged(task: str, sha256: str) -> str:
    return f"task {task}: the array {sha256[:12]} was damaged on its way, or on the disk"


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


@own_check("upload of a phone")
def _sound(path: Path, sha256: str) -> bytes | None:
    """A file's bytes; None, and the file is removed, if they do not have their SHA-256."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        path.unlink()
        return None
    return data
