"""How a gateway, which may lose a message, is asked again, and how many phones evaluate."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np
from flwr.app import Message

from common.config import Config
from common.seeding import Purpose, smallest
from server.round.exchange import Again
from server.round.registry import Registry

__all__ = ["asked_again", "evaluating", "evaluation_seconds"]

# After this share of the deadline, within these bounds.
_SHARE, _SOONEST_SECONDS, _LATEST_SECONDS = 1 / 3, 4.0, 60.0

# A figure needs no more phones than this, unless each round asks more of them.
_MOST_EVALUATE = 100
# Evaluating takes a phone a moment, so it gets a part of the deadline, but time to come by.
_EVALUATION_SHARE, _LEAST_EVALUATION_SECONDS = 1 / 4, 600.0


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


def evaluating(config: Config, population: int, phones: Collection[int]) -> tuple[list[int], int]:
    """Which of the phones that are there evaluate the last head.

    Where each round asks all clients, all phones do. Otherwise as many as a round asks, but at
    least a hundred; the run's seed chooses them.

    Args:
        config: the run's configuration.
        population: number of clients that the run chooses from.
        phones: their ids.

    Returns:
        Ids, ascending, and how many of their answers suffice; 0: all.
    """
    size = config.train.asked(population)
    if not size:
        return sorted(phones), 0
    more = 1 + config.round.over_selection
    most = max(_MOST_EVALUATE, math.ceil(size * more - 1e-9))
    ids = np.array(sorted(phones), np.int64)
    chosen: list[int] = smallest(ids, most, config.seed, Purpose.EVALUATION).tolist()
    return chosen, math.ceil(len(chosen) / more - 1e-9)


def evaluation_seconds(deadline_seconds: float) -> float:
    """How long phones have to evaluate; never longer than a round's deadline."""
    share = max(_LEAST_EVALUATION_SECONDS, _EVALUATION_SHARE * deadline_seconds)
    return min(deadline_seconds, share)
