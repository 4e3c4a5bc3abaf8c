"""Keys that a phone trusts."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def trust(folder: Path, *keys: EllipticCurvePrivateKey) -> None:
    """Let a phone load only what one of these has signed."""
    (folder / "trusted").mkdir()
    for i, key in enumerate(keys):
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"trusted/{i}.pub").write_bytes(public)
