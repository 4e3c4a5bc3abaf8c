"""What a server asks a node besides training: who lives there, and what it has."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ProtocolError
from common.messages.content import Flat
from common.types import LocalTraining

__all__ = [
    "BackboneReply",
    "BackboneRequest",
    "BaselineRequest",
    "DescribeReply",
    "DescribeRequest",
]


@dataclass(frozen=True)
class DescribeRequest(Flat):
    """Asks a node which clients it hosts, and tells it the task.

    Attributes:
        run_id: names the run in the node's state folder.
        classes: names of the classes, in label order.
        test_fraction: part of a device's examples kept for its own evaluation.
        seed: of the run.
        name: of the run, for people.
        max_examples: images that a client may use at most; 0: all.
    """

    run_id: str
    classes: tuple[str, ...]
    test_fraction: float
    seed: int
    name: str = ""
    max_examples: int = 0


@dataclass(frozen=True)
class DescribeReply(Flat, record="report"):
    """What a node hosts.

    Attributes:
        clients: ids of the node's clients.
        num_examples: training examples of each.
        simulated: whether the node stands for phones, so that all data is on this machine.
        unused: images that are left out because of the request's bound.
        data: of a simulated node, the ``content_key`` of the data that it has read; else empty.
    """

    clients: tuple[int, ...]
    num_examples: tuple[int, ...]
    simulated: bool
    unused: int = 0
    data: str = ""

    def __post_init__(self) -> None:
        if len(self.clients) != len(self.num_examples):
            raise ProtocolError(
                f"{len(self.clients)} clients and {len(self.num_examples)} numbers of examples "
                "differ in length"
            )


@dataclass(frozen=True)
class BackboneRequest(Flat):
    """Asks whether a node has a backbone (no data), or brings it.

    Statement and signature are those of ``common.signing``, empty where nothing is signed.
    """

    fingerprint: str
    data: bytes = b""
    statement: bytes = b""
    signature: bytes = b""


@dataclass(frozen=True)
class BackboneReply(Flat, record="report"):
    """Whether the node has the backbone now."""

    present: bool


@dataclass(frozen=True)
class BaselineRequest(Flat):
    """Asks a simulated node for the heads that all clients' data in one place would give."""

    training: LocalTraining
    num_classes: int
    ridge_lambda: float
    seed: int
    fingerprint: str
