"""Clients that a closed round no longer waits for, and their late answers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from server.round.exchange import Exchange

__all__ = ["LateReply", "Stragglers"]

# A client that is silent for this many deadlines has lost the message and may be asked again.
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
    """Remembers messages whose round closed without an answer to them.

    Such a client is still working on a closed round. Until it answers, it is not asked again,
    because that answer would be late as well.

    Args:
        grid: the Grid that sent the messages.
        deadline_seconds: a round's deadline.
    """

    def __init__(self, grid: Grid, deadline_seconds: float) -> None:
        self._grid, self._patience = grid, _PATIENCE * deadline_seconds
        self._waiting: dict[str, _Waiting] = {}
        self._late: list[LateReply] = []

    def add(
        self, round_number: int, exchange: Exchange, clients: Mapping[int, Sequence[int]]
    ) -> None:
        """Remember the unanswered messages of a round.

        Args:
            round_number: the closed round.
            exchange: the round's messages.
            clients: the asked clients of each node that owes an answer; of other nodes none is
                awaited.
        """
        free_at = time.monotonic() + self._patience
        for name, node in exchange.outstanding.items():
            if node not in clients:
                continue
            reply = LateReply(round_number, tuple(clients[node]))
            self._waiting[name] = _Waiting(reply, free_at)
        self._take_in(exchange.unread.values())

    def busy(self) -> set[int]:
        """The clients that must not be asked now."""
        now = time.monotonic()
        return {
            client
            for waiting in self._waiting.values()
            if waiting.free_at > now
            for client in waiting.reply.clients
        }

    def poll(self) -> None:
        """Receive late answers without waiting."""
        if self._waiting:
            self._take_in(self._grid.pull_messages(list(self._waiting)))

    def _take_in(self, messages: Iterable[Message]) -> None:
        for message in messages:
            waiting = self._waiting.pop(message.metadata.reply_to_message_id, None)
            # An error means that no answer will come, or that the device has failed.
            if waiting is not None and not message.has_error():
                self._late.append(waiting.reply)

    def take(self) -> list[LateReply]:
        """The late replies since the last call."""
        late, self._late = self._late, []
        return late
