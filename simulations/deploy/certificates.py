"""The keys of a deployment: an authority, its certificate for the server, a pair for each device.

All on the curve P-384, which Flower's node authentication takes. A key is written once, readable
by its owner alone, and never replaced; a certificate is made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import RunError
from common.files import write_atomic, write_private

__all__ = ["read_certificate", "write_authority", "write_device_keys", "write_server"]

_AUTHORITY_DAYS = 3650
# A device whose clock is a little slow must not find the certificate to lie in its future.
_CLOCK_SKEW = timedelta(hours=1)


def write_authority(key_file: Path, certificate_file: Path) -> None:
    """Write an authority's key and self-signed certificate, unless they are there.

    Raises:
        RunError: only one of the two is there.
    """
    if _both(key_file, certificate_file):
        return
    key = _new_key(key_file, PrivateFormat.PKCS8)
    name = _name("fedhead authority")
    builder = (
        _certificate(name, name, key, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
    )
    _sign(certificate_file, builder, key)


def write_server(
    authority: tuple[Path, Path],
    key_file: Path,
    certificate_file: Path,
    addresses: Sequence[str],
    days: int,
) -> None:
    """Write the server's key, unless it is there, and the authority's certificate for it.

    Args:
        authority: key and certificate of the authority.
        key_file: the server's key.
        certificate_file: replaced.
        addresses: host names and IP addresses by which devices reach the server, at least one.
        days: how long the certificate is valid.

    Raises:
        RunError: a file cannot be read, or the authority's certificate is not for its key.
    """
    issuer_key, issuer = _read_key(authority[0]), read_certificate(authority[1])
    if issuer.public_key() != issuer_key.public_key():
        raise RunError(f"{authority[1]} is not the certificate of {authority[0]}")
    key = _read_key(key_file) if key_file.exists() else _new_key(key_file, PrivateFormat.PKCS8)
    alternatives = x509.SubjectAlternativeName([_general_name(a) for a in addresses])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    server_only = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = (
        _certificate(_name("fedhead server"), issuer.subject, key, days)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(server_only, critical=False)
        .add_extension(identifier, critical=False)
    )
    _sign(certificate_file, builder, issuer_key)


def write_device_keys(private_file: Path, public_file: Path) -> None:
    """Write the pair by which a device proves who it is, in OpenSSH's format, unless it is there.

    Raises:
        RunError: only one of the two is there.
    """
    if _both(private_file, public_file):
        return
    key = _new_key(private_file, PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_atomic(public_file, public + b"\n")


def _both(key_file: Path, other: Path) -> bool:
    """Whether both files are there.

    Raises:
        RunError: one of them alone: making the pair anew would replace a key.
    """
    if key_file.exists() != other.exists():
        there, missing = (key_file, other) if key_file.exists() else (other, key_file)
        raise RunError(f"{missing} is missing, and {there} is not replaced: move it away, or both")
    return key_file.exists()


def _new_key(path: Path, form: PrivateFormat) -> EllipticCurvePrivateKey:
    key = generate_private_key(SECP384R1())
    content = key.private_bytes(Encoding.PEM, form, NoEncryption())
    write_private(path, content)
    return key


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as exc:
        raise RunError(f"{path} cannot be read as a private key: {exc}") from exc
    if not isinstance(key, EllipticCurvePrivateKey):
        raise RunError(f"{path} holds no key on an elliptic curve")
    return key


def read_certificate(path: Path) -> x509.Certificate:
    """A certificate from its file.

    Raises:
        RunError: the file holds none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise RunError(f"{path} cannot be read as a certificate: {exc}") from exc


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _sign(path: Path, builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> None:
    write_atomic(path, builder.sign(key, SHA384()).public_bytes(Encoding.PEM))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
