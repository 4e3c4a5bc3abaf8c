"""The gRPC service that devices fetch models from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import grpc

from common.delivery import delivery_pb2 as pb
from common.delivery.versions import Artifact, known_versions, read_artifact, shelf_of
from common.delivery.wire import LEAST_BYTES, SERVER_OPTIONS, handlers
from common.errors import DeliveryError
from common.files import remove_temporary
from common.listening import obstacle
from common.signing.statement import Signed
from server.delivery.checkins import CheckIn, save_check_in
from server.delivery.door import Door
from server.delivery.identity import Identity
from server.delivery.limits import Clock, Places, RateLimit
from server.delivery.publish import artifacts_of, tidy
from server.delivery.reports import DeviceReport, save_report
from server.delivery.tokens import device_of

__all__ = ["Limits", "start"]

logger = logging.getLogger("fedhead.delivery")

# A reader at 600 bytes a second takes one before it counts as stalled.
_CHUNK = 16 * 1024
# In which the rate lets each download take a piece, however many there are.
_ROUND_SECONDS = 5.0
_STALL_SECONDS = 30.0
# Beside downloads: short calls, and refusals of downloads that are too many.
_SHORT_CALLS = 8
# Of one device, at once: what it has going on, and what is left of connections that broke.
_DEVICE_CALLS = 4


@dataclass(frozen=True)
class Limits:
    """What the service may take.

    Attributes:
        downloads: at once.
        bytes_per_second: of all downloads together.
        stall_seconds: a device that takes nothing of its download for so long loses its place
            to one that waits, and one that says nothing is sent away. Devices wait longer.

    Raises:
        DeliveryError: a rate at which each download would seem to be stalled.
    """

    downloads: int
    bytes_per_second: float
    stall_seconds: float = _STALL_SECONDS

    def __post_init__(self) -> None:
        least = 1.5 * self.downloads * LEAST_BYTES / _STALL_SECONDS
        # "not >=" also catches NaN.
        if not self.bytes_per_second >= least:
            raise DeliveryError(
                f"{self.downloads} downloads at once need {least:,.0f} bytes a second, not "
                f"{self.bytes_per_second:,.0f}"
            )

    @property
    def chunk(self) -> int:
        """Bytes of a download to send at once."""
        share = self.bytes_per_second / self.downloads
        return int(max(LEAST_BYTES, min(_CHUNK, share * _ROUND_SECONDS)))


class _Delivery:
    def __init__(self, folder: Path, identity: Identity, limits: Limits, clock: Clock) -> None:
        self._folder = folder
        self._identity = identity
        self._chunk = limits.chunk
        self._places = Places(limits.downloads, limits.stall_seconds, clock)
        self._rate = RateLimit(limits.bytes_per_second, clock)

    def device(self, context: grpc.ServicerContext) -> str:
        """Who calls; others come no further."""
        header = dict(context.invocation_metadata()).get("authorization", "")
        device = device_of(self._folder, str(header).removeprefix("Bearer "))
        if device is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not valid")
        return device

    def latest(self, request: pb.LatestRequest, context: grpc.ServicerContext) -> pb.Artifact:
        self.device(context)
        artifact = self._artifact(context, request.name)
        signed = artifact.signed or Signed(b"", b"")
        return pb.Artifact(
            name=artifact.name,
            version=artifact.version,
            size=artifact.size,
            sha256=artifact.sha256,
            card=artifact.card,
            statement=signed.statement,
            signature=signed.signature,
        )

    def download(
        self, request: pb.DownloadRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Chunk]:
        device = self.device(context)
        artifact = self._artifact(context, request.name, request.version)
        if request.offset > artifact.size:
            what = f"offset {request.offset}, but {artifact} has {artifact.size} bytes"
            context.abort(grpc.StatusCode.OUT_OF_RANGE, what)
        end = context.cancel
        if not self._places.enter(device, end):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many downloads at once")
        # However the call ends; False: it has ended already.
        if not context.add_callback(lambda: self._places.leave(device, end)):
            self._places.leave(device, end)
            return
        logger.info("%s: downloads %s from byte %d", device, artifact, request.offset)
        with _open(artifact, self._shelf(artifact.name), context) as file:
            file.seek(request.offset)
            while data := file.read(self._chunk):
                self._rate.take(len(data))
                self.device(context)  # its token may be revoked by now
                yield pb.Chunk(data=data)
                self._places.moved(device, end)
        # A reader that leaves the last bytes untaken keeps the call, not the place.
        self._places.leave(device, end)

    def report(self, request: pb.ReportRequest, context: grpc.ServicerContext) -> pb.ReportReply:
        device = self.device(context)
        artifact = self._artifact(context, request.name, request.version)
        try:
            figures = DeviceReport(
                request.num_examples, request.accuracy, held_out=request.held_out
            )
        except DeliveryError as exc:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        save_report(self._folder, artifact, device, figures)
        logger.info("%s: %s is right in %s", device, artifact, figures)
        return pb.ReportReply()

    def check_in(
        self, request: pb.CheckInRequest, context: grpc.ServicerContext
    ) -> pb.CheckInReply:
        device = self.device(context)
        try:
            words = CheckIn(request.app, request.authorities_sha256, dict(request.in_use))
        except DeliveryError as exc:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        save_check_in(self._folder, device, words)
        authorities = self._identity.authorities.read_bytes()
        if hashlib.sha256(authorities).hexdigest() == words.authorities_sha256:
            return pb.CheckInReply()
        return pb.CheckInReply(authorities=authorities, voucher=self._identity.voucher())

    def _shelf(self, name: str) -> Path:
        return shelf_of(artifacts_of(self._folder), name)

    def _artifact(
        self, context: grpc.ServicerContext, name: str, version: int | None = None
    ) -> Artifact:
        """A version, the newest if None."""
        try:
            shelf = self._shelf(name)
        except DeliveryError as exc:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        known = known_versions(shelf)
        if not known:
            context.abort(grpc.StatusCode.NOT_FOUND, f"nothing is published as {name}")
        if version is not None and version not in known:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{name} has no version {version}")
        try:
            return read_artifact(shelf, known[-1] if version is None else version)
        except DeliveryError as exc:
            # The device need not know the server's paths.
            logger.warning("%s", exc)
            context.abort(grpc.StatusCode.DATA_LOSS, f"{name} is damaged on the server")


def _open(artifact: Artifact, shelf: Path, context: grpc.ServicerContext) -> BinaryIO:
    """The file, read once before any of it goes out: the disk may have changed it."""
    path = artifact.path(shelf)
    if problem := artifact.damage(path):
        logger.warning("%s is damaged: %s", artifact, problem)
        context.abort(grpc.StatusCode.DATA_LOSS, f"{artifact} is damaged on the server")
    return path.open("rb")


def start(
    folder: Path,
    *,
    address: str,
    identity: Identity,
    limits: Limits,
    clock: Clock | None = None,
) -> tuple[grpc.Server, int]:
    """Serve a delivery folder over TLS.

    Args:
        folder: from ``publish``; what is published meanwhile is served from then on.
        address: host and port to listen on; port 0 takes a free one.
        identity: of the server; its certificate may be renewed meanwhile.
        limits: of bytes and downloads.
        clock: for the rate; the machine's own if None.

    Returns:
        The server, and the port it listens on.

    Raises:
        DeliveryError: no such folder, an address that cannot be used, or not a certificate and its
            key.
        OSError: a file cannot be read.
    """
    if not folder.is_dir():
        raise DeliveryError(f"{folder}: no such folder")
    credentials = identity.credentials()
    delivery = _Delivery(folder, identity, limits, Clock() if clock is None else clock)
    workers = limits.downloads + _SHORT_CALLS
    server = grpc.server(
        ThreadPoolExecutor(workers, thread_name_prefix="delivery"),
        interceptors=[Door(delivery.device, _DEVICE_CALLS, limits.stall_seconds)],
        options=SERVER_OPTIONS,
        # More are refused at once; they would only queue up in memory.
        maximum_concurrent_rpcs=workers,
    )
    server.add_generic_rpc_handlers(handlers(delivery))
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as exc:
        raise DeliveryError(f"cannot listen on {address}: {obstacle(address)}") from exc
    _tidy(folder)
    server.start()
    return server, port


def _tidy(folder: Path) -> None:
    """Remove what was being written when a process was killed; nobody else serves the folder."""
    tidy(artifacts_of(folder))
    for place in (folder / "check-ins", *(folder / "reports").glob("*/*")):
        remove_temporary(place)
