"""Clients that a round no longer waits for, and their answers when they come after all."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from server.round.exchange import Exchange

__all__ = ["LateReply", "Stragglers"]

# Who is silent for so many deadlines has lost the message, and is asked again.
_PATIENCE = 4


@dataclass(frozen=True)
class LateReply:
    """An answer to a round that has closed."""

    round_number: int
    clients: tuple[int, ...]


@dataclass(frozen=True)
class _Waiting:
    reply: LateReply
    free_at: float


class Stragglers:
    """Remembers messages whose round closed without their answer.

    Such a client is still at work on a round that is over: until it answers, it is not asked for
    another one, which would come late as well.

    Args:
        grid: that the messages went through.
        deadline_seconds: of a round.
    """

    def __init__(self, grid: Grid, deadline_seconds: float) -> None:
        self._grid, self._patience = grid, _PATIENCE * deadline_seconds
        self._waiting: dict[str, _Waiting] = {}
        self._late: list[LateReply] = []

    def add(
        self, round_number: int, exchange: Exchange, clients: Mapping[int, Sequence[int]]
    ) -> None:
        """Remember what a round has left outstanding.

        Args:
            round_number: that has closed.
            exchange: its messages.
            clients: that each node was asked for.
        """
        free_at = time.monotonic() + self._patience
        for name, node in exchange.outstanding.items():
            reply = LateReply(round_number, tuple(clients[node]))
            self._waiting[name] = _Waiting(reply, free_at)
        self._take_in(exchange.unread.values())

    def busy(self) -> set[int]:
        """The clients that are not to be asked now."""
        now = time.monotonic()
        return {
            client
            for waiting in self._waiting.values()
            if waiting.free_at > now
            for client in waiting.reply.clients
        }

    def poll(self) -> None:
        """Take in what has come, without waiting."""
        if self._waiting:
            self._take_in(self._grid.pull_messages(list(self._waiting)))

    def _take_in(self, messages: Iterable[Message]) -> None:
        for message in messages:
            waiting = self._waiting.pop(message.metadata.reply_to_message_id, None)
            # An error is Flower's word that no answer will come, or the device's that it failed.
            if waiting is not None and not message.has_error():
                self._late.append(waiting.reply)

    def take(self) -> list[LateReply]:
        """The late replies since the last time; none is given out twice."""
        late, self._late = self._late, []
        return late
