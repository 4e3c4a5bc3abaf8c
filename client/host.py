"""The clients on a node: one device with its own folder, or simulated clients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from client.budget import Budget
from common.errors import ProtocolError
from common.messages import DescribeReply, DescribeRequest
from common.types import FeatureSet

if TYPE_CHECKING:  # a gateway's process, which uses the folders alone, goes without torch
    from client.cohort.cohort import Cohort
    from client.sgd import Gradient
    from common.backbone.frozen import FrozenBackbone

__all__ = ["Host", "Part", "run_folder"]

Part = Literal["train", "test"]


class Host(Protocol):
    """The clients of one node and their data.

    Attributes:
        simulated: whether all clients' data is on this machine.
        state: folder for the memories of a run's clients.
        budget: the limits set by the node's owner.
    """

    simulated: bool
    state: Path
    budget: Budget

    def describe(self, request: DescribeRequest) -> DescribeReply:
        """The clients on this node, and how many training examples each has, see the request."""
        ...

    def clients(self) -> tuple[int, ...]:
        """Ids of the clients on this node."""
        ...

    def train_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        """The client's training examples."""
        ...

    def test_features(self, client: int, backbone: FrozenBackbone, run_id: str) -> FeatureSet:
        """The client's own test part, possibly empty."""
        ...

    def cohort(self, backbone: FrozenBackbone, part: Part) -> Cohort | None:
        """All clients' examples, to train them together; None: train one by one."""
        ...

    def gradient(self) -> Gradient | None:
        """Of what clients minimise; None: the cross-entropy."""
        ...

    def name(self, client: int) -> str:
        """The client's name in the node's log."""
        ...

    def tell(self, run_id: str, words: str) -> None:
        """Tell a device's owner what the device does."""
        ...


def run_folder(state: Path, run_id: str) -> Path:
    """The folder of one run in a host's state folder.

    Raises:
        ProtocolError: the id comes from outside and is not a plain name.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", run_id):
        raise ProtocolError(f"run-id {run_id!r} is not a plain name")
    return state / run_id
