"""A round in which phones evaluate a head on their own test parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from client.gateway.judge import RefusedError, check_claims
from client.gateway.orders import Result, identity
from client.gateway.record import Record
from client.gateway.runs import RunInfo
from common.errors import FedheadError, ProtocolError
from common.messages import (
    ClientEvaluation,
    EvaluateReply,
    EvaluateRequest,
    Rejection,
    content_to,
)
from common.phones import phones_pb2 as pb
from common.temperature import SHARPNESS

__all__ = ["EvaluateOrder"]

logger = logging.getLogger("fedhead.gateway")


class EvaluateOrder:
    """See ``Order``.

    Args:
        request: the server's.
        round_number: of the run's last round.

    Raises:
        ProtocolError: it asks for heads of each client's own, which phones do not make.
    """

    kind = "evaluate"
    private = False
    needs = ("evaluate",)

    def __init__(self, request: EvaluateRequest, round_number: int) -> None:
        if request.personal or request.alone:
            raise ProtocolError("phones behind a gateway make no personal heads")
        self.request, self.round_number = request, round_number
        self.run_id, self.clients = request.run_id, request.clients
        self.fingerprint = request.fingerprint
        self.num_classes = request.head.num_classes
        self.num_features = request.head.num_features

    @cached_property
    def identity(self) -> str:
        return identity(self.request, ("head",), self.request.head.sha256)

    def count(self, run: RunInfo, client: int) -> int:
        return run.counts.get(client, (0, 0))[1]

    def write(self) -> bytes:
        return content_to(self.request.write())

    def blobs(self) -> Mapping[str, bytes]:
        return {"head": np.ascontiguousarray(self.request.head.matrix, "<f4").tobytes()}

    def correction(self, client: int) -> bytes:
        return b""

    def fill(self, task: pb.Task, client: int, abilities: frozenset[str]) -> None:
        task.kind = pb.Kind.EVALUATE

    def sizes(self) -> Mapping[str, int]:
        return {}

    def judged(
        self, client: int, count: int, submission: pb.Submission, payloads: Mapping[str, bytes]
    ) -> Result:
        check_claims(submission, self.fingerprint, count, [submission.loss_before])
        if payloads:
            raise RefusedError("wrong-shape", f"sent {sorted(payloads)}, expected no array")
        if submission.correct > count:
            raise RefusedError(
                "impossible", f"{submission.correct} of {count} examples are correct"
            )
        if len(submission.losses) != SHARPNESS.size * 8:
            words = f"losses take {len(submission.losses)} bytes, expected {SHARPNESS.size * 8}"
            raise RefusedError("wrong-shape", words)
        curve = np.frombuffer(submission.losses, "<f8")
        if not np.isfinite(curve).all():
            raise RefusedError("not-finite", "a loss by temperature is not finite")
        if (curve < 0).any():
            raise RefusedError("impossible", f"a loss by temperature is {curve.min():g}")
        said = {"correct": submission.correct, "loss": submission.loss_before, "count": count}
        return Result(said, {"losses": submission.losses})

    def reply(
        self,
        accepted: Sequence[int],
        load: Callable[[int], Record],
        rejected: Sequence[Rejection],
        phases: bytes = b"",
    ) -> bytes:
        found = []
        for client in accepted:
            try:
                words, parts = load(client)
                count, correct = int(words["count"]), int(words["correct"])
                row = client, count, correct, float(words["loss"])
                found.append(ClientEvaluation(*row, losses=parts["losses"]))
            except (FedheadError, OSError, KeyError) as exc:
                logger.warning("client %d: its evaluation is lost: %s", client, exc)
        return content_to(EvaluateReply(tuple(found)).write())
