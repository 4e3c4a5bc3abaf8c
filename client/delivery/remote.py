"""The delivery service as a device sees it; every failure is one clear line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from common.delivery import delivery_pb2 as pb
from common.delivery.versions import Artifact
from common.delivery.wire import CHANNEL_OPTIONS, Stub
from common.errors import DeliveryError
from common.files import read_private
from common.signing.statement import Signed

__all__ = ["DeliveryInterruptedError", "Remote"]

_TIMEOUT_SECONDS = 30
_WORTH_ANOTHER_TRY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    # What is left of a stream whose connection broke.
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
# As BoringSSL and gRPC put it: authority or date; name, in newer and older releases; no TLS at all.
_NOT_TRUSTED = (
    "CERTIFICATE_VERIFY_FAILED",
    "Hostname Verification",
    "is not in peer certificate",
    "WRONG_VERSION_NUMBER",
)


class DeliveryInterruptedError(DeliveryError):
    """The network's or the server's passing trouble: worth another try."""


class Remote:
    """A connection to a delivery server.

    Args:
        address: host and port; the host must be a name in the server's certificate.
        authority: PEM certificates of the only authorities to trust.
        token: file of the device's token; refused if others than its owner can read it.

    Raises:
        DeliveryError: the authority's file holds no certificate.
        OSError: a file cannot be read.
    """

    def __init__(self, address: str, *, authority: Path, token: Path) -> None:
        self._address = address
        self._authority = authority
        root = authority.read_bytes()
        # Else gRPC would trust the machine's own list of authorities, or say little.
        if b"BEGIN CERTIFICATE" not in root:
            raise DeliveryError(f"{authority}: not a certificate in PEM")
        secret = read_private(token).decode().strip()
        self._metadata = (("authorization", f"Bearer {secret}"),)
        self._channel = grpc.secure_channel(
            address, grpc.ssl_channel_credentials(root), CHANNEL_OPTIONS
        )
        self._stub = Stub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def latest(self, name: str) -> Artifact:
        """The newest version.

        Raises:
            DeliveryInterruptedError: worth another try.
            DeliveryError: the server refuses, is not to be trusted, or answers something else.
        """
        with self._failures():
            reply = self._stub.latest(
                pb.LatestRequest(name=name), metadata=self._metadata, timeout=_TIMEOUT_SECONDS
            )
        if reply.name != name:
            raise DeliveryError(f"{self._address}: was asked for {name}, answers {reply.name}")
        signed = Signed(reply.statement, reply.signature)
        return Artifact(
            reply.name,
            reply.version,
            reply.size,
            reply.sha256,
            reply.card,
            signed if reply.statement else None,
        )

    def download(self, artifact: Artifact, offset: int) -> Iterator[bytes]:
        """The file's bytes from an offset on, as they come.

        Raises:
            DeliveryInterruptedError, DeliveryError: as ``latest``; the bytes before it are good.
        """
        request = pb.DownloadRequest(name=artifact.name, version=artifact.version, offset=offset)
        with self._failures():
            for chunk in self._stub.download(request, metadata=self._metadata):
                yield chunk.data

    def report(
        self, artifact: Artifact, *, num_examples: int, accuracy: float, held_out: bool
    ) -> None:
        """Tell how often a version is right on the device's own examples.

        Args:
            artifact: the version.
            num_examples: at least 1.
            accuracy: in [0, 1].
            held_out: whether the device kept all of them out of its last training.

        Raises:
            DeliveryInterruptedError, DeliveryError: as ``latest``.
        """
        request = pb.ReportRequest(
            name=artifact.name,
            version=artifact.version,
            num_examples=num_examples,
            accuracy=accuracy,
            held_out=held_out,
        )
        with self._failures():
            self._stub.report(request, metadata=self._metadata, timeout=_TIMEOUT_SECONDS)

    def check_in(
        self, app: str, authorities_sha256: str, in_use: Mapping[str, int]
    ) -> tuple[bytes, bytes]:
        """Tell what this device runs and trusts.

        Args:
            app: program and version.
            authorities_sha256: of the file of authorities.
            in_use: version in use, by artifact.

        Returns:
            The file of authorities to trust from now on, empty if it is the one told; and what
            vouches for a new one in it.

        Raises:
            DeliveryInterruptedError, DeliveryError: as ``latest``.
        """
        request = pb.CheckInRequest(
            app=app, authorities_sha256=authorities_sha256, in_use=dict(in_use)
        )
        with self._failures():
            reply = self._stub.check_in(request, metadata=self._metadata, timeout=_TIMEOUT_SECONDS)
        return reply.authorities, reply.voucher

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as exc:
            # What grpc raises is both an error and a call.
            if not isinstance(exc, grpc.Call):
                raise
            raise self._explain(exc.code(), exc.details() or "") from exc

    def _explain(self, code: grpc.StatusCode, details: str) -> DeliveryError:
        if code is grpc.StatusCode.UNAVAILABLE and any(sign in details for sign in _NOT_TRUSTED):
            return DeliveryError(
                f"{self._address}: not trusted: its certificate is not of an authority in "
                f"{self._authority}, is for another name or has expired, or it speaks no TLS "
                f"({details})"
            )
        if code is grpc.StatusCode.CANCELLED:
            return DeliveryError(f"{self._address}: another download with this token has begun")
        kind = DeliveryInterruptedError if code in _WORTH_ANOTHER_TRY else DeliveryError
        return kind(f"{self._address}: {details or code.name}")
