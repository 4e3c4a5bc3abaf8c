"""Access to the delivery service: strangers are refused, and devices get a few calls at once.

For a call with one request, gRPC waits for the request in a thread of the service, without a limit.
So each call is handled here as one with a stream of requests, which looks the same to callers. Then
the caller is known before the first request is waited for.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

__all__ = ["Door"]


class Door(grpc.ServerInterceptor):
    """Checks the calls of all methods.

    Args:
        device: returns the calling device; ends a stranger's call.
        most: largest number of calls of one device at once.
        seconds: a call without a request is ended after this time.
    """

    def __init__(
        self, device: Callable[[grpc.ServicerContext], str], most: int, seconds: float
    ) -> None:
        self._device = device
        self._most = most
        self._seconds = seconds
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The checked method; None if there is no such method."""
        method = continuation(handler_call_details)
        if method is None:
            return None
        coding = method.request_deserializer, method.response_serializer
        if method.unary_stream:
            stream = self._stream(method.unary_stream)
            return grpc.stream_stream_rpc_method_handler(stream, *coding)
        if method.unary_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary(method.unary_unary), *coding)
        return None

    def _unary(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def behind(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with self._inside(context):
                return method(self._first(requests, context), context)

        return behind

    def _stream(self, method: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def behind(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._inside(context):
                yield from method(self._first(requests, context), context)

        return behind

    @contextmanager
    def _inside(self, context: grpc.ServicerContext) -> Iterator[None]:
        device = self._device(context)
        with self._lock:
            has_room = self._calls[device] < self._most
            self._calls[device] += has_room
        if not has_room:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at once")
        try:
            yield
        finally:
            with self._lock:
                self._calls[device] -= 1

    def _first(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        end = threading.Timer(self._seconds, context.cancel)
        end.daemon = True
        end.start()
        try:
            request = next(requests, None)
        finally:
            end.cancel()
        if request is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a call without a request")
        return request
