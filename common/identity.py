"""The number that stands for a device."""

from __future__ import annotations

import hashlib

__all__ = ["client_of_node", "client_of_phone"]


def client_of_node(node: int) -> int:
    """The id of the client on a device's node.

    Flower's node ids are unsigned 64-bit integers, but its records hold signed ones only.

    >>> client_of_node(16043947300866824319)
    6820575264012048511
    """
    return node % 2**63


def client_of_phone(name: str) -> int:
    """The id of the client on a phone: 63 bits of a hash of its token's name.

    >>> client_of_phone("anna")
    3590687607559437446
    """
    return int.from_bytes(hashlib.sha256(f"phone {name}".encode()).digest()[:8], "big") >> 1
