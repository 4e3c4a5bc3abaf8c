"""Talking to nodes through a Flower Grid: messages on their way, and one question to many nodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

__all__ = ["Exchange", "ask", "error_reason", "is_from_device"]

logger = logging.getLogger("fedhead")

_POLL_SECONDS = 0.02
_SLOWEST_POLL_SECONDS = 0.5
_DEVICE_ERRORS = (1, 2)  # Flower's codes for an exception in a device's ClientApp


class Exchange:
    """Messages on their way; iterate over the replies as they arrive, until the deadline.

    Flower's own ``send_and_receive`` waits 3 s between polls and does not filter duplicates.

    Args:
        grid: to reach the nodes.
        messages: sent at once.
        deadline_seconds: from now.
        meanwhile: called between polls, about twice a second.

    Attributes:
        outstanding: the node asked, by message id, of those whose reply has not been handed out.
            A message that could not even be pushed has no id.
        unread: the replies among them that have arrived, where the iteration was left early.
    """

    def __init__(
        self,
        grid: Grid,
        messages: Iterable[Message],
        deadline_seconds: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        messages = list(messages)
        names = grid.push_messages(messages)
        self._grid, self._meanwhile = grid, meanwhile
        self._deadline = time.monotonic() + deadline_seconds
        self.outstanding = {
            str(name): message.metadata.dst_node_id
            # Flower gives no ids at all where all messages together are too large.
            for name, message in zip(names, messages, strict=False)
            if name
        }
        self.unread: dict[str, Message] = {}

    def __iter__(self) -> Iterator[tuple[int, Message]]:
        """At most one reply for each message, errors included, with the node that was asked.

        Flower's own error replies (node gone, message expired) do not name it.
        """
        pause = _POLL_SECONDS
        while self.outstanding:
            for reply in self._grid.pull_messages(list(self.outstanding)):
                answered = reply.metadata.reply_to_message_id
                if answered in self.outstanding:
                    self.unread.setdefault(answered, reply)
            while self.unread:
                answered = next(iter(self.unread))
                reply = self.unread.pop(answered)
                yield self.outstanding.pop(answered), reply
                pause = _POLL_SECONDS
            if not self.outstanding or time.monotonic() >= self._deadline:
                return
            self._meanwhile()
            time.sleep(min(pause, max(0.0, self._deadline - time.monotonic())))
            pause = min(pause * 1.5, _SLOWEST_POLL_SECONDS)


def ask(
    grid: Grid,
    kind: str,
    content: Callable[[int], RecordDict],
    nodes: Sequence[int],
    deadline_seconds: float,
) -> tuple[dict[int, RecordDict], dict[int, str]]:
    """Ask each node a question.

    Returns:
        Content of the good replies and reasons of the errors, by node id; a node that did not
        answer in time is in neither.
    """
    messages = [
        Message(content=content(node), dst_node_id=node, message_type=kind) for node in nodes
    ]
    answers: dict[int, RecordDict] = {}
    errors: dict[int, str] = {}
    exchange = Exchange(grid, messages, deadline_seconds)
    for node, reply in exchange:
        if reply.has_error():
            errors[node] = error_reason(reply)
        else:
            answers[node] = reply.content
    if exchange.outstanding:
        logger.warning(
            "%s: %d of %d answers missed the deadline of %g s",
            kind, len(exchange.outstanding), len(messages), deadline_seconds,
        )  # fmt: skip
    return answers, errors


def error_reason(reply: Message) -> str:
    """The last line of a remote error: the exception itself."""
    lines = (reply.error.reason or f"error {reply.error.code}").strip().splitlines()
    return lines[-1] if lines else "no reason given"


def is_from_device(reply: Message) -> bool:
    """Whether the device itself answers, be it with an error, and not Flower in its place."""
    return not reply.has_error() or reply.error.code in _DEVICE_ERRORS
