"""What a round asks of its phones, and what becomes of their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from client.gateway.record import Record
from client.gateway.runs import RunInfo
from common.messages import Rejection
from common.phones import phones_pb2 as pb
from common.records import to_record

__all__ = ["Order", "Result", "identity", "lacking", "task_id"]

_ID_DIGITS = 32


@dataclass(frozen=True)
class Result:
    """A phone's valid result, as it is kept on the disk.

    Attributes:
        words: what JSON can hold.
        parts: arrays as they were encoded.
    """

    words: Mapping[str, object]
    parts: Mapping[str, bytes]


class Order(Protocol):
    """One round.

    Attributes:
        kind: "sgd", "statistics" or "evaluate".
        run_id: of the run.
        round_number: its number; of an evaluation that of the run's last round.
        clients: whose phones are asked.
        fingerprint: of the backbone.
        private: whether nothing of single clients may be told.
        num_classes: K.
        num_features: d.
    """

    kind: str
    run_id: str
    round_number: int
    clients: tuple[int, ...]
    fingerprint: str
    private: bool
    num_classes: int
    num_features: int

    @property
    def identity(self) -> str:
        """The same for the same order, whenever it is sent."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """What a phone must be able to do."""
        ...

    def count(self, run: RunInfo, client: int) -> int:
        """Number of examples that a phone is held to; 0 if nothing is known of it."""
        ...

    def write(self) -> bytes:
        """The order, for the time after a kill."""
        ...

    def blobs(self) -> Mapping[str, bytes]:
        """What all its phones get, by the task's field."""
        ...

    def correction(self, client: int) -> bytes:
        """What one phone adds to each gradient; empty: nothing."""
        ...

    def fill(self, task: pb.Task, client: int, abilities: frozenset[str]) -> None:
        """Set the fields of a task that depend on the kind of the round."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Largest number of bytes of each array that a phone sends."""
        ...

    def judged(
        self, client: int, count: int, submission: pb.Submission, payloads: Mapping[str, bytes]
    ) -> Result:
        """A phone's valid result; for the clients of one order it may be called at once.

        Raises:
            RefusedError: it must not be aggregated.
            LostError: what the gateway keeps of the client is damaged.
            OSError: its memory cannot be kept now.
        """
        ...

    def reply(
        self,
        accepted: Sequence[int],
        load: Callable[[int], Record],
        rejected: Sequence[Rejection],
        phases: bytes = b"",
    ) -> bytes:
        """The content of the round's answer.

        Args:
            accepted: clients with a result, in the order of the request.
            load: reads a client's result.
            rejected: the others, with the reasons.
            phases: see ``TrainReply.phases``.
        """
        ...


def identity(request: Any, skip: tuple[str, ...], *more: str) -> str:
    """Hash of a request's plain values, without what is told anew whenever it is sent.

    Args:
        request: its dataclass.
        skip: its fields that are no plain values.
        more: hashes of these.
    """
    same = {"seconds": 0.0}
    if hasattr(request, "enough"):
        same |= {"enough": 0, "has_constant": False}
    values = dict(to_record(replace(request, **same), skip))
    said = json.dumps([sorted(values.items()), *more])
    return hashlib.sha256(said.encode()).hexdigest()


def task_id(order: str, client: int) -> str:
    """32 hexadecimal digits, the same after a restart."""
    return hashlib.sha256(f"{order} {client}".encode()).hexdigest()[:_ID_DIGITS]


def lacking(needs: Iterable[str], abilities: frozenset[str]) -> str:
    """The first of some abilities that a phone has not got; empty if it has all."""
    return next((name for name in needs if name not in abilities), "")
