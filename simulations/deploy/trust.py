"""The public keys that a deployment's devices trust: one, or two while keys change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import ConfigError
from common.files import write_atomic
from common.signing.trust import MAX_KEYS, TrustedKeys, key_id, read_public_key
from simulations.deploy.settings import phone_folders

__all__ = ["SigningState", "read_keys", "signing_state", "trusted_of", "write_trusted"]


def trusted_of(folder: Path) -> Path:
    """The folder of public keys in a server's or a device's folder."""
    return folder / "trusted"


@dataclass(frozen=True)
class SigningState:
    """The signatures that a deployment needs for models and backbones.

    Attributes:
        keys: ids of the trusted keys; empty: no signatures are needed.
    """

    keys: tuple[str, ...]

    def __str__(self) -> str:
        if self.keys:
            # A device carried away before that is not reached, and no check-in names its keys.
            return (
                f"signed: devices take only files signed by key {' or '.join(self.keys)}, once "
                "they have got trusted/ from their folder here"
            )
        return (
            "unsigned: devices take any file from this server, even one from an intruder; see "
            "Signing in the deployment's README.md"
        )


def signing_state(folder: Path) -> SigningState:
    """The signatures that a server's or a device's folder asks for.

    Raises:
        SignatureError: the keys in it cannot be used.
    """
    keys = TrustedKeys.where_there_are(trusted_of(folder))
    return SigningState(tuple(keys.keys) if keys else ())


def read_keys(files: Sequence[Path]) -> dict[str, bytes]:
    """Public keys as PEM, by id.

    Raises:
        ConfigError: there are more than two.
        SignatureError: a file is not such a key.
    """
    keys = {key_id(key): key for key in map(read_public_key, files)}
    if len(keys) > MAX_KEYS:
        raise ConfigError(
            [f"--trust names {len(keys)} keys, expected {MAX_KEYS} at most: the current, the next"],
            "deployment",
        )
    pem = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    return {name: key.public_bytes(*pem) for name, key in keys.items()}


def write_trusted(folder: Path, keys: dict[str, bytes]) -> None:
    """Replace the trusted keys of all of a deployment's devices and phones, and last of its server.

    Args:
        folder: the deployment's folder.
        keys: from ``read_keys``; empty: the server's keys, for new devices.
    """
    server = trusted_of(folder / "server")
    devices = sorted(path for path in (folder / "devices").iterdir() if path.is_dir())
    targets = [*map(trusted_of, [*devices, *phone_folders(folder)]), server]
    if not keys:
        if not server.exists():
            return
        keys = {path.stem: path.read_bytes() for path in server.glob("*.pub")}
        targets = [path for path in targets if not path.exists()]
    for target in targets:
        _exchange(target, keys)


def _exchange(target: Path, keys: dict[str, bytes]) -> None:
    """Replace keys so that one or two are there at any moment, as none would mean unsigned."""
    stale = [path for path in sorted(target.glob("*.pub")) if path.stem not in keys]
    for name, pem in keys.items():
        if stale and len([*target.glob("*.pub")]) == MAX_KEYS:
            stale.pop().unlink()
        write_atomic(target / f"{name}.pub", pem)
    for path in stale:
        path.unlink()
