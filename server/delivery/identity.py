"""By which files devices know the server, also when they change while it runs."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from common.errors import DeliveryError
from common.files import read_private

__all__ = ["Identity"]

logger = logging.getLogger("fedhead.delivery")

_END = b"-----END CERTIFICATE-----\n"


@dataclass(frozen=True)
class Identity:
    """The files by which devices know the server; all but the key may change while it runs.

    Attributes:
        certificate: PEM, of the deployment's authority, for the names that devices use, followed
            by the voucher while one authority follows another.
        key: PEM, its private key; refused if others than its owner can read it.
        authorities: PEM, those that devices are to trust.
    """

    certificate: Path
    key: Path
    authorities: Path

    def voucher(self) -> bytes:
        """What follows the server's own certificate."""
        return self.certificate.read_bytes().partition(_END)[2]

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC, which asks at each new connection whether the certificate is still the same.

        Raises:
            DeliveryError: not a certificate and its key.
            OSError: a file cannot be read.
        """
        last = self._checked()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal last
            try:
                if self.certificate.read_bytes() == last[1]:
                    return None
                last = self._checked()
            except (DeliveryError, OSError) as exc:
                logger.warning("%s; the certificate before stays in use", exc)
                return None
            logger.info("%s: serving with the new certificate", self.certificate)
            return grpc.ssl_server_certificate_configuration([last])

        first = grpc.ssl_server_certificate_configuration([last])
        # gRPC takes None as its documentation says, which its types do not know.
        return grpc.dynamic_ssl_server_credentials(first, changed)  # type: ignore[arg-type]

    def _checked(self) -> tuple[bytes, bytes]:
        pair = read_private(self.key), self.certificate.read_bytes()
        try:
            # gRPC would say no more than that it cannot listen; the password keeps OpenSSL quiet.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.certificate, self.key, password=""
            )
        except (ssl.SSLError, ValueError) as exc:
            problem = f"{self.certificate} and {self.key}: not a certificate and its key"
            raise DeliveryError(problem) from exc
        return pair
