"""What clients are sent of the head: the whole, or its changes since the one that they know.

A run whose codec for the way down is none sends whole heads and keeps nothing here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.codecs import find_codec
from common.codecs.downlink import add_change, encode_change
from common.messages import MOST_CHANGES, HeadChanges, head_id
from common.types import ClientPlan, FloatArray, Head, IntArray

__all__ = ["Downlink", "Sent", "advanced", "unsent"]


@dataclass(frozen=True, eq=False)
class Sent:
    """What a client holds that has got every message so far, and the changes that led there.

    Attributes:
        round_number: the round whose message it is of; 0 before the first.
        matrix: float32 (K, d + 1), what the client holds; (0, d + 1) before the first round, which
            stands for zeros.
        lengths: int64 (n,), bytes of the changes of the last n rounds.
        changes: uint8, these changes, one behind the other; together no larger than ``matrix``.
        codec: name of the codec that made them; empty before the first round.
    """

    round_number: int
    matrix: FloatArray
    lengths: IntArray
    changes: npt.NDArray[np.uint8]
    codec: str = ""

    @property
    def base(self) -> int:
        """The earliest round from which the changes start."""
        return self.round_number - len(self.lengths)

    def leads_from(self, round_number: int) -> bool:
        """Whether the changes of all rounds after this one are there, and smaller than the head."""
        missed = self.lengths[max(round_number - self.base, 0) :]
        return round_number >= self.base and bool(missed.sum() < self.matrix.nbytes)

    def since(self, round_number: int) -> tuple[bytes, ...] | None:
        """The changes of all rounds after this one; None if the whole head is sent instead."""
        if not self.leads_from(round_number):
            return None
        missed = self.lengths[round_number - self.base :]
        data = self.changes[len(self.changes) - missed.sum() :].tobytes()
        ends = np.cumsum(missed).tolist()
        return tuple(data[end - n : end] for end, n in zip(ends, missed.tolist(), strict=True))


def unsent(head: Head) -> Sent:
    """Before the first round, when every client holds zeros.

    Args:
        head: the first head, for its width.
    """
    nothing = np.zeros((0, head.num_features + 1), np.float32)
    return Sent(0, nothing, np.zeros(0, np.int64), np.zeros(0, np.uint8))


def advanced(sent: Sent, head: Head, round_number: int, codec_name: str, seed: int) -> Sent:
    """After one more round's message.

    The round's head is sent whole, and exactly, where its change cannot be: at the run's start,
    unless it is zero; after a round of another codec or none; and if the change takes more bytes.

    Args:
        sent: after an earlier round.
        head: the round's head.
        round_number: the round's number.
        codec_name: the plan's codec for the way down.
        seed: of the run.
    """
    exact = head.matrix
    whole = Sent(round_number, exact, np.zeros(0, np.int64), np.zeros(0, np.uint8), codec_name)
    held = sent.matrix if len(sent.matrix) else np.zeros_like(exact)
    goes_on = sent.codec == codec_name if sent.round_number else not exact.any()
    if sent.round_number != round_number - 1 or not goes_on:
        return whole
    codec = find_codec(codec_name)
    change = encode_change(held, exact, codec, seed, round_number)
    now = add_change(held, change, codec, seed, round_number)
    if len(change) >= exact.nbytes or not np.isfinite(now).all():
        return whole
    lengths = np.append(sent.lengths, len(change))[-MOST_CHANGES:]
    # The oldest are forgotten: who missed them gets the whole head, which is smaller.
    kept = lengths[::-1][np.cumsum(lengths[::-1]) <= exact.nbytes][::-1]
    changes = np.append(sent.changes, np.frombuffer(change, np.uint8))
    return Sent(round_number, now, kept, changes[len(changes) - kept.sum() :], codec_name)


class Downlink:
    """The messages down of a run.

    Args:
        seed: of the run.
        sent: what has been sent so far.
        rounds: for each client that has answered, the last round whose message it got.

    Attributes:
        sent: as given; updated by ``send``.
        rounds: as given; updated by ``note``.
    """

    def __init__(self, seed: int, sent: Sent, rounds: Iterable[tuple[int, int]] = ()) -> None:
        self._seed = seed
        self.sent, self.rounds = sent, dict(rounds)

    def send(self, head: Head, plan: ClientPlan, round_number: int) -> Head:
        """The head that this round's clients start from, which is not quite the exact one.

        Args:
            head: the exact one.
            plan: the round's plan.
            round_number: the round's number.
        """
        if plan.downlink == "none":
            return head
        self.sent = advanced(self.sent, head, round_number, plan.downlink, self._seed)
        return Head.from_matrix(self.sent.matrix)

    def note(self, plan: ClientPlan, clients: Collection[int], round_number: int) -> None:
        """Record that clients have answered and so hold the head of this round."""
        if plan.downlink != "none":
            self.rounds |= dict.fromkeys(clients, round_number)

    def base(self, plan: ClientPlan, client: int) -> int | None:
        """The round from which a client's changes start; None if it gets the whole head."""
        base = self.rounds.get(client, 0)
        return base if plan.downlink != "none" and self.sent.leads_from(base) else None

    def changes(self, head: Head, base: int | None) -> HeadChanges | None:
        """What a client is sent in place of the whole head.

        Args:
            head: what ``send`` has returned.
            base: what ``base`` returns for the client.
        """
        payloads = None if base is None else self.sent.since(base)
        if base is None or payloads is None:
            return None
        return HeadChanges(base, payloads, head.matrix.shape, head_id(head))
