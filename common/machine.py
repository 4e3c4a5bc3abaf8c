"""What this process may use of the machine, and what is installed on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

__all__ = ["cores", "versions"]


def cores() -> int:
    """CPU cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS and Windows do not tell


def versions(packages: Sequence[str] = ("fedhead", "flwr", "torch", "numpy")) -> dict[str, str]:
    """Of Python and of packages, by default those that decide about a run's bits."""
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {"python": platform.python_version(), **{name: of(name) for name in packages}}
