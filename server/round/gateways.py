"""How a gateway, which may lose a message, is asked again."""

from __future__ import annotations

from collections.abc import Callable, Collection

from flwr.app import Message

from server.round.exchange import Again
from server.round.registry import Registry

__all__ = ["asked_again"]

# After this share of the deadline, within these bounds.
_SHARE, _SOONEST_SECONDS, _LATEST_SECONDS = 1 / 3, 4.0, 60.0


def asked_again(
    registry: Registry,
    nodes: Collection[int],
    deadline_seconds: float,
    message: Callable[[int], Message],
) -> Again | None:
    """The messages that are sent again to those nodes that are gateways; None: no node is one.

    Args:
        registry: knows which are.
        nodes: the asked nodes.
        deadline_seconds: of the question.
        message: makes a node's message, with the time that is left.
    """
    gateways = [node for node in nodes if registry.is_gateway(node)]
    pause = max(_SOONEST_SECONDS, min(_SHARE * deadline_seconds, _LATEST_SECONDS))
    return Again(gateways, pause, message) if gateways else None
