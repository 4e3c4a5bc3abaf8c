"""One round's order to a node, and its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from common.codecs import find_codec
from common.codecs.uplink import Uplink
from common.corrections import find_correction
from common.errors import ProtocolError
from common.fields import FIELDS
from common.messages.changes import HeadChanges
from common.messages.content import config_of, pack, payload_list, unpack
from common.messages.heads import decode_head, encode_head, read_head, write_head
from common.records import (
    from_columns,
    from_record,
    from_table,
    optional,
    table_row,
    to_columns,
    to_record,
    to_table,
)
from common.types import ClientPlan, Head, LocalTraining

__all__ = ["ClientReport", "Rejection", "TrainReply", "TrainRequest", "most_report_bytes"]

_FIELD = "field."  # before a field's name, as the key of its payloads
_REJECTED = "rejected-"
_REPORTS = "reports"
_PHASES = "phases"
_PRIVATE = ("clip", "unit_norm")  # of a plan; nothing needless is in a message
_MISSING = ("backbone", "constant", "head")


@dataclass(frozen=True, eq=False)
class TrainRequest:
    """One round's order to a node.

    Attributes:
        head: the global head.
        plan: what each client does.
        training: hyperparameters of local training.
        clients: which of the node's clients take part.
        round_number: from 1.
        run_id: names the run in the node's state folder.
        seed: of the run.
        fingerprint: of the backbone whose features the head reads.
        reduce: "sum", "individual", or "stock" for a reply in Flower's own format.
        max_norm: bound on an update's norm, 0 for none.
        memory_rounds: for each client, the round from whose memory it starts, which is the last
            one whose update counted; 0 for none; empty where clients remember nothing.
        oldest_round: to whose end the server may still go back, if its later checkpoints turn out
            to be damaged; 0 is before the first.
        seconds: time that the server waits for the answer, for a gateway; 0: it is not said.
        enough: how many of its clients' updates suffice, for a gateway; 0: those of all.
        counts: numbers of examples that the server knows of these clients, for a gateway; empty: it
            is not said
        constant_id: see ``content_id``, of the plan's constant arrays; empty where it has none.
        has_constant: whether they are in this message; if not, the clients have kept them.
        changes: what is sent in place of the whole head, to a device that knows an earlier one; a
            request that was read has them as long as nobody has found the head, and its ``head``
            means nothing until then.

    Raises:
        ProtocolError: the plan asks for a field, correction or codec that there is not, names a
            client or field twice, or has a clip and lets more than the clipped update out.
    """

    head: Head
    plan: ClientPlan
    training: LocalTraining
    clients: tuple[int, ...]
    round_number: int
    run_id: str
    seed: int
    fingerprint: str
    reduce: Literal["sum", "individual", "stock"]
    max_norm: float = 0.0
    memory_rounds: tuple[int, ...] = ()
    oldest_round: int = 0
    seconds: float = optional(0.0)
    enough: int = optional(0)
    counts: tuple[int, ...] = optional(())
    constant_id: str = ""
    has_constant: bool = False
    changes: HeadChanges | None = None

    def __post_init__(self) -> None:
        find_correction(self.plan.correction)
        find_codec(self.plan.downlink)
        for what, named in (("client", self.clients), ("field", self.plan.fields)):
            if len({*named}) < len(named):
                raise ProtocolError(f"a {what} is listed twice")
        _ = self.uplink.codec, self.uplink.layouts
        _check_private(self.plan, self.reduce)

    @property
    def uplink(self) -> Uplink:
        """How each client encodes what it sends."""
        head = self.head
        return Uplink(self.plan, head.num_classes, head.num_features, self.seed, self.round_number)

    def config(self) -> ConfigRecord:
        """All but the arrays; also what a stock strategy passes on to its nodes."""
        # Momentum is SGD's alone. A client that knows nothing else misses it, and refuses to train
        # by the wrong optimizer.
        alone = "optimizer" if self.training.optimizer == "sgd" else "momentum"
        apart = ("head", "changes", "arrays", "constant", "exclude", "everyone")
        private = () if self.plan.private else _PRIVATE
        return to_record(self, skip=(*apart, *private, alone))

    def write(self) -> RecordDict:
        shared = self.changes.write() if self.changes else encode_head(self.head)
        if self.plan.arrays:
            shared["plan"] = pack(self.plan.arrays)
        if self.has_constant:
            shared["constant"] = pack(self.plan.constant)
        return RecordDict({"config": self.config(), "shared": shared})

    @classmethod
    def read(cls, content: RecordDict) -> TrainRequest:
        config = dict(config_of(content, "config"))
        # Flower's FedProx writes its coefficient under this name.
        if "proximal-mu" in config:
            config["mu"] = config["proximal-mu"]
        config |= {"momentum": 0.0} if "optimizer" in config else {"optimizer": "sgd"}
        if "clip" not in config:
            config |= {"clip": 0.0, "unit-norm": 0.0}
        shared = ConfigRecord() if config.get("reduce") == "stock" else config_of(content, "shared")
        arrays, constant = (
            unpack(shared, name) if name in shared else {} for name in ("plan", "constant")
        )
        plan = from_record(
            ClientPlan, config, arrays=arrays, constant=constant, exclude=(), everyone=False
        )
        # What is missing is told before what the arrays are like.
        order = from_record(cls, config, head=Head.zeros(1, 1), changes=None, plan=plan)
        if order.reduce == "stock":
            return replace(order, head=read_head(content))
        if "changes" in shared:
            return replace(order, changes=HeadChanges.read(shared))
        return replace(order, head=decode_head(shared))


def _check_private(plan: ClientPlan, reduce: str) -> None:
    """Refuse a plan by which a client would tell anything that gets no noise.

    Raises:
        ProtocolError: names what the plan asks for.
    """
    for name in ("clip", "unit_norm"):
        if not 0 <= (value := getattr(plan, name)) < math.inf:
            raise ProtocolError(f"{name} is {value:g}, expected a finite number of at least 0")
    if not plan.private and plan.unit_norm:
        raise ProtocolError("unit_norm needs a clip")
    for name in plan.fields:
        if FIELDS[name].private != plan.private:
            needs = "with a clip" if plan.private else "without a clip"
            raise ProtocolError(f"a plan {needs} asks for the field {name!r}")
    if plan.private and not (
        plan.kind == "sgd" and plan.weighting == "uniform" and plan.correction == "none"
    ):
        raise ProtocolError("a plan with a clip trains, weights uniformly and corrects nothing")
    if plan.private and reduce == "stock":
        raise ProtocolError("Flower's own format holds a client's head, which has no noise")


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What one client says of its part of a round; a further figure is one more attribute.

    Attributes:
        client: its id.
        num_examples: that it has trained on; 1 under a plan with a clip, and the losses are 0.
        loss_before: mean loss of the global head on its examples.
        loss_after: the same of its local head; equal where nothing was trained.
        payload_bytes: what its own update weighs on the wire.
    """

    client: int
    num_examples: int
    loss_before: float
    loss_after: float
    payload_bytes: int = 0


@dataclass(frozen=True)
class Rejection:
    """A client whose update was refused on its node, and why."""

    client: int
    reason: str


@dataclass(frozen=True, eq=False)
class TrainReply:
    """A node's answer to a TrainRequest.

    Attributes:
        fingerprint: of the backbone that the node trained on.
        reports: of the clients that are in the payloads, in the order of their rows.
        rejected: the clients that are not.
        missing_backbone: the node has not got the backbone and did nothing.
        missing_constant: the same of the plan's constant arrays.
        missing_head: the same of the head that the request's changes start from.
        phases: of a gateway's phones, float64 (4, 2), little-endian: in seconds, median and 90th
            percentile of waiting, fetching, training and uploading; empty where nobody tells.
        payloads: by field, its rows as they are encoded: one a client, or a single one for the
            sum of all; see ``Uplink``.
    """

    fingerprint: str
    reports: tuple[ClientReport, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    missing_backbone: bool = False
    missing_constant: bool = False
    missing_head: bool = False
    phases: bytes = b""
    payloads: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)

    @property
    def clients(self) -> tuple[int, ...]:
        """Whose updates are in the payloads."""
        return tuple(report.client for report in self.reports)

    @property
    def rejected_clients(self) -> tuple[int, ...]:
        """Whose updates were refused."""
        return tuple(rejection.client for rejection in self.rejected)

    @property
    def lacks(self) -> bool:
        """Whether the node did nothing, because it has not got all that it needs."""
        return self.missing_backbone or self.missing_constant or self.missing_head

    def only(self, index: Sequence[int]) -> TrainReply:
        """What it reports of the clients at these positions, without payloads."""
        return replace(self, reports=tuple(self.reports[i] for i in index), payloads={})

    def _report(self) -> ConfigRecord:
        """All but the payloads. A phone sends it with each update, so nothing needless is in it."""
        record = ConfigRecord({"fingerprint": bytes.fromhex(self.fingerprint)})
        record[_REPORTS] = to_table(ClientReport, self.reports)
        if self.rejected:
            for key, values in to_columns(Rejection, self.rejected, _REJECTED).items():
                record[key] = values
        for what in _MISSING:
            if getattr(self, f"missing_{what}"):
                record[f"missing-{what}"] = True
        if self.phases:
            record[_PHASES] = self.phases
        return record

    def write(self) -> RecordDict:
        report = self._report()
        for name, rows in self.payloads.items():
            report[_FIELD + name] = list(rows)
        return RecordDict({"report": report})

    def write_stock(self, head: Head) -> RecordDict:
        """Flower's own format: the whole local head, num-examples and train_loss."""
        return RecordDict(
            {"arrays": write_head(head), "metrics": self.stock_metrics(), "report": self._report()}
        )

    def stock_metrics(self) -> MetricRecord:
        """What stock strategies weight by."""
        report = self.reports[0]
        return MetricRecord({"num-examples": report.num_examples, "train_loss": report.loss_before})

    @classmethod
    def read(cls, content: RecordDict) -> TrainReply:
        record = config_of(content, "report")
        payloads = {
            key.removeprefix(_FIELD): payload_list(key, rows)
            for key, rows in record.items()
            if key.startswith(_FIELD)
        }
        if not isinstance(fingerprint := record.get("fingerprint"), bytes):
            raise ProtocolError("fingerprint is missing")
        has_rejected = f"{_REJECTED}client" in record
        if not isinstance(phases := record.get(_PHASES, b""), bytes):
            raise ProtocolError(f"{_PHASES} is {type(phases).__name__}, expected bytes")
        missing = {f"missing_{what}": record.get(f"missing-{what}") is True for what in _MISSING}
        return cls(
            fingerprint=fingerprint.hex(),
            reports=from_table(ClientReport, record, _REPORTS),
            rejected=from_columns(Rejection, record, _REJECTED) if has_rejected else (),
            payloads=payloads,
            phases=phases,
            **missing,
        )


def most_report_bytes(clients: int) -> int:
    """Bytes that the reports of so many clients take in a reply."""
    return clients * table_row(ClientReport).itemsize
