"""Files that are never half-written, and the folders of caches."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "cache_root",
    "is_empty",
    "read_private",
    "remove_temporary",
    "sha256_file",
    "shown",
    "simulated_state",
    "sync",
    "write_atomic",
    "write_folder",
    "write_private",
]

_CONTROLS = ("Cc", "Zl", "Zp")  # Unicode categories: control characters, separators of lines
_SUFFIX = ".tmp"  # with a dot in front: a file or folder that is not in place yet


def cache_root() -> Path:
    """Folder of everything that can be computed again.

    ``$FEDHEAD_CACHE``, else ``$XDG_CACHE_HOME/fedhead``, else ``~/.cache/fedhead``.
    """
    if override := os.environ.get("FEDHEAD_CACHE"):
        return Path(override).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedhead"


def simulated_state() -> Path:
    """Folder of simulated clients' state, by run id. A finished run's state is removed."""
    return cache_root() / "clients"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown(path: Path | str) -> str:
    r"""A path or file name, made safe for terminals and logs: one line, no control characters.

    Bytes that are not UTF-8 and characters that move a terminal's cursor are escaped.

    >>> shown(os.fsdecode(b"caf\xe9\n.png"))
    'caf\\xe9\\n.png'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROLS else c
        for c in text
    )


def is_empty(folder: Path) -> bool:
    """Whether a folder is missing or holds only files that a killed process had begun to write."""
    return not folder.exists() or all(map(_is_temporary, folder.iterdir()))


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes had begun to write. No process may be writing there now."""
    for path in filter(_is_temporary, folder.glob("*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def _temporary_file(path: Path) -> Path:
    """A new file beside ``path`` that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(_SUFFIX, f".{path.name}.", path.parent)
    os.close(descriptor)
    return Path(name)


def _temporary_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(_SUFFIX, f".{path.name}.", path.parent))


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(
    path: Path, write: bytes | Callable[[Path], object], *, durable: bool = True
) -> None:
    """Write a file completely or not at all: temporary file, fsync, rename.

    Args:
        path: the destination; its folder is made if missing.
        write: the content, or a function that writes it to the path it is given.
        durable: whether the file must survive a power failure, which costs milliseconds. Without
            it, the file still survives the end of the process.

    Raises:
        OSError: the operating system refuses (disk full, no permission); no file is left behind.
    """
    temporary = _temporary_file(path)
    try:
        if isinstance(write, bytes):
            temporary.write_bytes(write)
        else:
            write(temporary)
        temporary.chmod(0o644)
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``path`` if the block succeeds.

    An existing folder of that name is replaced. If the block raises, it stays unchanged.
    """
    temporary = _temporary_folder(path)
    try:
        yield temporary
        temporary.chmod(0o755)
        for inner in (*temporary.rglob("*"), temporary):
            sync(inner)
        while not _renamed(temporary, path):
            old = _temporary_folder(path)
            with suppress(FileNotFoundError):  # another process has just done the same
                path.rename(old / "old")
            shutil.rmtree(old, ignore_errors=True)
        sync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(temporary)


def _renamed(folder: Path, path: Path) -> bool:
    """Rename a folder if possible; False if a folder of that name exists and is not empty."""
    try:
        folder.rename(path)
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def write_private(path: Path, data: bytes) -> None:
    """Write a new file for its owner alone, completely or not at all: a key, a token.

    Raises:
        FileExistsError: the file exists; secrets are never overwritten.
    """
    temporary = _temporary_file(path)
    try:
        temporary.write_bytes(data)
        sync(temporary)
        path.hardlink_to(temporary)  # a rename would overwrite an existing file
        sync(path.parent)
    finally:
        temporary.unlink()


def read_private(path: Path) -> bytes:
    """A secret file's content.

    Raises:
        PermissionError: users other than its owner may read it.
    """
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if mode & 0o077:
            problem = f"mode {mode:o} lets others read a secret; chmod 600"
            raise PermissionError(errno.EACCES, problem, str(path))
        return file.read()
