"""The service of ``phones.proto`` for grpcio: stub, handlers, channel options, sizes.

It is written by hand, so only the messages are generated code. After a change of the .proto, make
``phones_pb2`` again as ``common.delivery.wire`` says. In its .pyi, give each plain ``Mapping`` the
types ``[str, object]``: mypy refuses it without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, Protocol

import grpc
import grpc.aio

from common.grpc_options import channel_options, server_options
from common.phones.phones_pb2 import (
    CheckInReply,
    CheckInRequest,
    FetchRequest,
    LatestRequest,
    Model,
    Part,
    Submission,
    UploadReply,
    Verdict,
)

__all__ = ["CHANNEL_OPTIONS", "INLINE_BLOB", "INLINE_UPDATE", "LARGEST_CARD", "LARGEST_MODEL",
           "LONGEST_WAIT", "PART", "SERVER_OPTIONS", "Servicer", "Stub", "handlers"]  # fmt: skip

_SERVICE = "fedhead.phones.v1.Phones"

INLINE_BLOB = 64 << 10
"""Bytes of the largest blob that a task or description brings; others are fetched."""

INLINE_UPDATE = 256 << 10
"""Bytes of the largest array that a submission brings; others are uploaded before."""

PART = 256 << 10
"""Largest number of bytes of a blob in one call."""

LARGEST_MODEL, LARGEST_CARD = 256 << 20, 8 << 20
"""Bytes of a finished model and of its card."""

LONGEST_WAIT = 30
"""Seconds for which a check-in may be held."""

CHANNEL_OPTIONS = channel_options(4 << 20)
# The largest message is a submission with a few arrays.
SERVER_OPTIONS = server_options(1 << 20)


class Servicer(Protocol):
    """What a gateway implements, as coroutines."""

    def check_in(
        self, request: CheckInRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Awaitable[CheckInReply]:
        """Something to do, or when to come back."""
        ...

    def fetch(
        self, request: FetchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Awaitable[Part]:
        """A part of a blob."""
        ...

    def upload(
        self, request: Part, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Awaitable[UploadReply]:
        """Take a part of an array."""
        ...

    def submit(
        self, request: Submission, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Awaitable[Verdict]:
        """Take a task's result."""
        ...

    def latest(
        self, request: LatestRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Awaitable[Model]:
        """The newest version of a finished model."""
        ...


def handlers(servicer: Servicer) -> Iterable[grpc.GenericRpcHandler]:
    """The service, for ``grpc.aio.Server.add_generic_rpc_handlers``."""
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.unary_unary_rpc_method_handler(
            method, request.FromString, reply.SerializeToString
        )
        for name, method, request, reply in (
            ("CheckIn", servicer.check_in, CheckInRequest, CheckInReply),
            ("Fetch", servicer.fetch, FetchRequest, Part),
            ("Upload", servicer.upload, Part, UploadReply),
            ("Submit", servicer.submit, Submission, Verdict),
            ("Latest", servicer.latest, LatestRequest, Model),
        )
    }
    return (grpc.method_handlers_generic_handler(_SERVICE, methods),)


class Stub:
    """The service's methods on a channel of ``grpc`` or of ``grpc.aio``."""

    def __init__(self, channel: Any) -> None:
        self.check_in = channel.unary_unary(
            f"/{_SERVICE}/CheckIn", CheckInRequest.SerializeToString, CheckInReply.FromString
        )
        self.fetch = channel.unary_unary(
            f"/{_SERVICE}/Fetch", FetchRequest.SerializeToString, Part.FromString
        )
        self.upload = channel.unary_unary(
            f"/{_SERVICE}/Upload", Part.SerializeToString, UploadReply.FromString
        )
        self.submit = channel.unary_unary(
            f"/{_SERVICE}/Submit", Submission.SerializeToString, Verdict.FromString
        )
        self.latest = channel.unary_unary(
            f"/{_SERVICE}/Latest", LatestRequest.SerializeToString, Model.FromString
        )
