"""What tests of backbones share: pixels as floats, a fresh process, a changed payload."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import safetensors.numpy

from common.backbone import payload
from common.backbone.int8 import Normalization
from common.backbone.spec import IMAGENET_MEAN, IMAGENET_STD

ROOT = Path(__file__).parents[2]
IMAGENET = Normalization(IMAGENET_MEAN, IMAGENET_STD)
HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def fresh_process(code: str, *arguments: str) -> str:
    """Run code where only the device path is importable from the repository's root."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def reload_with(data: bytes, **changes: object) -> bytes:
    """The payload with parts replaced, and a checksum that fits again."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = safetensors.numpy.load(data)
    for name, value in changes.items():
        if name in tensors:
            tensors[name] = value
        else:
            metadata[name] = value
    metadata["sha256"] = payload._checksum(tensors, metadata["spec"], metadata["fingerprint"])
    return safetensors.numpy.save(tensors, metadata)
