"""A device's connection to the delivery service. Every failure is one clear line."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from client.delivery.watch import Watch
from common.delivery import delivery_pb2 as pb
from common.delivery.versions import Artifact
from common.delivery.wire import CHANNEL_OPTIONS, Stub
from common.errors import DeliveryError
from common.files import read_private
from common.signing.statement import Signed
from common.words import one_line

__all__ = [
    "DeliveryInterruptedError",
    "Explained",
    "Remote",
    "read_authority",
    "read_token",
    "why_unavailable",
]

_TIMEOUT_SECONDS = 30
# Longer than the longest pause that a server's rate limit causes.
_STALL_SECONDS = 60.0
_LONGEST_ANSWER = 160  # characters of a server's text
_WORTH_ANOTHER_TRY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    # The code of a stream whose connection broke.
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
# Texts of BoringSSL and gRPC, in newer and older releases. The first that fits is the most exact.
_NOT_TRUSTED = {
    "certificate has expired": "its certificate, or its authority's, has expired",
    "certificate is not yet valid": "its certificate is not valid yet; is this clock right?",
    "CERTIFICATE_VERIFY_FAILED": "no authority in {authority} has signed its certificate",
    "Hostname Verification": "its certificate is for another name",
    "is not in peer certificate": "its certificate is for another name",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
}
# gRPC's text around the cause of a failed connection; our line says it already.
_NO_CONNECTION = re.compile(
    r"(?:failed to connect to all addresses; last error: [A-Z_]+: \S+ "
    r"(?:Failed to connect to remote host: )?|errors resolving .*: |DNS resolution failed .*: )"
    r"(.*?)]?$",
    re.DOTALL,
)


class DeliveryInterruptedError(DeliveryError):
    """A temporary problem of the network or the server; another try may succeed."""


def read_authority(path: Path) -> bytes:
    """The certificates of the authorities to trust.

    Raises:
        DeliveryError: the file holds no certificate.
        OSError: it cannot be read.
    """
    root = path.read_bytes()
    # Otherwise gRPC would trust the machine's list of authorities, or give a vague error.
    if b"BEGIN CERTIFICATE" not in root:
        raise DeliveryError(f"{path}: not a certificate in PEM")
    return root


def read_token(path: Path) -> str:
    """A device's token.

    Raises:
        DeliveryError: the file holds something else.
        OSError: it cannot be read, or users other than its owner can read it.
    """
    secret = read_private(path).strip()
    if not re.fullmatch(rb"[!-~]*", secret):  # gRPC could not send other bytes
        raise DeliveryError(f"{path}: not a token")
    return secret.decode("ascii")


def untrusted(details: str, authority: Path) -> str:
    """Why a server is not trusted, from gRPC's details; empty: that is not the problem."""
    for sign, why in _NOT_TRUSTED.items():
        if sign in details:
            return f"not trusted: {why.format(authority=authority)}"
    return ""


def why_unavailable(details: str, authority: Path) -> str:
    """What gRPC's details of UNAVAILABLE mean, in few words."""
    reached = _NO_CONNECTION.sub(r"cannot be reached (\1)", details)
    return untrusted(details, authority) or reached


class Explained:
    """Turns failed calls to a server into errors of one line.

    Args:
        address: of the server.
        authority: file of the authorities that it must be trusted by.
        cancelled: what CANCELLED means; empty: another try may succeed.
    """

    def __init__(self, address: str, authority: Path, cancelled: str = "") -> None:
        self._address, self._authority, self._cancelled = address, authority, cancelled

    @contextmanager
    def failures(self, task: object, watch: Watch | None = None) -> Iterator[None]:
        """Turn a task's failure into one line; a watch may have ended it."""
        try:
            yield
        except grpc.RpcError as exc:
            # grpc's exceptions are both an error and a call.
            if not isinstance(exc, grpc.Call):
                raise
            if watch and watch.has_ended:
                stalled = f"hardly any content has arrived for {watch.seconds:g} s"
                raise self.interrupted(task, stalled) from exc
            raise self._explain(task, exc.code(), exc.details() or "") from exc

    def interrupted(self, task: object, why: str) -> DeliveryInterruptedError:
        """A problem of a task that another try may not have."""
        return DeliveryInterruptedError(f"{self._address}: {task}: {why}")

    def _explain(self, task: object, code: grpc.StatusCode, details: str) -> DeliveryError:
        if code is grpc.StatusCode.UNAVAILABLE:
            if why := untrusted(details, self._authority):
                return DeliveryError(f"{self._address}: {why}")
            details = why_unavailable(details, self._authority)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            details = f"no answer within {_TIMEOUT_SECONDS} s"
        if code is grpc.StatusCode.CANCELLED and self._cancelled:
            return DeliveryError(f"{self._address}: {task}: {self._cancelled}")
        said = one_line(details, _LONGEST_ANSWER) or code.name
        if code in _WORTH_ANOTHER_TRY or code is grpc.StatusCode.CANCELLED:
            return self.interrupted(task, said)
        return DeliveryError(f"{self._address}: {task}: {said}")


class Remote:
    """A connection to a delivery server.

    Args:
        address: host and port; the host must be a name in the server's certificate.
        authority: file with PEM certificates of the only authorities to trust.
        token: file of the device's token; refused if users other than its owner can read it.
        stall_seconds: a download with hardly any content in this time is ended.

    Raises:
        DeliveryError: a file does not hold a certificate or a token.
        OSError: a file cannot be read.
    """

    def __init__(
        self,
        address: str,
        *,
        authority: Path,
        token: Path,
        stall_seconds: float = _STALL_SECONDS,
    ) -> None:
        self._address = address
        self._errors = Explained(
            address,
            authority,
            cancelled="another download with this token has begun, or this one was too slow",
        )
        self._stall_seconds = stall_seconds
        root = read_authority(authority)
        self._metadata = (("authorization", f"Bearer {read_token(token)}"),)
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
            DeliveryInterruptedError: another try may succeed.
            DeliveryError: the server refuses, is not trusted, or answers something else.
        """
        with self._errors.failures(name):
            reply = self._stub.latest(
                pb.LatestRequest(name=name), metadata=self._metadata, timeout=_TIMEOUT_SECONDS
            )
        if reply.name != name:
            raise DeliveryError(
                f"{self._address}: was asked for {name}, but answers with {reply.name[:80]!r}"
            )
        signed = Signed(reply.statement, reply.signature)
        return Artifact(
            reply.name,
            reply.version,
            reply.size,
            reply.sha256,
            reply.card,
            signed if reply.statement else None,
        )

    def download(self, artifact: Artifact, offset: int) -> Generator[bytes, None, None]:
        """The file's bytes from an offset on, as they arrive.

        Raises:
            DeliveryInterruptedError, DeliveryError: as in ``latest``; earlier bytes stay valid.
        """
        request = pb.DownloadRequest(name=artifact.name, version=artifact.version, offset=offset)
        call = self._stub.download(request, metadata=self._metadata)
        with (
            Watch(call.cancel, self._stall_seconds) as watch,
            self._errors.failures(artifact, watch),
        ):
            try:
                for chunk in call:
                    if not chunk.data:  # with empty pieces a server could hold a device for ever
                        raise self._errors.interrupted(artifact, "an empty piece has arrived")
                    watch.passed(len(chunk.data))
                    yield chunk.data
            finally:
                call.cancel()

    def report(
        self, artifact: Artifact, *, num_examples: int, accuracy: float, held_out: bool
    ) -> None:
        """Report a version's accuracy on the device's own examples.

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
        with self._errors.failures(f"report on {artifact}"):
            self._stub.report(request, metadata=self._metadata, timeout=_TIMEOUT_SECONDS)

    def check_in(
        self, app: str, authorities_sha256: str, in_use: Mapping[str, int]
    ) -> tuple[bytes, bytes]:
        """Report what this device runs and trusts.

        Args:
            app: program and version.
            authorities_sha256: SHA-256 of the file of authorities.
            in_use: the current version of each artifact.

        Returns:
            The file of authorities to trust from now on, empty if it is the reported one; and the
            voucher for a new authority in it.

        Raises:
            DeliveryInterruptedError, DeliveryError: as ``latest``.
        """
        request = pb.CheckInRequest(
            app=app, authorities_sha256=authorities_sha256, in_use=dict(in_use)
        )
        with self._errors.failures("check-in"):
            reply = self._stub.check_in(request, metadata=self._metadata, timeout=_TIMEOUT_SECONDS)
        return reply.authorities, reply.voucher
