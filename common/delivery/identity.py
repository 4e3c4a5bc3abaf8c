"""The files by which devices recognize the server; they may change while it runs."""

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
    """The files by which devices recognize the server; all but the key may change while it runs.

    Attributes:
        certificate: PEM, signed by the deployment's authority for the names that devices use.
            During a change of authorities, the voucher follows it.
        key: PEM, the private key; refused if users other than its owner can read it.
        authorities: PEM, the authorities that devices are to trust.
    """

    certificate: Path
    key: Path
    authorities: Path

    def voucher(self) -> bytes:
        """The certificates behind the server's own one."""
        return self.certificate.read_bytes().partition(_END)[2]

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for gRPC, which asks for a new certificate at each new connection.

        Raises:
            DeliveryError: the files are not a certificate and its key.
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
                logger.warning("%s; the previous certificate stays in use", exc)
                return None
            logger.info("%s: serving with the new certificate", self.certificate)
            return grpc.ssl_server_certificate_configuration([last])

        first = grpc.ssl_server_certificate_configuration([last])
        # gRPC accepts None, by its documentation but not by its types.
        return grpc.dynamic_ssl_server_credentials(first, changed)  # type: ignore[arg-type]

    def _checked(self) -> tuple[bytes, bytes]:
        pair = read_private(self.key), self.certificate.read_bytes()
        try:
            # gRPC would only say that it cannot listen. The password keeps OpenSSL from asking.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.certificate, self.key, password=""
            )
        except (ssl.SSLError, ValueError) as exc:
            problem = f"{self.certificate} and {self.key}: not a certificate and its key"
            raise DeliveryError(problem) from exc
        return pair
