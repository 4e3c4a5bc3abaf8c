"""Sends messages to nodes through a Flower Grid and receives their replies."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from secrets import token_hex

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import DeclinedError
from common.words import one_line

__all__ = ["Again", "Exchange", "Refuse", "ask", "error_reason", "has_declined", "is_from_device"]

logger = logging.getLogger("fedhead")

Refuse = Callable[[int, str], None]

_SECRET_BYTES = 16
_POLL_SECONDS = 0.02
_SLOWEST_POLL_SECONDS = 0.5
_SOON_SECONDS = 5.0
_LONGER = 1.5
_DEVICE_ERRORS = (1, 2)  # Flower's codes for an exception in a device's ClientApp
# The form in which Flower reports an exception. Our errors are clear without the type's name.
_EXCEPTION = re.compile(r"<class '(common\.errors\.)?(?:\w+\.)*(\w+)'>:<'(.*)'>", re.DOTALL)
_LONGEST_REASON = 2000
_DECLINED = f"{DeclinedError}:"


@dataclass(frozen=True)
class Again:
    """Nodes whose message is sent once more, and once more, while no answer comes.

    A gateway answers late, and its SuperNode loses the message that it holds when it is killed. The
    gateway knows a message that it has had, and works for both at once. Its first answer counts,
    and the others are never fetched. What Flower says in its place (that it is gone, that it has
    crashed) is no answer.

    Attributes:
        nodes: these nodes; each has one message in the exchange.
        seconds: from the first message to the second; each later pause is half as long again, so
            that not many messages wait for the answer to a long round.
        message: makes a node's next message.
    """

    nodes: Collection[int]
    seconds: float
    message: Callable[[int], Message]


class Exchange:
    """Sent messages; iterate to get the replies as they arrive, until the deadline.

    Flower's ``send_and_receive`` waits 3 s between polls and does not filter duplicates.

    Args:
        grid: to reach the nodes.
        messages: the messages, all sent at once.
        deadline_seconds: time from now.
        meanwhile: called between polls, about twice a second.
        refuse: called for a node that answers twice or answers another node's message.
        again: which messages are sent again; None: none are.

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
        again: Again | None = None,
    ) -> None:
        self._grid, self._meanwhile, self._refuse = grid, meanwhile, refuse
        self._answered: dict[str, int] = {}
        self._deadline = time.monotonic() + deadline_seconds
        self._waiting = set(again.nodes) if again else set[int]()
        self._again, self._sent = again, time.monotonic()
        self._pause = again.seconds if again else 0.0
        self.outstanding = self._push(messages)
        self.unread: dict[str, Message] = {}

    def _push(self, messages: Iterable[Message]) -> dict[str, int]:
        """Send messages; the asked nodes by the messages' ids."""
        messages = list(messages)
        for message in messages:
            # Replies are matched by their message's hash; this makes the hash unknown to others.
            group = f"{message.metadata.group_id} {token_hex(_SECRET_BYTES)}"
            message.metadata.group_id = group.strip()
        names = self._grid.push_messages(messages)
        return {
            str(name): message.metadata.dst_node_id
            # Flower returns no ids at all if the messages together are too large.
            for name, message in zip(names, messages, strict=False)
            if name
        }

    def __iter__(self) -> Iterator[tuple[int, Message]]:
        """At most one reply for each message, errors included, with the asked node.

        The node is included because Flower's error replies (node gone, message expired) do not
        name it.
        """
        pause = _POLL_SECONDS
        while self.outstanding or self._waiting:
            for reply in self._grid.pull_messages(list(self.outstanding)):
                self._take(reply)
            while self.unread:
                answered = next(iter(self.unread))
                reply = self.unread.pop(answered)
                node = self._answered[answered] = self.outstanding.pop(answered)
                if node in self._waiting and not is_from_device(reply):
                    self._send_soon()
                    continue
                if node in self._waiting:
                    self.forget(node)
                yield node, reply
                pause = _POLL_SECONDS
            if not (self.outstanding or self._waiting) or time.monotonic() >= self._deadline:
                return
            self._meanwhile()
            self._send_again()
            time.sleep(min(pause, max(0.0, self._deadline - time.monotonic())))
            pause = min(pause * 1.5, _SLOWEST_POLL_SECONDS)

    def forget(self, node: int) -> None:
        """Await no further answer of a node."""
        self._waiting.discard(node)
        self.unread = {n: r for n, r in self.unread.items() if self.outstanding[n] != node}
        self.outstanding = {name: of for name, of in self.outstanding.items() if of != node}

    def _send_soon(self) -> None:
        """Let the next messages be due in some seconds, because one was lost."""
        self._sent = min(self._sent, time.monotonic() - self._pause + _SOON_SECONDS)

    def _send_again(self) -> None:
        """Send the messages that are due once more."""
        if self._again and self._waiting and time.monotonic() - self._sent >= self._pause:
            self._sent, self._pause = time.monotonic(), _LONGER * self._pause
            messages = [self._again.message(node) for node in sorted(self._waiting)]
            self.outstanding |= self._push(messages)

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
    again: Again | None = None,
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
        again: see Exchange.

    Returns:
        Contents of the good replies, and reasons of the errors, by node id. A node that did not
        answer in time is in neither.
    """
    messages = [
        Message(content=content(node), dst_node_id=node, message_type=kind) for node in nodes
    ]
    answers: dict[int, RecordDict] = {}
    errors: dict[int, str] = {}
    exchange = Exchange(grid, messages, deadline_seconds, refuse=refuse, again=again)
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
