"""A run's standard gRPC health service, for grpc_health_probe and Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from common.errors import RunError
from common.listening import obstacle
from server.record.progress import OnRound, Progress, Standing

__all__ = ["health_service"]

_SERVICES = ("", "fedhead")
_THREADS = 4  # watching clients do not occupy threads
_GRACE_SECONDS = 1.0


class _Health(HealthServicer):
    """Answers SERVING while the run can progress; the run's state is sent as initial metadata."""

    def __init__(self) -> None:
        super().__init__()
        self._standing = Standing()
        self._say(serving=False)

    def show(self, standing: Standing) -> None:
        """Answer with this state from now on, and send it to watching clients at once."""
        before, self._standing = self._standing, standing
        if standing.can_progress != before.can_progress:
            self._say(serving=standing.can_progress)

    def _say(self, *, serving: bool) -> None:
        response = HealthCheckResponse
        for service in _SERVICES:
            self.set(service, response.SERVING if serving else response.NOT_SERVING)

    def Check(self, request: HealthCheckRequest, context: Any) -> Any:  # noqa: N802
        self._send_standing(context)
        return super().Check(request, context)

    def Watch(self, request: HealthCheckRequest, context: Any, *callback: Any) -> Any:  # noqa: N802
        self._send_standing(context)
        return super().Watch(request, context, *callback)

    def _send_standing(self, context: Any) -> None:
        standing = self._standing
        numbers = {
            "round": standing.round_number,
            "rounds": standing.rounds,
            "connected": standing.connected,
            "quorum": standing.quorum,
        }
        context.send_initial_metadata([(f"fedhead-{k}", str(v)) for k, v in numbers.items()])


@contextmanager
def health_service(address: str, on_round: OnRound = lambda _: None) -> Iterator[Progress]:
    """Answer health checks until the block ends.

    Args:
        address: HOST:PORT to listen on, without TLS, as probes expect it.
        on_round: called with each round's metrics.

    Yields:
        The progress object that the service reports.

    Raises:
        RunError: the address cannot be used.
    """
    health = _Health()
    # No port reuse: otherwise a second run at this port would get some of the first one's checks.
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
    add_HealthServicer_to_server(health, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as exc:
        raise RunError(f"health: cannot listen on {address}: {obstacle(address)}") from exc
    server.start()
    try:
        yield Progress(health.show, on_round)
    finally:
        health.enter_graceful_shutdown()
        server.stop(_GRACE_SECONDS).wait()
