"""Messages for evaluating a head on each client's own test part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, RecordDict

from common.errors import ReplyError
from common.messages.content import config_of
from common.messages.heads import decode_head, encode_head
from common.records import from_columns, from_record, optional, to_columns, to_record
from common.types import Head

__all__ = ["ClientEvaluation", "EvaluateReply", "EvaluateRequest"]


@dataclass(frozen=True, eq=False)
class EvaluateRequest:
    """Asks clients to evaluate a head on their own test parts.

    Attributes:
        head: the global head.
        clients: the node's clients that are asked.
        fingerprint: fingerprint of the backbone whose features the head takes.
        run_id: names the run in the node's state folder.
        personal: lambda for a personal head of each client; 0: no personal heads; -1: each client
            chooses its own.
        leverage: mean leverage of the training examples in the head, for a client that chooses; 0
            if nobody knows it.
        alone: whether each client also makes a head of its own examples alone.
        seconds: time that the server waits for the answer, for a gateway; 0: it is not said.
        enough: how many clients' answers suffice, for a gateway; 0: those of all.
    """

    head: Head
    clients: tuple[int, ...]
    fingerprint: str
    run_id: str
    personal: float = 0.0
    leverage: float = 0.0
    alone: bool = False
    seconds: float = optional(0.0)
    enough: int = optional(0)

    def write(self) -> RecordDict:
        shared = encode_head(self.head)
        return RecordDict({"config": to_record(self, skip=("head",)), "shared": shared})

    @classmethod
    def read(cls, content: RecordDict) -> EvaluateRequest:
        head = decode_head(config_of(content, "shared"))
        return from_record(cls, config_of(content, "config"), head=head)


@dataclass(frozen=True)
class ClientEvaluation:
    """Counts on one client's own test part.

    Attributes:
        client: its id.
        num_examples: number of test examples.
        correct: number that the global head classifies correctly.
        loss: mean cross-entropy of the global head.
        personal_correct: number that the client's own head classifies correctly; 0 if there is
            none.
        alone_correct: the same of the head that is made of the client's own examples alone.
        losses: float64 (49,), little-endian: mean cross-entropy of the global head at each value
            of ``common.temperature.SHARPNESS``.
    """

    client: int
    num_examples: int
    correct: int
    loss: float
    personal_correct: int = 0
    alone_correct: int = 0
    losses: bytes = b""

    @property
    def curve(self) -> npt.NDArray[np.float64]:
        """``losses`` as an array, of whatever length.

        Raises:
            ReplyError: the bytes are no float64 numbers.
        """
        if len(self.losses) % 8:
            raise ReplyError(f"losses by temperature take {len(self.losses)} bytes")
        return np.frombuffer(self.losses, "<f8").astype(np.float64)


@dataclass(frozen=True)
class EvaluateReply:
    """Counts of the node's clients that have a test part."""

    evaluations: tuple[ClientEvaluation, ...]

    def write(self) -> RecordDict:
        columns = to_columns(ClientEvaluation, self.evaluations)
        return RecordDict({"report": ConfigRecord(dict(columns))})

    @classmethod
    def read(cls, content: RecordDict) -> EvaluateReply:
        return cls(from_columns(ClientEvaluation, config_of(content, "report")))
