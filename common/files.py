"""Files that are never half-written, and where caches live."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "cache_root",
    "read_private",
    "sha256_file",
    "simulated_state",
    "sync",
    "write_atomic",
    "write_folder",
    "write_private",
]


def cache_root() -> Path:
    """Folder of everything that can be computed again.

    ``$FEDHEAD_CACHE``, else ``$XDG_CACHE_HOME/fedhead``, else ``~/.cache/fedhead``.
    """
    if override := os.environ.get("FEDHEAD_CACHE"):
        return Path(override).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedhead"


def simulated_state() -> Path:
    """Folder where simulated clients keep their state, by run id; a finished run's is removed."""
    return cache_root() / "clients"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """A file or folder, down to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(
    path: Path, write: bytes | Callable[[Path], None], *, durable: bool = True
) -> None:
    """Put a file in place whole or not at all: temporary file, fsync, rename.

    Args:
        path: the destination; its folder is made when missing.
        write: the content, or a function that writes it to the path it is given.
        durable: whether it must survive a loss of power, which costs milliseconds; without it,
            it survives that of the process.

    Raises:
        OSError: as the operating system says (disk full, no permission); nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
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
    """Fill a temporary folder that takes the place of ``path`` when the block succeeds.

    An existing folder of that name is replaced; if the block raises, it stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            if file.is_file():
                sync(file)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(old / "old")
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(path)
        sync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(temporary)


def write_private(path: Path, data: bytes) -> None:
    """A new file that only its owner can read: a key, a token.

    Raises:
        FileExistsError: there is one already; secrets are never overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        path.unlink()
        raise


def read_private(path: Path) -> bytes:
    """A secret file's content.

    Raises:
        PermissionError: others than its owner may read it.
    """
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if mode & 0o077:
            problem = f"mode {mode:o} lets others read a secret; chmod 600"
            raise PermissionError(errno.EACCES, problem, str(path))
        return file.read()
