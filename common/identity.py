"""The number that stands for a device."""

from __future__ import annotations

__all__ = ["client_of_node"]


def client_of_node(node: int) -> int:
    """The id of the client on a device's node.

    Flower's node ids are unsigned 64-bit integers, but its records hold signed ones only.

    >>> client_of_node(16043947300866824319)
    6820575264012048511
    """
    return node % 2**63
