"""Asks nodes which clients they host: each new node once, a gateway again and again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.messages import DescribeRequest
from server.round.exchange import Exchange, Refuse, error_reason

__all__ = ["Descriptions"]

# A gateway's description is as good as new for some seconds. Its SuperNode may lose a question.
_CHANGED_SECONDS = 5.0
_LOST_SECONDS = 15.0
_GATEWAY_SECONDS = 10.0


class Descriptions:
    """The questions to nodes, and their answers, late ones too.

    Args:
        grid: to reach the nodes.
        request: the description of the run for each node.
        fingerprint: of the run's backbone; only a gateway is told.
        is_gateway: whether a node's clients come and go.
        refuse: see Exchange.
    """

    def __init__(
        self,
        grid: Grid,
        request: DescribeRequest,
        fingerprint: str,
        is_gateway: Callable[[int], bool],
        refuse: Refuse,
    ) -> None:
        self._grid, self._is_gateway, self._refuse = grid, is_gateway, refuse
        self._request, self._changing = request, replace(request, fingerprint=fingerprint)
        self._open: list[Exchange] = []
        self._asked: dict[int, float] = {}
        self._answered: dict[int, float] = {}

    def due(self, present: Collection[int], new: Collection[int]) -> list[int]:
        """The nodes to ask now.

        Args:
            present: all nodes that are there.
            new: those of them that nobody has asked, or that answered with an error.
        """
        gateways = {node for node in present if self._is_gateway(node)}
        return sorted({*new} - gateways | {node for node in gateways if self._is_due(node)})

    def _is_due(self, node: int) -> bool:
        asked = self._asked.get(node, -math.inf)
        answered = self._answered.get(node, -math.inf)
        wait = _LOST_SECONDS if asked > answered else _CHANGED_SECONDS
        return time.monotonic() - max(asked, answered) >= wait

    @property
    def is_waiting(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self._open)

    def ask(
        self, nodes: Sequence[int], timeout_seconds: float
    ) -> tuple[dict[int, RecordDict], dict[int, str]]:
        """Ask nodes, and take late answers to earlier questions too.

        Args:
            nodes: nodes to ask.
            timeout_seconds: time for them to answer; a gateway knows its answer at once and is
                asked again before long, so it gets less.

        Returns:
            Contents of the good replies, and reasons of the errors, by node id.
        """
        gateways = [node for node in nodes if self._is_gateway(node)]
        others = [node for node in nodes if node not in gateways]
        self._send(gateways, self._changing, min(timeout_seconds, _GATEWAY_SECONDS))
        self._send(others, self._request, timeout_seconds)
        answers, errors = dict[int, RecordDict](), dict[int, str]()
        for exchange in self._open:
            for node, reply in exchange:
                if reply.has_error():
                    errors[node] = error_reason(reply)
                else:
                    answers[node] = reply.content
        for node in filter(self._is_gateway, {*answers, *errors}):
            self._answered[node] = time.monotonic()
            for exchange in self._open:  # the answer to an older question would be out of date
                exchange.forget(node)
        self._open = [exchange for exchange in self._open if exchange.outstanding]
        return answers, {node: why for node, why in errors.items() if node not in answers}

    def _send(self, nodes: Sequence[int], request: DescribeRequest, seconds: float) -> None:
        if not nodes:
            return
        messages = [
            Message(content=request.write(), dst_node_id=node, message_type="query.describe")
            for node in nodes
        ]
        self._open.append(Exchange(self._grid, messages, seconds, refuse=self._refuse))
        self._asked |= dict.fromkeys(nodes, time.monotonic())
