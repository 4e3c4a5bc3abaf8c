"""The backbone that a run sends to nodes: its bytes and, if signed, its signature.

A deployment with signing keeps signed backbones in its server's folder, as artifacts with the
experiment's name (see common/delivery/versions)::

    backbones/mine/1/ ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.backbone.frozen import FrozenBackbone
from common.delivery.versions import Artifact, known_versions, read_artifact, shelf_of
from common.errors import FedheadError, RunError
from common.messages import BackboneReply, BackboneRequest
from common.signing.statement import Signed, Statement
from server.round.exchange import ask
from server.round.replies import check_lengths

__all__ = ["Offer", "deliver", "newest_signed", "offer"]


@dataclass(frozen=True)
class Offer:
    """A backbone for nodes that do not have it.

    Attributes:
        fingerprint: the backbone's fingerprint.
        read: returns the payload.
        signed: statement and signature; None: unsigned.
        basis_bytes: the part of the payload that is the projection, in a simulation.
    """

    fingerprint: str
    read: Callable[[], bytes]
    signed: Signed | None = None
    basis_bytes: int = 0

    def request(self, *, brings: bool) -> BackboneRequest:
        """The message that asks a node whether it has the backbone, or brings it."""
        signed = self.signed or Signed(b"", b"")
        data = self.read() if brings else b""
        return BackboneRequest(self.fingerprint, data, signed.statement, signed.signature)


def newest_signed(folder: Path, name: str) -> tuple[Artifact, Statement] | None:
    """The last backbone that was signed for an experiment, with its statement.

    Raises:
        DeliveryError, SignatureError: it is damaged.
    """
    shelf = shelf_of(folder, name)
    versions = known_versions(shelf)
    if not versions:
        return None
    artifact = read_artifact(shelf, versions[-1])
    return artifact, Statement.from_bytes(artifact.signed.statement if artifact.signed else b"")


def offer(backbone: FrozenBackbone, name: str, folder: Path | None) -> Offer:
    """The backbone to send.

    Args:
        backbone: the run's backbone.
        name: the experiment's name.
        folder: folder of signed backbones; None: a simulation, or a deployment without signing.

    Raises:
        RunError: another backbone was signed, or the signed file is damaged.
    """
    if folder is None:
        basis_bytes = backbone.projection.payload_bytes if backbone.projection else 0
        return Offer(backbone.fingerprint, backbone.to_bytes, basis_bytes=basis_bytes)
    found = newest_signed(folder, name)
    if found is None or found[1].fingerprint != backbone.fingerprint:
        signed = found[1].fingerprint[:12] if found else "none"
        raise RunError(
            f"{folder}: the backbone signed for {name} is {signed}, but the run's is "
            f"{backbone.fingerprint[:12]}: does the SuperLink run with the same packages and data?"
        )
    artifact = found[0]
    path = artifact.path(shelf_of(folder, name))
    if problem := artifact.damage(path):
        raise RunError(f"{path} is damaged: {problem}")
    return Offer(backbone.fingerprint, path.read_bytes, artifact.signed)


def deliver(
    offered: Offer,
    grid: Grid,
    nodes: Sequence[int],
    timeout_seconds: float,
    refuse: Callable[[int, str], None],
    sent: Callable[[Sequence[int], int], None],
    *,
    told: bool = True,
) -> list[tuple[int, str]]:
    """Send the backbone to the nodes that do not have it.

    Args:
        offered: the backbone.
        grid: to reach the nodes.
        nodes: nodes to ask.
        timeout_seconds: time for all nodes: half of it to say whether they have the backbone, the
            rest to receive it.
        refuse: called for nodes whose answers are impossible.
        sent: called with the nodes that get it and the bytes for each.
        told: whether anybody may know which nodes are asked; if not, nothing is called or logged.

    Returns:
        Each node that did not take it, with the reason in words; none if that is not told.
    """
    if not nodes:
        return []
    if not told:
        refuse = sent = _unheard
    question = offered.request(brings=False)
    ends = time.monotonic() + timeout_seconds
    answers, refusals = ask(
        grid, "query.backbone", lambda _: question.write(), nodes, timeout_seconds / 2, refuse, told
    )
    problems = [(n, f"does not take the backbone: {why}") for n, why in refusals.items()]
    lacking = [node for node, answer in sorted(answers.items()) if _lacks(node, answer, refuse)]
    if not lacking:
        return problems if told else []
    delivery = offered.request(brings=True)
    sent(lacking, len(delivery.data))
    left = max(0.0, ends - time.monotonic())
    _, errors = ask(grid, "query.backbone", lambda _: delivery.write(), lacking, left, refuse, told)
    problems += [(n, f"did not take the backbone: {why}") for n, why in errors.items()]
    return problems if told else []


def _unheard(_who: object, _what: object) -> None: ...


def _lacks(node: int, answer: RecordDict, refuse: Callable[[int, str], None]) -> bool:
    try:
        check_lengths(answer, 0)
        return not BackboneReply.read(answer).present
    except FedheadError as exc:
        refuse(node, f"does not say whether it has the backbone, {exc}")
        return False  # if it does not have the backbone, it says so when it is to train
