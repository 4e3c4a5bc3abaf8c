"""Environment variables that flwr, ray, gRPC and torch read when they are imported."""

from __future__ import annotations

import os

__all__ = ["NOT_ON_DEVICES", "prepare_environment"]

NOT_ON_DEVICES = ("psutil", "tensorboardX", "torchvision")
"""Packages of the extra `server`, which `simulation` holds: a device alone is installed without."""

_DEFAULTS = {
    # Flower and Ray would send usage statistics.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # gRPC logs several lines about a failed handshake; fedhead's error says it in one.
    "GRPC_VERBOSITY": "NONE",
    # On a busy machine, threads that spin while they wait slow torch down many times.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def prepare_environment() -> None:
    """Set what is not set yet. Call this before any of them is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
