"""Real devices in this process: each with its own folder of images and its own state."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

import client.backbones
from simulations.engines.in_process import InProcessGrid


@pytest.fixture(scope="session")
def make_devices() -> Callable[[Path], list[Path]]:
    """Makes three phones' folders below one."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()

    def make(root: Path) -> list[Path]:
        folders = [root / f"phone{number}" for number in range(3)]
        for number, folder in enumerate(folders):
            for i in range(number * 60, number * 60 + 60):
                path = folder / "images" / str(digits.target[i]) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((digits.images[i] * (255 / 16)).astype(np.uint8)).save(path)
        return folders

    return make


@pytest.fixture
def devices(make_devices: Callable[[Path], list[Path]], tmp_path: Path) -> list[Path]:
    """Three phones' folders."""
    return make_devices(tmp_path)


@pytest.fixture
def device_grid(devices: list[Path], monkeypatch: pytest.MonkeyPatch) -> type[InProcessGrid]:
    """Nodes 1, 2, 3 are these phones, clients 101, 102, 103."""
    # Three phones share this process, which keeps two backbones loaded.
    load = lru_cache(maxsize=3)(client.backbones._load.__wrapped__)
    monkeypatch.setattr(client.backbones, "_load", load)

    class Devices(InProcessGrid):
        def __init__(self, app: Any, _nodes: int, values: dict[str, Any]) -> None:
            super().__init__(app, len(devices), values)
            for node, folder in enumerate(devices, start=1):
                self._contexts[node].node_config = {
                    "data": f"folder:{folder / 'images'}",
                    "state": str(folder / "state"),
                    "client-id": 100 + node,
                    "partition-id": node - 1,  # tests tell them apart by it; a device ignores it
                }

    return Devices
