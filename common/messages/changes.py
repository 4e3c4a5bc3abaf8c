"""The changes of the head since the one that a device knows, as they travel in a request."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ConfigRecord

from common.codecs import Codec
from common.codecs.downlink import add_change
from common.errors import ProtocolError
from common.messages.content import payload_list
from common.messages.heads import read_shape
from common.types import FloatArray, Head

__all__ = ["MOST_CHANGES", "HeadChanges", "head_id"]

MOST_CHANGES = 1000
"""The most changes of one request."""

_DIGITS = 16


def head_id(head: Head) -> str:
    """The first 16 hexadecimal digits of a head's SHA-256. They find accidents, not attackers."""
    return head.sha256[:_DIGITS]


@dataclass(frozen=True)
class HeadChanges:
    """The encoded changes of some rounds, one after the other.

    Attributes:
        base: the round whose head they start from; 0: from the head that is zero everywhere.
        payloads: the change of each round after it, see common.codecs.downlink.
        shape: (K, d + 1).
        head_id: of the head that they end with.
    """

    base: int
    payloads: tuple[bytes, ...]
    shape: tuple[int, int]
    head_id: str

    def write(self) -> ConfigRecord:
        """The record in which the whole head would be otherwise."""
        return ConfigRecord(
            {
                "changes": list(self.payloads),
                "shape": list(self.shape),
                "base": self.base,
                "head-id": self.head_id,
            }
        )

    @classmethod
    def read(cls, shared: ConfigRecord) -> HeadChanges:
        """The reverse of ``write``.

        Raises:
            ProtocolError: a key is missing or has another type, or there are too many changes.
        """
        shape = read_shape(shared)
        payloads = payload_list("changes", shared.get("changes"))
        base, identity = shared.get("base"), shared.get("head-id")
        if len(payloads) > MOST_CHANGES:
            raise ProtocolError(f"lists {len(payloads)} changes, expected at most {MOST_CHANGES}")
        if type(base) is not int or base < 0:
            raise ProtocolError(f"base is {base!r}, expected a round")
        if not isinstance(identity, str):
            raise ProtocolError("head-id is missing")
        return cls(base, payloads, shape, identity)

    def apply(self, held: FloatArray, round_number: int, codec: Codec, seed: int) -> Head | None:
        """The head that they end with; None if this is not the head that the server means.

        Args:
            held: float32 (K, d + 1), what the device holds.
            round_number: the round that it is of; changes of this round and before are skipped.
            codec: the plan's codec for the way down.
            seed: of the run.

        Raises:
            ReplyError: a payload is not the codec's.
        """
        first = round_number - self.base
        if held.shape != self.shape or not 0 <= first <= len(self.payloads):
            return None
        for number, payload in enumerate(self.payloads[first:], round_number + 1):
            held = add_change(held, payload, codec, seed, number)
        head = Head.from_matrix(held)
        return head if head_id(head) == self.head_id else None
