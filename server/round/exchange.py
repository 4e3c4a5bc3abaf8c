"""Sends messages to nodes through a Flower Grid and receives their replies."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from secrets import token_hex

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import DeclinedError
from common.words import one_line

__all__ = ["Exchange", "Refuse", "ask", "error_reason", "has_declined", "is_from_device"]

logger = logging.getLogger("fedhead")

Refuse = Callable[[int, str], None]

_SECRET_BYTES = 16
_POLL_SECONDS = 0.02
_SLOWEST_POLL_SECONDS = 0.5
_DEVICE_ERRORS = (1, 2)  # Flower's codes for an exception in a device's ClientApp
# The form in which Flower reports an exception. Our errors are clear without the type's name.
_EXCEPTION = re.compile(r"<class '(common\.errors\.)?(?:\w+\.)*(\w+)'>:<'(.*)'>", re.DOTALL)
_LONGEST_REASON = 2000
_DECLINED = f"{DeclinedError}:"


class Exchange:
    """Sent messages; iterate to get the replies as they arrive, until the deadline.

    Flower's ``send_and_receive`` waits 3 s between polls and does not filter duplicates.

    Args:
        grid: to reach the nodes.
        messages: the messages, all sent at once.
        deadline_seconds: time from now.
        meanwhile: called between polls, about twice a second.
        refuse: called for a node that answers twice or answers another node's message.

    Attributes:
        outstanding: by message id, the asked node of each message whose reply was not yielded yet.
            A message that could not be pushed has no id.
        unread: replies among them that have arrived, if the iteration was left early.
    """

    def __init__(
        self,
        grid: Grid,
        messages: Iterable[Message],
        deadline_seconds: float,
        meanwhile: Callable[[], None] = lambda: None,
        refuse: Refuse = lambda _node, _reason: None,
    ) -> None:
        messages = list(messages)
        for message in messages:
            # Replies are matched by their message's hash; this makes the hash unknown to others.
            group = f"{message.metadata.group_id} {token_hex(_SECRET_BYTES)}"
            message.metadata.group_id = group.strip()
        names = grid.push_messages(messages)
        self._grid, self._meanwhile, self._refuse = grid, meanwhile, refuse
        self._answered: dict[str, int] = {}
        self._deadline = time.monotonic() + deadline_seconds
        self.outstanding = {
            str(name): message.metadata.dst_node_id
            # Flower returns no ids at all if the messages together are too large.
            for name, message in zip(names, messages, strict=False)
            if name
        }
        self.unread: dict[str, Message] = {}

    def __iter__(self) -> Iterator[tuple[int, Message]]:
        """At most one reply for each message, errors included, with the asked node.

        The node is included because Flower's error replies (node gone, message expired) do not
        name it.
        """
        pause = _POLL_SECONDS
        while self.outstanding:
            for reply in self._grid.pull_messages(list(self.outstanding)):
                self._take(reply)
            while self.unread:
                answered = next(iter(self.unread))
                reply = self.unread.pop(answered)
                node = self._answered[answered] = self.outstanding.pop(answered)
                yield node, reply
                pause = _POLL_SECONDS
            if not self.outstanding or time.monotonic() >= self._deadline:
                return
            self._meanwhile()
            time.sleep(min(pause, max(0.0, self._deadline - time.monotonic())))
            pause = min(pause * 1.5, _SLOWEST_POLL_SECONDS)

    def _take(self, reply: Message) -> None:
        """Keep the first reply to an outstanding message if it is from the asked node.

        Flower returns one reply for a message, but does not check its sender: a device itself
        writes sender and message id into its reply, and so must not know others' messages.
        """
        answered = reply.metadata.reply_to_message_id
        node = self.outstanding.get(answered, self._answered.get(answered))
        if node is None:
            return
        sender = reply.metadata.src_node_id
        if not reply.has_error() and sender != node:
            self._refuse(sender, "answers a message that was sent to another node")
        elif answered in self.unread or answered in self._answered:
            self._refuse(node, "answers a message twice")
        else:
            self.unread[answered] = reply


def ask(
    grid: Grid,
    kind: str,
    content: Callable[[int], RecordDict],
    nodes: Sequence[int],
    deadline_seconds: float,
    refuse: Refuse = lambda _node, _reason: None,
    told: bool = True,
) -> tuple[dict[int, RecordDict], dict[int, str]]:
    """Ask each node a question.

    Args:
        grid: to reach the nodes.
        kind: kind of message.
        content: returns the content for a node.
        nodes: nodes to ask.
        deadline_seconds: time from now.
        refuse: see Exchange.
        told: whether missing answers are logged.

    Returns:
        Contents of the good replies, and reasons of the errors, by node id. A node that did not
        answer in time is in neither.
    """
    messages = [
        Message(content=content(node), dst_node_id=node, message_type=kind) for node in nodes
    ]
    answers: dict[int, RecordDict] = {}
    errors: dict[int, str] = {}
    exchange = Exchange(grid, messages, deadline_seconds, refuse=refuse)
    for node, reply in exchange:
        if reply.has_error():
            errors[node] = error_reason(reply)
        else:
            answers[node] = reply.content
    if exchange.outstanding and told:
        logger.warning(
            "%s: %d of %d answers missed the deadline of %g s",
            kind, len(exchange.outstanding), len(messages), deadline_seconds,
        )  # fmt: skip
    return answers, errors


def error_reason(reply: Message) -> str:
    """What went wrong on a node, on one line; our own errors without the type's name."""
    words = (reply.error.reason or f"error {reply.error.code}")[:_LONGEST_REASON].strip()
    if match := _EXCEPTION.fullmatch(words):
        ours, kind, message = match.groups()
        words = message if ours else f"{kind}: {message}"
    return one_line(words) or "no reason given"


def has_declined(reply: Message) -> bool:
    """Whether a device says that it does not train now, because of its owner's budget."""
    return (reply.error.reason or "").startswith(_DECLINED)


def is_from_device(reply: Message) -> bool:
    """Whether the device itself answers, even with an error, and not Flower in its place."""
    return not reply.has_error() or reply.error.code in _DEVICE_ERRORS
