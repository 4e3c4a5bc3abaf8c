"""The certificate that a running server shows at its doors, taken up anew when its file changes."""

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
    """What both doors show.

    Flower's own processes, and a run that is under way, keep the list of authorities with which
    they began, so the operators' door goes on showing each voucher that it has shown: from any
    authority that was trusted since the start there is a way to the certificate.

    Args:
        server: the server's folder.
        devices: of the devices' door.
        operators: of the operators' door.

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
        """Take up a certificate that has changed, for connections from now on.

        Returns:
            Whether it had.

        Raises:
            RunError: it is no certificate for the server's key; the one before stays.
        """
        content = self._file.read_bytes()
        if content == self._content:
            return False
        self._content = content  # what is wrong with it is said once
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
            raise RunError(f"{self._file} cannot be shown, the one before is: {exc}") from exc
        self._vouchers = vouchers
        return True


async def keep_presented(server: Path, presented: Presented, say: Callable[[str], None]) -> None:
    """Take up what changes, and warn each day of what ends soon; until it is cancelled."""
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
