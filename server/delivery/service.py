"""The gRPC service from which devices fetch models."""

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
from common.delivery.identity import Identity
from common.delivery.tokens import device_of
from common.delivery.versions import Artifact, known_versions, read_artifact, shelf_of
from common.delivery.wire import LEAST_BYTES, SERVER_OPTIONS, handlers
from common.errors import DeliveryError
from common.files import remove_temporary
from common.listening import obstacle
from common.signing.statement import Signed
from server.delivery.checkins import CheckIn, save_check_in
from server.delivery.door import Door
from server.delivery.limits import Clock, Places, RateLimit
from server.delivery.publish import artifacts_of, tidy
from server.delivery.reports import DeviceReport, save_report

__all__ = ["Limits", "start"]

logger = logging.getLogger("fedhead.delivery")

# Size of a piece. A reader at 600 bytes a second takes one before it counts as stalled.
_CHUNK = 16 * 1024
# Within this time the rate must allow each download a piece, however many downloads there are.
_ROUND_SECONDS = 5.0
_STALL_SECONDS = 30.0
# Threads beside those of downloads: for short calls, and to refuse too many downloads.
_SHORT_CALLS = 8
# Calls of one device at once: its present calls, and remains of broken connections.
_DEVICE_CALLS = 4


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        downloads: largest number of downloads at once.
        bytes_per_second: for all downloads together.
        stall_seconds: a device that takes nothing of its download for this time loses its place
            to a waiting one, and a silent call is ended. Devices wait longer than this.

    Raises:
        DeliveryError: the rate is so low that each download would count as stalled.
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
        """Bytes of a download in one message."""
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
        """The calling device; calls of others are ended here."""
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
        # Called however the call ends. False: it has ended already.
        if not context.add_callback(lambda: self._places.leave(device, end)):
            self._places.leave(device, end)
            return
        logger.info("%s: downloads %s from byte %d", device, artifact, request.offset)
        with _open(artifact, self._shelf(artifact.name), context) as file:
            file.seek(request.offset)
            while data := file.read(self._chunk):
                self._rate.take(len(data))
                self.device(context)  # checked again, because its token may be revoked by now
                yield pb.Chunk(data=data)
                self._places.moved(device, end)
        # The place is free now, even if the reader does not take the last bytes.
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
        """The version; None: the newest."""
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
            # The answer does not tell the device the server's paths.
            logger.warning("%s", exc)
            context.abort(grpc.StatusCode.DATA_LOSS, f"{name} is damaged on the server")


def _open(artifact: Artifact, shelf: Path, context: grpc.ServicerContext) -> BinaryIO:
    """The file, checked completely before any of it is sent: it may have changed on disk."""
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
        folder: the delivery folder; versions that are published later are served too.
        address: host and port to listen on; port 0: any free one.
        identity: the server's files; its certificate may be renewed meanwhile.
        limits: limits of bytes and downloads.
        clock: clock for the rate; None: the machine's clock.

    Returns:
        The server, and the port it listens on.

    Raises:
        DeliveryError: the folder is missing, the address cannot be used, or the files are not a
            certificate and its key.
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
        # More calls are refused at once, because they would only wait in memory.
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
    """Remove unfinished files of killed processes. No other process serves the folder."""
    tidy(artifacts_of(folder))
    for place in (folder / "check-ins", *(folder / "reports").glob("*/*")):
        remove_temporary(place)
