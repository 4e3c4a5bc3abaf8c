"""The authority that a deployment's devices trust, and how a new one replaces it.

An authority must be replaced after ten years, or when its key may be in wrong hands. A new one
replaces it in two steps, and no device loses the server meanwhile::

    authority/ca.key, ca.crt    the present authority
    authority/next/             the new one: ca.key, ca.crt, and voucher.crt, its certificate
                                signed by the old one

1. The new one signs the server's certificate, and the voucher is sent with it. So a device that
   trusts only the old one still trusts the server. server/ca.crt holds both authorities, and
   devices fetch it from delivery when they check in.
2. When all devices have it, the old one is dropped together with its key.

Each step may be killed at any point. A repeated step continues from the files that it finds.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import RunError
from common.files import remove_temporary, write_atomic, write_folder
from simulations.deploy.certificates import (
    addresses_of,
    certificates_in,
    vouch,
    write_authority,
    write_server,
)

__all__ = [
    "Stage",
    "drop_old",
    "end_of_trust",
    "ensure_authority",
    "expiries",
    "expiry_warnings",
    "follow",
    "sign_server",
    "spread",
    "stage",
]

Stage = Literal["settled", "begun", "both trusted", "dropping"]

_KEY, _CERTIFICATE, _VOUCHER = "ca.key", "ca.crt", "voucher.crt"
_WARNING = timedelta(days=30)

_REMEDIES = {
    "server's certificate": "fedhead fleet DEPLOYMENT renew",
    "authority": "fedhead fleet DEPLOYMENT renew --authority",
}


def stage(folder: Path) -> Stage:
    """The stage of the change of a deployment's authority, read from its files.

    Raises:
        RunError: a certificate cannot be read.
    """
    authority, server = folder / "authority", folder / "server"
    if not (authority / "next" / _CERTIFICATE).is_file():
        return "settled"
    old = certificates_in(authority / _CERTIFICATE)[0]
    new = certificates_in(authority / "next" / _CERTIFICATE)[0]
    if old not in certificates_in(server / _CERTIFICATE):
        return "dropping"
    signed = certificates_in(server / "server.crt")[0].issuer == new.subject
    return "both trusted" if signed else "begun"


def ensure_authority(folder: Path) -> None:
    """Write a deployment's authority, unless it exists.

    Raises:
        RunError: its certificate is missing although it has signed something.
    """
    key, certificate = _pair(folder / "authority")
    if certificate.exists():
        return  # its key may be kept offline; only signing needs it
    if key.exists() and not (folder / "server" / "server.crt").exists():
        key.unlink()  # left by a killed process; this key has signed nothing
    write_authority(key, certificate)


def sign_server(folder: Path, addresses: Sequence[str], days: int) -> datetime:
    """Write a new certificate for the server, signed by the present authority.

    Returns:
        The time when it ends, which is not later than the authority's end.

    Raises:
        RunError: a key or certificate cannot be read, for example because the authority's key is
            kept offline; or the authority has ended.
    """
    signer, chain = folder / "authority", b""
    _finish(signer)
    if (signer / "next" / _CERTIFICATE).is_file():
        signer /= "next"
        chain = b"" if stage(folder) == "dropping" else (signer / _VOUCHER).read_bytes()
    server = folder / "server"
    return write_server(
        _signing(signer), server / "server.key", server / "server.crt", addresses, days, chain
    )


def follow(folder: Path, days: int) -> None:
    """Make a new authority that signs from now on, for the same addresses; both are trusted.

    Raises:
        RunError: a key or certificate cannot be read, for example because the authority's key is
            kept offline.
    """
    authority = folder / "authority"
    if stage(folder) == "settled":
        _finish(authority)
        remove_temporary(authority)
        old = _signing(authority)
        with write_folder(authority / "next") as new:
            write_authority(*_pair(new))
            (new / _VOUCHER).write_bytes(vouch(old, new / _CERTIFICATE))
    spread(folder)
    sign_server(folder, addresses_of(folder / "server" / "server.crt"), days)


def drop_old(folder: Path) -> None:
    """Trust only the new authority, and remove the voucher from the server's certificate.

    Raises:
        RunError: a certificate cannot be read.
    """
    authority, server = folder / "authority", folder / "server" / "server.crt"
    new = authority / "next"
    _hand_out(folder, [new / _CERTIFICATE])
    write_atomic(server, certificates_in(server)[0].public_bytes(Encoding.PEM))
    if not (new / _KEY).exists():  # it is kept offline; the old key is of no use any more
        (authority / _KEY).unlink(missing_ok=True)
    (new / _CERTIFICATE).replace(authority / _CERTIFICATE)
    _finish(authority)


def spread(folder: Path) -> None:
    """Write the trusted authorities to the server's folder, and to those of devices and phones."""
    old, new = (folder / "authority" / name for name in (_CERTIFICATE, f"next/{_CERTIFICATE}"))
    if not new.is_file():
        _hand_out(folder, [old])
    else:
        # The server's list is written first, so it shows how far a killed process had come.
        _hand_out(folder, [new] if stage(folder) == "dropping" else [old, new])


def expiries(server: Path) -> dict[str, datetime]:
    """The times when the server's certificate and the signing authority end.

    Raises:
        RunError: a certificate cannot be read.
    """
    return {
        "server's certificate": certificates_in(server / "server.crt")[0].not_valid_after_utc,
        "authority": end_of_trust(server / _CERTIFICATE),
    }


def end_of_trust(authorities: Path) -> datetime:
    """The time when the last of the authorities in a file ends.

    Raises:
        RunError: a certificate cannot be read.
    """
    return max(certificate.not_valid_after_utc for certificate in certificates_in(authorities))


def expiry_warnings(ends: Mapping[str, datetime]) -> list[str]:
    """A line for each that ends within 30 days; ``ends`` has the names of ``expiries``."""
    now = datetime.now(UTC)
    lines = []
    for name, end in ends.items():
        if end - now < _WARNING:
            when = f"ended on {end:%Y-%m-%d}" if end < now else f"ends on {end:%Y-%m-%d}"
            lines.append(f"the {name} {when}: {_REMEDIES[name]}")
    return lines


def _pair(folder: Path) -> tuple[Path, Path]:
    return folder / _KEY, folder / _CERTIFICATE


def _signing(folder: Path) -> tuple[Path, Path]:
    """Key and certificate of the authority that signs.

    Raises:
        RunError: its key is missing.
    """
    key, certificate = _pair(folder)
    if not key.is_file():
        raise RunError(f"{key} is missing but needed to sign: put it back for this command")
    return key, certificate


def _finish(authority: Path) -> None:
    """Move the new key too, once the new certificate has replaced the old one."""
    new = authority / "next"
    if new.is_dir() and not (new / _CERTIFICATE).exists():
        if (new / _KEY).exists():
            (new / _KEY).replace(authority / _KEY)
        shutil.rmtree(new)


def _hand_out(folder: Path, certificates: Sequence[Path]) -> None:
    trusted = b"".join(path.read_bytes() for path in certificates)
    places = [place for kind in ("devices", "phones") for place in (folder / kind).glob("[!.]*")]
    for place in (folder / "server", *sorted(places)):
        file = place / _CERTIFICATE
        if place.is_dir() and not (file.exists() and file.read_bytes() == trusted):
            write_atomic(file, trusted)
