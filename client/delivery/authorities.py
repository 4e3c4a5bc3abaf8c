"""Check in with the server, and take the authorities that it hands out: if the old one vouches.

The delivery server is believed what it says about models, not about whom to trust: who has broken
into it, but lacks the authority's key, can make no device trust an authority of his own.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from client.delivery.remote import DeliveryInterruptedError, Remote
from common.errors import DeliveryError
from common.files import write_atomic

__all__ = ["accept", "check_in"]

_MOST = 4  # authorities; two while one follows the other
_SECONDS = 10.0


def check_in(
    remote: Remote, authorities: Path, doors: Sequence[str], *, app: str, in_use: Mapping[str, int]
) -> bool:
    """Tell what this device runs and trusts, and trust whom the server says.

    Args:
        remote: the server.
        authorities: file of those that are trusted; replaced whole or not at all.
        doors: host:port of all that this device reaches with them.
        app: program and version.
        in_use: version in use, by artifact.

    Returns:
        Whether others are trusted now.

    Raises:
        DeliveryInterruptedError: a door cannot be reached: worth another try.
        DeliveryError: the server refuses, or hands out what is not to be trusted. The file stays.
        OSError: as the operating system says.
    """
    trusted = authorities.read_bytes()
    offered, voucher = remote.check_in(app, hashlib.sha256(trusted).hexdigest(), in_use)
    if not offered:
        return False
    accept(offered, voucher, trusted)
    for door in doors:
        _check_door(door, offered)
    write_atomic(authorities, offered)
    remote.check_in(app, hashlib.sha256(offered).hexdigest(), in_use)
    return True


def accept(offered: bytes, voucher: bytes, trusted: bytes) -> None:
    """Make sure that each authority offered is trusted already, or vouched for by one that is.

    Raises:
        DeliveryError: one is not.
    """
    if not offered.isascii():
        raise DeliveryError("not a list of authorities: it holds other than ASCII text")
    now = datetime.now(UTC)
    known = _certificates(trusted)
    words = _certificates(voucher) if voucher else []
    new = _certificates(offered)
    if len(new) > _MOST:
        raise DeliveryError(f"{len(new)} authorities are offered, expected at most {_MOST}")
    for authority in new:
        if authority in known:
            continue
        name = authority.subject.rfc4514_string()
        if not _issued(authority, authority):
            raise DeliveryError(f"the new authority {name} is no authority, and is not taken")
        if not any(
            (word.subject, word.public_key()) == (authority.subject, authority.public_key())
            and now < word.not_valid_after_utc
            and any(_issued(word, old) and now < old.not_valid_after_utc for old in known)
            for word in words
        ):
            raise DeliveryError(
                f"the new authority {name} is not taken: no authority that this device trusts "
                "vouches for it"
            )


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as exc:
        raise DeliveryError(f"not a list of authorities: {exc}") from exc


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether one authority has signed the other."""
    try:
        certificate.verify_directly_issued_by(issuer)
        extensions = certificate.extensions
        return bool(extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False


def _check_door(door: str, authorities: bytes) -> None:
    """Make sure that the server as it is now would still be trusted.

    Raises:
        DeliveryInterruptedError: it cannot be reached.
        DeliveryError: it would not.
    """
    address = urlsplit(f"//{door}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authorities.decode("ascii"))
    try:
        with (
            socket.create_connection((address.hostname, address.port), _SECONDS) as link,
            context.wrap_socket(link, server_hostname=address.hostname),
        ):
            pass
    except ssl.SSLCertVerificationError as exc:
        raise DeliveryError(
            f"new authorities are not taken: {door} would not be trusted ({exc.verify_message})"
        ) from exc
    except OSError as exc:
        raise DeliveryInterruptedError(
            f"new authorities are taken once {door} can be reached ({exc})"
        ) from exc
