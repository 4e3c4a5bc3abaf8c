"""Questions of a server to a node besides training: its clients, its backbone, baselines."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ProtocolError
from common.messages.content import Flat
from common.records import optional

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
        test_fraction: share of a device's examples that it keeps for its own evaluation.
        seed: the run's seed.
        name: the run's name, for people.
        max_examples: largest number of images that a client may use; 0: all.
        private: whether the run is differentially private: nodes then say of each client only
            whether it has training examples, as the number 1 or 0.
        fingerprint: of the run's backbone, for a gateway; empty: it is not said.
    """

    run_id: str
    classes: tuple[str, ...]
    test_fraction: float
    seed: int
    name: str = ""
    max_examples: int = 0
    private: bool = False
    fingerprint: str = optional("")


@dataclass(frozen=True)
class DescribeReply(Flat, record="report"):
    """The clients of a node.

    Attributes:
        clients: ids of the node's clients.
        num_examples: number of training examples of each; in a private run 1 if it has any.
        simulated: whether the clients are simulated, so that all data is on this machine.
        unused: number of images that are left out because of the request's bound.
        data: the ``content_key`` of a simulated node's data; empty on a device.
        changing: whether clients come and go, as behind a gateway: the server asks each round.
    """

    clients: tuple[int, ...]
    num_examples: tuple[int, ...]
    simulated: bool
    unused: int = 0
    data: str = ""
    changing: bool = optional(False)

    def __post_init__(self) -> None:
        if len(self.clients) != len(self.num_examples):
            raise ProtocolError(
                f"{len(self.clients)} clients and {len(self.num_examples)} numbers of examples "
                "differ in length"
            )


@dataclass(frozen=True)
class BackboneRequest(Flat):
    """Asks whether a node has a backbone, or brings it as ``data``.

    Statement and signature are those of ``common.signing``; empty if unsigned.
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
    """Asks a simulated node for the best linear heads of all clients' data in one place.

    Attributes:
        ridge_lambda: penalty of the ridge head; 0: chosen from the sums, see common.ridge.
    """

    num_classes: int
    ridge_lambda: float
    seed: int
    fingerprint: str
