"""The authority that a deployment's devices trust, and how another takes its place.

An authority ends after ten years, or when its key may be in other hands. Another follows it in two
steps, and no device loses the server meanwhile::

    authority/ca.key, ca.crt    the one that signs
    authority/next/             the one that follows: ca.key, ca.crt, and voucher.crt, by which
                                the old one vouches for it

1. The new one signs the server's certificate, which carries the voucher: who trusts the old one
   alone still gets from there to the server. server/ca.crt holds both, and devices take it from
   delivery when they check in.
2. Once they have, the old one is dropped, and its key with it.

Each step may be killed anywhere; taken again it goes on from the files that it finds.
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
    """How far a deployment's authority has been followed by another; from its files alone.

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
    """Write a deployment's authority, unless it is there.

    Raises:
        RunError: its certificate is missing, and it has signed already.
    """
    key, certificate = _pair(folder / "authority")
    if certificate.exists():
        return  # without its key, which is kept offline, all but signing works
    if key.exists() and not (folder / "server" / "server.crt").exists():
        key.unlink()  # a killed process had begun; this key has signed nothing
    write_authority(key, certificate)


def sign_server(folder: Path, addresses: Sequence[str], days: int) -> datetime:
    """Write a new certificate for the server, by the authority that signs now.

    Returns:
        When it ends, with the authority at the latest.

    Raises:
        RunError: a key or certificate cannot be read; the authority's key is kept offline, or the
            authority has ended.
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
    """Let another authority sign, for the addresses as before; both are trusted.

    Raises:
        RunError: a key or certificate cannot be read; the authority's key is kept offline.
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
    """Trust the new authority alone; the server's certificate no longer carries the voucher.

    Raises:
        RunError: a certificate cannot be read.
    """
    authority, server = folder / "authority", folder / "server" / "server.crt"
    new = authority / "next"
    _hand_out(folder, [new / _CERTIFICATE])
    write_atomic(server, certificates_in(server)[0].public_bytes(Encoding.PEM))
    if not (new / _KEY).exists():  # it is kept offline, and the old one is of no use any more
        (authority / _KEY).unlink(missing_ok=True)
    (new / _CERTIFICATE).replace(authority / _CERTIFICATE)
    _finish(authority)


def spread(folder: Path) -> None:
    """Put the authorities to trust where the server has them, and devices not yet carried away."""
    old, new = (folder / "authority" / name for name in (_CERTIFICATE, f"next/{_CERTIFICATE}"))
    if not new.is_file():
        _hand_out(folder, [old])
    else:
        # Before the server has a list there is no next, so its list says how far this has come.
        _hand_out(folder, [new] if stage(folder) == "dropping" else [old, new])


def expiries(server: Path) -> dict[str, datetime]:
    """When the server's certificate ends, and the authority that signs.

    Raises:
        RunError: a certificate cannot be read.
    """
    return {
        "server's certificate": certificates_in(server / "server.crt")[0].not_valid_after_utc,
        "authority": end_of_trust(server / _CERTIFICATE),
    }


def end_of_trust(authorities: Path) -> datetime:
    """When the last of the authorities in a file ends.

    Raises:
        RunError: a certificate cannot be read.
    """
    return max(certificate.not_valid_after_utc for certificate in certificates_in(authorities))


def expiry_warnings(ends: Mapping[str, datetime]) -> list[str]:
    """A line for each that ends within 30 days, by the names that ``expiries`` has."""
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
    """The pair of an authority that is to sign.

    Raises:
        RunError: its key is not there.
    """
    key, certificate = _pair(folder)
    if not key.is_file():
        raise RunError(f"{key} is missing, and is needed to sign: bring it back for this")
    return key, certificate


def _finish(authority: Path) -> None:
    """Move the key too, once an authority's certificate has taken the old one's place."""
    new = authority / "next"
    if new.is_dir() and not (new / _CERTIFICATE).exists():
        if (new / _KEY).exists():
            (new / _KEY).replace(authority / _KEY)
        shutil.rmtree(new)


def _hand_out(folder: Path, certificates: Sequence[Path]) -> None:
    trusted = b"".join(path.read_bytes() for path in certificates)
    for place in (folder / "server", *sorted((folder / "devices").glob("[!.]*"))):
        if place.is_dir():
            write_atomic(place / _CERTIFICATE, trusted)
