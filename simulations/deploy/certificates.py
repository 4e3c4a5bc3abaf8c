"""The keys of a deployment: an authority, the server's certificate, a key pair for each device.

All are on the curve P-384, which Flower's node authentication accepts. A key is written once,
readable only by its owner, and never replaced. A certificate can be renewed. authority.py replaces
an authority.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from secrets import token_hex

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import RunError
from common.files import write_atomic, write_private
from simulations.deploy import MOST_DAYS

__all__ = [
    "addresses_of",
    "certificates_in",
    "public_half",
    "vouch",
    "write_authority",
    "write_device_keys",
    "write_server",
]

# A certificate begins a little earlier, so that it is valid for devices with a slow clock too.
_CLOCK_SKEW = timedelta(hours=1)


def write_authority(key_file: Path, certificate_file: Path) -> None:
    """Write an authority's key and self-signed certificate, unless they exist.

    Raises:
        RunError: only one of the two exists.
    """
    if _both(key_file, certificate_file):
        return
    key = _new_key(key_file, PrivateFormat.PKCS8)
    # Each authority has its own name, because an old and a new one may be trusted at once.
    name = _name(f"fedhead authority {token_hex(4)}")
    end = datetime.now(UTC) + timedelta(days=MOST_DAYS)
    # It may sign the certificate of one further authority, which then signs the server's.
    write_atomic(
        certificate_file, _sign(_authority(name, name, key.public_key(), end, path_length=1), key)
    )


def vouch(old: tuple[Path, Path], new_certificate: Path) -> bytes:
    """The voucher: a new authority's certificate signed by the old authority, as PEM.

    Args:
        old: key and certificate of the trusted authority.
        new_certificate: the new authority's certificate; its key is not needed.

    Raises:
        RunError: a file cannot be read, or the old certificate is not for the old key or has
            ended.
    """
    key, issuer = _issuer(old)
    (new, *_) = certificates_in(new_certificate)
    public = new.public_key()
    if not isinstance(public, EllipticCurvePublicKey):
        raise RunError(f"{new_certificate} is not for a key on an elliptic curve")
    end = issuer.not_valid_after_utc
    return _sign(_authority(new.subject, issuer.subject, public, end, path_length=0), key)


def write_server(
    authority: tuple[Path, Path],
    key_file: Path,
    certificate_file: Path,
    addresses: Sequence[str],
    days: int,
    chain: bytes = b"",
) -> datetime:
    """Write the server's key, unless it exists, and its certificate, signed by the authority.

    Args:
        authority: key and certificate of the authority.
        key_file: the server's key.
        certificate_file: the server's certificate; it is replaced.
        addresses: host names and IP addresses of the server for devices, at least one.
        days: days for which it is valid, at most ``MOST_DAYS``; it never ends after the
            authority.
        chain: certificates that link the authority to one that devices trust, as PEM.

    Returns:
        The time when it ends.

    Raises:
        RunError: a file cannot be read, or the authority's certificate is not for its key or has
            ended.
    """
    if days > MOST_DAYS:
        raise RunError(f"a certificate for {days} days, expected at most {MOST_DAYS:,}")
    issuer_key, issuer = _issuer(authority)
    key = _read_key(key_file) if key_file.exists() else _new_key(key_file, PrivateFormat.PKCS8)
    end = min(datetime.now(UTC) + timedelta(days=days), issuer.not_valid_after_utc)
    alternatives = x509.SubjectAlternativeName([_general_name(a) for a in addresses])
    server_only = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = (
        _certificate(_name("fedhead server"), issuer.subject, key.public_key(), end)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(server_only, critical=False)
    )
    write_atomic(certificate_file, _sign(builder, issuer_key) + chain)
    return end


def write_device_keys(private_file: Path, public_file: Path) -> None:
    """Write a device's key pair in OpenSSH's format, unless it exists.

    Raises:
        RunError: only the public key exists.
    """
    if private_file.exists() and not public_file.exists():
        write_atomic(public_file, public_half(private_file))  # a killed process left only one
    elif not _both(private_file, public_file):
        key = _new_key(private_file, PrivateFormat.OpenSSH)
        write_atomic(public_file, _public_bytes(key))


def public_half(private_file: Path) -> bytes:
    """The content of a device's public key file, made from its private key.

    Raises:
        RunError: the file cannot be read as such a key.
    """
    try:
        key = load_ssh_private_key(private_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise RunError(f"{private_file} cannot be read as a device's key: {exc}") from exc
    if not isinstance(key, EllipticCurvePrivateKey):
        raise RunError(f"{private_file} is not a key on an elliptic curve")
    return _public_bytes(key)


def _public_bytes(key: EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"


def _both(key_file: Path, other: Path) -> bool:
    """Whether both files exist; False if neither does.

    Raises:
        RunError: only one exists; a new pair would replace a key.
    """
    if key_file.exists() != other.exists():
        there, missing = (key_file, other) if key_file.exists() else (other, key_file)
        raise RunError(f"{missing} is missing, and {there} is never replaced: move it away")
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
        raise RunError(f"{path} is not a key on an elliptic curve")
    return key


def certificates_in(path: Path) -> list[x509.Certificate]:
    """The certificates in a file, in order; at least one.

    Raises:
        RunError: the file cannot be read as certificates.
    """
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise RunError(f"{path} cannot be read as a certificate: {exc}") from exc


def _issuer(authority: tuple[Path, Path]) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    key, (certificate, *_) = _read_key(authority[0]), certificates_in(authority[1])
    if certificate.public_key() != key.public_key():
        raise RunError(f"{authority[1]} is not the certificate of {authority[0]}")
    if (end := certificate.not_valid_after_utc) <= datetime.now(UTC):
        raise RunError(
            f"{authority[1]} ended on {end:%Y-%m-%d} and cannot sign any more: move it and "
            f"{authority[0].name} away, make a new authority by fedhead deploy with --days, and "
            "carry its ca.crt to each device by hand"
        )
    return key, certificate


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePublicKey, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePublicKey,
    end: datetime,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    return (
        _certificate(subject, issuer, key, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
    )


def _sign(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> bytes:
    # Python 3.13 and later need it in every certificate.
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    signed = builder.add_extension(identifier, critical=False).sign(key, SHA384())
    return signed.public_bytes(Encoding.PEM)


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


def addresses_of(certificate_file: Path) -> list[str]:
    """The host names and addresses in a server's certificate, at least one.

    Raises:
        RunError: the file cannot be read as such a certificate.
    """
    (certificate, *_) = certificates_in(certificate_file)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as exc:
        raise RunError(f"{certificate_file} has no address in it") from exc
    return [str(name.value) for name in names]
