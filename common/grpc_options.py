"""Options of gRPC that both of fedhead's services and their callers use."""

from __future__ import annotations

__all__ = ["channel_options", "server_options"]

# Both sides notice a dead peer within 30 s; by gRPC's default they never would.
_KEEPALIVE = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)]
_LARGEST = "grpc.max_receive_message_length"


def channel_options(largest: int) -> list[tuple[str, int]]:
    """A caller's options.

    Args:
        largest: bytes of the largest reply; gRPC's default is 4 MiB.
    """
    return [*_KEEPALIVE, (_LARGEST, largest)]


def server_options(largest: int) -> list[tuple[str, int]]:
    """A service's options.

    Args:
        largest: bytes of the largest request.
    """
    return [
        *_KEEPALIVE,
        # Otherwise the callers' keepalive would count as an attack.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        (_LARGEST, largest),
        # A second server on the port must fail instead of answering half of the requests.
        ("grpc.so_reuseport", 0),
    ]
