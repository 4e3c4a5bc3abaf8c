"""A round in which phones train, or sum up their statistics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import ceil, prod

import numpy as np
import numpy.typing as npt

from client.client_round import ClientRound
from client.discretion import UNTOLD
from client.gateway.judge import LostError, RefusedError, check_claims, check_row, decoded
from client.gateway.orders import Result, identity
from client.gateway.record import Record
from client.gateway.runs import LARGEST_COUNT, RunInfo
from client.memory import ClientMemory
from client.reply import Contribution, node_reply, of_encoded
from common.codecs import NONE, Codec, find_codec
from common.corrections import find_correction
from common.errors import FedheadError, ProtocolError, ReplyError
from common.fields import field_layouts
from common.messages import Rejection, TrainRequest, content_id, content_to
from common.phones import phones_pb2 as pb
from common.plausible import Limits
from common.seeding import Purpose, stream_state
from common.types import Layout

__all__ = ["TrainOrder"]

logger = logging.getLogger("fedhead.gateway")

Array = npt.NDArray[np.generic]

_APART = ("head", "changes", "arrays", "constant", "exclude", "everyone")
_PHONES_CODECS = ("int8", "drive")
_FEW = 8  # clients whose payloads are kept beside their sum
_MOST_BYTES, _HEADER = 8, 1000  # of a number, and before the numbers; whatever the codec


class TrainOrder:
    """See ``Order``.

    Args:
        request: with its head and its constant arrays.
        memory: of the run's clients.

    Raises:
        ProtocolError: it is for Flower's own format, in which a gateway has no clients, or its
            numbers of examples are not those of its clients.
    """

    def __init__(self, request: TrainRequest, memory: ClientMemory) -> None:
        if request.reduce == "stock":
            raise ProtocolError("Flower's own strategies cannot train phones behind a gateway")
        self._counts = _counts(request)
        self.request, self._memory = request, memory
        self.kind: str = request.plan.kind
        self.run_id, self.round_number = request.run_id, request.round_number
        self.clients, self.fingerprint = request.clients, request.fingerprint
        self.private = request.plan.private
        self.num_classes = request.head.num_classes
        self.num_features = request.head.num_features

    @cached_property
    def identity(self) -> str:
        plan = self.request.plan
        return identity(self.request, _APART, self.request.head.sha256, content_id(plan.arrays))

    @cached_property
    def needs(self) -> tuple[str, ...]:
        plan, training = self.request.plan, self.request.training
        if plan.kind == "statistics":
            return ("statistics",)
        wanted = {
            training.optimizer: True,
            "momentum": training.momentum != 0,
            "weight-decay": training.weight_decay != 0,
            "mu": plan.mu != 0,
            "correction": find_correction(plan.correction).gradient is not None,
            "preconditioner": "preconditioner" in plan.constant,
            "clip": plan.private,
        }
        return ("sgd", *(name for name, needed in wanted.items() if needed and name != "sgd"))

    def count(self, run: RunInfo, client: int) -> int:
        # What the gateway was told last may be newer than what the server reckons with.
        return self._counts[client] if self._counts else run.counts.get(client, (0, 0))[0]

    def write(self) -> bytes:
        # The constant arrays lie in the run's folder, see client.memory.
        return content_to(replace(self.request, has_constant=False, changes=None).write())

    def blobs(self) -> Mapping[str, bytes]:
        found = {"head": _bytes(self.request.head.matrix)}
        if "preconditioner" in self.request.plan.constant and self.kind == "sgd":
            found["preconditioner"] = _bytes(self.request.plan.constant["preconditioner"])
        return found

    def correction(self, client: int) -> bytes:
        shared = self._round
        return _bytes(shared.corrections(np.array([client]))[0]) if shared.corrects else b""

    def fill(self, task: pb.Task, client: int, abilities: frozenset[str]) -> None:
        request, plan, training = self.request, self.request.plan, self.request.training
        task.kind = pb.Kind.SGD if self.kind == "sgd" else pb.Kind.STATISTICS
        task.fields.extend(self._sent)
        task.codec = "none"
        if self.kind != "sgd":
            return
        codec = self._phones_codec
        if codec != NONE.name and f"codec:{codec}" in abilities:
            task.codec = codec
            task.codec_seed = self._codec_seed(client)
        task.clip, task.unit_norm, task.max_norm = plan.clip, plan.unit_norm, request.max_norm
        task.training.CopyFrom(
            pb.Training(
                optimizer=training.optimizer,
                lr=training.lr,
                epochs=training.local_epochs,
                batch_size=training.batch_size,
                batch_seed=stream_state(
                    request.seed, Purpose.BATCH_ORDER, self.round_number, client
                ),
                momentum=training.momentum,
                weight_decay=training.weight_decay,
                mu=plan.mu,
            )
        )

    @cached_property
    def _sent(self) -> tuple[str, ...]:
        """The arrays that a phone sends: after SGD the delta alone, and the rest is made here."""
        plan = self.request.plan
        return plan.fields if self.kind != "sgd" or plan.private else ("delta",)

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        return field_layouts(self._sent, self.num_classes, self.num_features)

    @cached_property
    def _phones_codec(self) -> str:
        """The codec that phones may encode by.

        Whatever is computed from the delta here needs the delta as it was.
        """
        plan = self.request.plan
        is_plain = plan.fields == ("delta",) and not self._round.remembers
        return plan.uplink if is_plain and plan.uplink in _PHONES_CODECS else NONE.name

    @property
    def _round(self) -> ClientRound:
        """A new one for each use: it remembers what it has read, and threads share nothing."""
        return ClientRound(self.request, self._memory)

    def _codec_seed(self, client: int) -> int:
        return stream_state(self.request.seed, Purpose.UPLINK, self.round_number, client, 0)

    def sizes(self) -> Mapping[str, int]:
        return {n: _MOST_BYTES * prod(a.shape) + _HEADER for n, a in self._layouts.items()}

    def judged(
        self, client: int, count: int, submission: pb.Submission, payloads: Mapping[str, bytes]
    ) -> Result:
        request = self.request
        losses = [submission.loss_before]
        if self.kind == "sgd":
            losses.append(submission.loss_after)
        check_claims(submission, self.fingerprint, count, () if self.private else losses)
        if set(payloads) != set(self._layouts):
            words = f"sent the fields {sorted(payloads)}, expected {sorted(self._layouts)}"
            raise RefusedError("wrong-shape", words)
        codec = self._codec_of(payloads)
        sent = {
            name: decoded(codec, payloads[name], layout, self._codec_seed(client), name)
            for name, layout in self._layouts.items()
        }
        limits = Limits(count, request.training.most_steps(count), codec.rounding)
        check_row(sent, self._layouts, request.max_norm, limits)
        if codec is not NONE:
            return self._result(client, count, losses, payloads)
        fields: Mapping[str, Array] = sent
        if self.kind == "sgd" and not self.private:
            fields = self._made(client, count, submission.loss_before, sent["delta"])
            check_row(fields, request.uplink.layouts, request.max_norm, limits)
        return self._result(client, count, losses, request.uplink.encode(client, fields))

    def _codec_of(self, payloads: Mapping[str, bytes]) -> Codec:
        """How a phone has encoded its delta: by the task's codec, or not at all."""
        plain = 4 * prod(self._layouts["delta"].shape) if "delta" in self._layouts else 0
        if self._phones_codec == NONE.name or len(payloads["delta"]) == plain:
            return NONE
        return find_codec(self._phones_codec)

    def _made(self, client: int, count: int, loss: float, delta: Array) -> Mapping[str, Array]:
        """The plan's fields, from a phone's delta; its memory is kept."""
        training = self.request.training
        steps = training.local_epochs * ceil(count / training.batch_size)
        try:
            return self._round.finish(client, delta.astype(np.float32), steps=steps, loss=loss)
        except ReplyError as exc:
            raise RefusedError("impossible", str(exc)) from exc
        except FedheadError as exc:
            cause = exc.__cause__
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise cause from exc  # there is no room for its memory now, but there may be later
            raise LostError(str(exc)) from exc

    def _result(
        self, client: int, count: int, losses: Sequence[float], payloads: Mapping[str, bytes]
    ) -> Result:
        """What is kept, once the server would take it."""
        try:
            (report,) = of_encoded(self.request, client, count, losses, payloads).reports
        except ReplyError as exc:
            raise RefusedError("impossible", f"as the server decodes it, {exc}") from exc
        said = {"num-examples": report.num_examples}
        return Result(said | {"losses": [report.loss_before, report.loss_after]}, payloads)

    def reply(
        self,
        accepted: Sequence[int],
        load: Callable[[int], Record],
        rejected: Sequence[Rejection],
        phases: bytes = b"",
    ) -> bytes:
        request, damaged = self.request, list[Rejection]()
        uplink = request.uplink
        # A sum of many takes the place of their payloads, which may be more than fits in memory.
        sums = request.reduce == "sum" and (uplink.is_transparent or len(accepted) > _FEW)

        def contributions() -> Iterator[Contribution]:
            for client in accepted:
                try:
                    words, parts = load(client)
                    losses = [float(loss) for loss in words["losses"]]
                    part = of_encoded(request, client, int(words["num-examples"]), losses, parts)
                except (FedheadError, OSError, KeyError) as exc:
                    # Nobody may know who took part in a private round.
                    logger.warning("an update is lost: %s", "" if self.private else exc)
                    damaged.append(Rejection(client, "failed: the gateway has lost its update"))
                else:
                    yield replace(part, payloads=()) if sums else part

        reply = node_reply(request, contributions(), None)
        left_out = [*rejected, *damaged]
        if self.private:
            left_out = [Rejection(rejection.client, UNTOLD) for rejection in left_out]
        return content_to(replace(reply, rejected=tuple(left_out), phases=phases).write())


def _counts(request: TrainRequest) -> dict[int, int]:
    """What the server says of its clients; empty if it says nothing."""
    counts = request.counts
    if counts and len(counts) != len(request.clients):
        raise ProtocolError(f"{len(counts)} counts of {len(request.clients)} clients")
    if odd := [count for count in counts if not 0 <= count <= LARGEST_COUNT]:
        raise ProtocolError(f"a client has {odd[0]} examples, expected up to {LARGEST_COUNT}")
    return dict(zip(request.clients, counts, strict=bool(counts)))


def _bytes(array: npt.NDArray[np.floating]) -> bytes:
    return np.ascontiguousarray(array, "<f4").tobytes()
