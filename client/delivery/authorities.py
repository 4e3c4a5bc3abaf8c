"""Check in with the server and accept its new authorities, if a trusted one has signed them.

A device believes the delivery server about models, but not about authorities. An attacker who
controls the server but does not have the authority's key cannot add his own authority.
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

_MOST = 4  # authorities; a change from one to the next needs two
_SECONDS = 10.0


def check_in(
    remote: Remote, authorities: Path, doors: Sequence[str], *, app: str, in_use: Mapping[str, int]
) -> bool:
    """Report what this device runs and trusts, and accept the authorities that the server names.

    Args:
        remote: the server.
        authorities: file of trusted authorities; replaced completely or not at all.
        doors: host:port of all servers that this device checks with them.
        app: program and version.
        in_use: the current version of each artifact.

    Returns:
        Whether the trusted authorities changed.

    Raises:
        DeliveryInterruptedError: a server cannot be reached; another try may succeed.
        DeliveryError: the server refuses, or its authorities are not to be trusted. The file
            stays.
        OSError: a file cannot be read or written.
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
    """Check that each offered authority is trusted already or signed by a trusted one.

    Raises:
        DeliveryError: an authority is neither.
    """
    if not offered.isascii():
        raise DeliveryError("not a list of authorities: it is not plain ASCII text")
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
            raise DeliveryError(f"the new authority {name} is refused: it is not an authority")
        if not any(
            (word.subject, word.public_key()) == (authority.subject, authority.public_key())
            and now < word.not_valid_after_utc
            and any(_issued(word, old) and now < old.not_valid_after_utc for old in known)
            for word in words
        ):
            raise DeliveryError(
                f"the new authority {name} is refused: no authority that this device trusts has "
                "signed it"
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
    """Check that the server with its present certificate would still be trusted.

    Raises:
        DeliveryInterruptedError: the server cannot be reached.
        DeliveryError: the server would not be trusted.
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
            f"new authorities are refused: {door} would not be trusted ({exc.verify_message})"
        ) from exc
    except OSError as exc:
        raise DeliveryInterruptedError(
            f"new authorities must wait until {door} can be reached ({exc})"
        ) from exc
