"""How phones take part in rounds: the messages of phones.proto and what both sides share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

__all__ = ["FORMATS", "GATEWAY", "PHASES", "file_name"]

GATEWAY = "gateway"
"""The name under which a deployment knows the gateway's node; no device may have it."""

PHASES = ("waiting", "fetching", "training", "uploading")
"""What a phone's time in a round goes into; the first ends when it is given the task."""

FORMATS: Mapping[str, str] = {"executorch": ".pte", "lite": ".ptl", "torch": ".bin"}
"""Suffixes of a backbone's files, by the format that a phone runs."""

_DIGITS = 16


def file_name(kind: str, classes: Sequence[str]) -> str:
    """The file of a format in a backbone's folder.

    A file that trains is made for a list of classes, which is in its name: two experiments may
    have the same backbone. A backbone alone serves them all.

    >>> file_name("torch", ["cat", "dog"])
    'backbone.bin'
    >>> file_name("executorch", ["cat", "dog"])
    'device-cd73b2771c519ee7.pte'
    """
    if kind == "torch":
        return f"backbone{FORMATS[kind]}"
    digest = hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()
    return f"device-{digest[:_DIGITS]}{FORMATS[kind]}"
