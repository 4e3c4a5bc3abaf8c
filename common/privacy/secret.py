"""The file of a run's secret, from which its noise is drawn.

Whoever has the secret can take the noise off what was released. A run needs it until it ends, so
that a round can be done again with the same noise.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from common.errors import DamagedError, RunError
from common.files import read_private, shown, sync, write_private
from common.privacy.noise import SECRET_BYTES
from common.readback import own_check

__all__ = ["destroy_secret", "keep_secret"]

_CHECK_BYTES = 16  # of SHA-256, behind the secret


@own_check("privacy.secret of a run")
def keep_secret(path: Path) -> bytes:
    """A run's secret: what the file holds, or else a new one from the operating system.

    The file appears whole, for its owner alone, and is never written over. If two processes make
    it at once, both get the same.

    Args:
        path: the file; its folder is made if missing.

    Returns:
        ``SECRET_BYTES`` bytes.

    Raises:
        RunError: users other than the file's owner may read it, or it lies elsewhere.
        DamagedError: it is no secret, or was changed: other noise would be drawn from it.
        OSError: it cannot be read or written.
    """
    if path.is_symlink():
        raise RunError(
            f"{shown(path)} is a link: what it leads to would outlive the run, and with it the "
            "run's noise can be taken off; the secret is to lie in the run folder itself"
        )
    if not path.exists():
        with suppress(FileExistsError):
            write_private(path, _with_check(os.urandom(SECRET_BYTES)))
    try:
        content = read_private(path)
    except PermissionError as exc:
        if os.access(path, os.R_OK):
            raise RunError(
                f"{shown(path)}: {exc.strerror}. Whoever has read this secret can take the run's "
                "noise off: if others use this machine, begin a new run in another folder"
            ) from exc
        raise
    secret = content[:SECRET_BYTES]
    if content != _with_check(secret):
        problem = f"{len(content)} bytes that are no secret; begin a new run in another folder"
        raise DamagedError(shown(path), problem)
    return secret


def _with_check(secret: bytes) -> bytes:
    return secret + hashlib.sha256(secret).digest()[:_CHECK_BYTES]


def destroy_secret(path: Path) -> None:
    """Remove a secret, and the copies that a killed process may have left.

    The operating system forgets the file. A disk may keep its bytes until it needs the place.

    Raises:
        OSError: a file cannot be removed.
    """
    for copy in path.parent.glob(f".{path.name}.*.tmp"):
        copy.unlink(missing_ok=True)
    if path.exists():
        path.unlink()
        sync(path.parent)
