"""The machine's cores that this process may use, its processor and installed versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["cores", "processor", "versions"]

# CPU features and variables that decide which integer kernels a library picks.
_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")
_KERNEL_SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE")


def cores() -> int:
    """CPU cores that this process may run on, at most OMP_NUM_THREADS and at least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1  # macOS and Windows do not tell
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(count, int(wanted)) if wanted.isdecimal() and int(wanted) else count


def processor() -> str:
    """The processor's name, its features, and environment variables that restrict libraries."""
    fields: dict[str, str] = {}
    with suppress(OSError):  # only Linux has it
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    there = set((fields.get("flags") or fields.get("Features") or "").split())
    limits = [f"{key}={os.environ[key]}" for key in _KERNEL_SETTINGS if key in os.environ]
    return ", ".join([name, *(flag for flag in _FLAGS if flag in there), *limits])


def versions(packages: Sequence[str] = ("fedhead", "flwr", "torch", "numpy")) -> dict[str, str]:
    """Versions of Python and of packages; by default those that a run's bytes depend on."""
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {"python": platform.python_version(), **{name: of(name) for name in packages}}
