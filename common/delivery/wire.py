"""The service of ``delivery.proto`` for grpcio: stub, handlers, channel options.

Written out, so that of the generated code only the messages are needed. Those, ``delivery_pb2``,
are made again after a change of the .proto by grpcio-tools (of the oldest protobuf to be supported)
with

    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. common/delivery/delivery.proto
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import grpc

from common.delivery.delivery_pb2 import (
    Artifact,
    CheckInReply,
    CheckInRequest,
    Chunk,
    DownloadRequest,
    LatestRequest,
    ReportReply,
    ReportRequest,
)

__all__ = ["CHANNEL_OPTIONS", "LEAST_BYTES", "SERVER_OPTIONS", "Servicer", "Stub", "handlers"]

_SERVICE = "fedhead.delivery.v1.Delivery"

LEAST_BYTES = 1024
"""A download that brings less in a minute has stalled: a byte at a time, it would take years."""

# A dead peer is noticed within 30 s, by devices and server alike; gRPC's own default is never.
_KEEPALIVE = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)]
# A card has up to 8 MiB; gRPC's own default is 4 for all.
CHANNEL_OPTIONS = [*_KEEPALIVE, ("grpc.max_receive_message_length", 9 << 20)]
SERVER_OPTIONS = [
    *_KEEPALIVE,
    # Or the devices' keepalive counts as an attack.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Requests are a name and a few numbers.
    ("grpc.max_receive_message_length", 64 << 10),
    # A second server on the port is an error, not half of the answers.
    ("grpc.so_reuseport", 0),
]


class Servicer(Protocol):
    """What a server implements."""

    def latest(self, request: LatestRequest, context: grpc.ServicerContext) -> Artifact:
        """The newest version."""
        ...

    def download(self, request: DownloadRequest, context: grpc.ServicerContext) -> Iterator[Chunk]:
        """A version's bytes from an offset on."""
        ...

    def report(self, request: ReportRequest, context: grpc.ServicerContext) -> ReportReply:
        """A device's accuracy."""
        ...

    def check_in(self, request: CheckInRequest, context: grpc.ServicerContext) -> CheckInReply:
        """What a device runs and trusts; whom it is to trust."""
        ...


def handlers(servicer: Servicer) -> Iterable[grpc.GenericRpcHandler]:
    """The service as ``grpc.Server.add_generic_rpc_handlers`` takes it."""
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Latest": grpc.unary_unary_rpc_method_handler(
            servicer.latest, LatestRequest.FromString, Artifact.SerializeToString
        ),
        "Download": grpc.unary_stream_rpc_method_handler(
            servicer.download, DownloadRequest.FromString, Chunk.SerializeToString
        ),
        "Report": grpc.unary_unary_rpc_method_handler(
            servicer.report, ReportRequest.FromString, ReportReply.SerializeToString
        ),
        "CheckIn": grpc.unary_unary_rpc_method_handler(
            servicer.check_in, CheckInRequest.FromString, CheckInReply.SerializeToString
        ),
    }
    return (grpc.method_handlers_generic_handler(_SERVICE, methods),)


class Stub:
    """The service's methods on a channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.latest = channel.unary_unary(
            f"/{_SERVICE}/Latest", LatestRequest.SerializeToString, Artifact.FromString
        )
        self.download = channel.unary_stream(
            f"/{_SERVICE}/Download", DownloadRequest.SerializeToString, Chunk.FromString
        )
        self.report = channel.unary_unary(
            f"/{_SERVICE}/Report", ReportRequest.SerializeToString, ReportReply.FromString
        )
        self.check_in = channel.unary_unary(
            f"/{_SERVICE}/CheckIn", CheckInRequest.SerializeToString, CheckInReply.FromString
        )
