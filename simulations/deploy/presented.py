"""The certificate that a running server presents, reloaded when its file changes."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import RunError
from simulations.deploy.authority import expiries, expiry_warnings
from simulations.deploy.certificates import certificates_in

__all__ = ["Presented", "keep_presented"]

_LOOK_SECONDS = 2.0
_WARN_SECONDS = 86_400.0


class Presented:
    """The certificate at both ports.

    Flower's processes, and a run under way, keep the list of authorities with which they began. So
    the operators' port keeps presenting every voucher that it has presented: any authority that was
    trusted since the start is then linked to the certificate.

    Args:
        server: the server's folder.
        devices: TLS context of the devices' port.
        operators: TLS context of the operators' port.

    Raises:
        RunError: the certificate cannot be read.
    """

    def __init__(self, server: Path, devices: ssl.SSLContext, operators: ssl.SSLContext) -> None:
        self._server, self._devices, self._operators = server, devices, operators
        self._content = self._file.read_bytes()
        self._vouchers = certificates_in(self._file)[1:]

    @property
    def _file(self) -> Path:
        return self._server / "server.crt"

    def refresh(self) -> bool:
        """Load a changed certificate for new connections.

        Returns:
            Whether it had changed.

        Raises:
            RunError: it is not a certificate for the server's key; the previous one stays.
        """
        content = self._file.read_bytes()
        if content == self._content:
            return False
        self._content = content  # set first, so that a problem is reported once
        found = certificates_in(self._file)
        vouchers = [*self._vouchers, *(v for v in found[1:] if v not in self._vouchers)]
        key = self._server / "server.key"
        try:
            self._devices.load_cert_chain(self._file, key)
            with tempfile.NamedTemporaryFile() as chain:
                for certificate in (found[0], *vouchers):
                    chain.write(certificate.public_bytes(Encoding.PEM))
                chain.flush()
                self._operators.load_cert_chain(chain.name, key)
        except (OSError, ssl.SSLError) as exc:
            raise RunError(f"{self._file} cannot be used, the previous one stays: {exc}") from exc
        self._vouchers = vouchers
        return True


async def keep_presented(server: Path, presented: Presented, say: Callable[[str], None]) -> None:
    """Until cancelled, load changed certificates, and warn each day about those that end soon."""
    warned = -_WARN_SECONDS
    while True:
        try:
            if presented.refresh():
                say(f"{server / 'server.crt'}: the new certificate is in use")
                warned = -_WARN_SECONDS
            if time.monotonic() - warned > _WARN_SECONDS:
                warned = time.monotonic()
                for line in expiry_warnings(expiries(server)):
                    say(f"warning: {line}")
        except (OSError, RunError) as exc:
            say(f"warning: {exc}")
        await asyncio.sleep(_LOOK_SECONDS)
