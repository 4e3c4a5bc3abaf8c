"""What the process of the phones is told: one JSON file, and the images as one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from common.types import Affine, FeatureSet, IntArray
from simulations.bench.fleet.profile import Profile, Zone

__all__ = ["Orders", "read_images", "read_orders", "write_images", "write_orders"]


@dataclass(frozen=True)
class Orders:
    """A fleet.

    Attributes:
        gateway: HOST:PORT.
        authority: file of the only authority that phones trust.
        tokens: each phone's token.
        images: file of ``write_images``.
        profile: when phones are there.
        connections: TLS connections that all phones share; 0: each has its own.
        faults: share of the tasks of which nothing comes in time: in equal parts phones that fall
            silent, that are late, and that decline.
        starts_within: seconds over which the phones make their first calls.
        seed: of all that they draw.
        figures: file that they write every two seconds, and at the end.
    """

    gateway: str
    authority: str
    tokens: tuple[str, ...]
    images: str
    profile: Profile
    connections: int
    faults: float
    starts_within: float
    seed: int
    figures: str


def write_orders(path: Path, orders: Orders) -> None:
    """Write the file, which only its owner may read: it holds the tokens."""
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(orders)))


def read_orders(path: Path) -> Orders:
    """What ``write_orders`` wrote."""
    values = json.loads(path.read_text())
    profile = values["profile"]
    zones = tuple(Zone(**zone) for zone in profile["zones"])
    values["profile"] = Profile(zones, profile["day_seconds"])
    return Orders(**values | {"tokens": tuple(values["tokens"])})


def write_images(path: Path, features: FeatureSet, shares: Sequence[IntArray]) -> None:
    """Write features with their labels, and who has which.

    Args:
        path: the file.
        features: of all images.
        shares: positions in them; phone i has those of share i modulo their number.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "q": np.ascontiguousarray(features.q),
        "labels": features.labels,
        "gain": features.affine.gain,
        "center": features.affine.center,
        "positions": np.concatenate(shares),
        "ends": np.cumsum([len(share) for share in shares]),
    }
    save_file(arrays, path, {"fingerprint": features.fingerprint})


def read_images(path: Path) -> tuple[FeatureSet, list[IntArray]]:
    """What ``write_images`` wrote, but for the fingerprint, which phones take from tasks."""
    arrays = load_file(path)
    affine = Affine(arrays["gain"], arrays["center"])
    features = FeatureSet(arrays["q"], arrays["labels"], affine, "")
    return features, np.split(arrays["positions"], arrays["ends"][:-1])
