"""What flwr, ray, gRPC and torch find in the environment when they are imported."""

from __future__ import annotations

import os

__all__ = ["NOT_ON_DEVICES", "prepare_environment"]

NOT_ON_DEVICES = ("psutil", "tensorboardX", "torchvision")
"""Packages of the extra `server`, which `simulation` holds: a device alone is installed without."""

_DEFAULTS = {
    # They would call home.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # gRPC's own lines about a handshake that failed; fedhead's error says it in one.
    "GRPC_VERBOSITY": "NONE",
    # Threads that spin while they wait make torch many times slower on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def prepare_environment() -> None:
    """Set what is not set already; to be called before any of them is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
