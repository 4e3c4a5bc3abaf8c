"""The service of ``delivery.proto`` for grpcio: stub, handlers, channel options.

It is written by hand, so only the messages are generated code. After a change of the .proto, make
``delivery_pb2`` again with grpcio-tools (for the oldest protobuf to be supported):

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
from common.grpc_options import channel_options, server_options

__all__ = ["CHANNEL_OPTIONS", "LEAST_BYTES", "SERVER_OPTIONS", "Servicer", "Stub", "handlers"]

_SERVICE = "fedhead.delivery.v1.Delivery"

LEAST_BYTES = 1024
"""A download that gets fewer bytes in a minute has stalled and is ended."""

# A card has up to 8 MiB.
CHANNEL_OPTIONS = channel_options(9 << 20)
# Requests are small: a name and a few numbers.
SERVER_OPTIONS = server_options(64 << 10)


class Servicer(Protocol):
    """What a server implements."""

    def latest(self, request: LatestRequest, context: grpc.ServicerContext) -> Artifact:
        """The newest version."""
        ...

    def download(self, request: DownloadRequest, context: grpc.ServicerContext) -> Iterator[Chunk]:
        """A version's bytes, from an offset on."""
        ...

    def report(self, request: ReportRequest, context: grpc.ServicerContext) -> ReportReply:
        """Take a device's accuracy."""
        ...

    def check_in(self, request: CheckInRequest, context: grpc.ServicerContext) -> CheckInReply:
        """Take what a device runs and trusts; answer which authorities it is to trust."""
        ...


def handlers(servicer: Servicer) -> Iterable[grpc.GenericRpcHandler]:
    """The service, for ``grpc.Server.add_generic_rpc_handlers``."""
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
