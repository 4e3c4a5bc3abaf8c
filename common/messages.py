"""What travels between server and node: the only place where Flower's record keys live.

===============  ==============================================  ==============================
message          content                                         reply
===============  ==============================================  ==============================
query.describe   config                                          report
query.backbone   config: the fingerprint, with or without bytes  report
train            config, shared: head, arrays of the plan        report: arrays
train (stock)    arrays (head), config                           arrays (head), metrics, report
evaluate         config, shared: head                            report
query.baselines  config                                          report: arrays (two heads)
===============  ==============================================  ==============================

Arrays lie in a record of values as safetensors: a SuperLink keeps each record, array and piece of
an array as an object of its own, with requests of its own, and they are what it has time for. Equal
objects are kept and sent to it once, so what all nodes get is in a record of its own. A stock
strategy gets the arrays and metrics that it knows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from safetensors.numpy import load, save

from common.errors import ProtocolError
from common.records import from_record, to_record
from common.types import ClientPlan, FloatArray, Head, LocalTraining

__all__ = [
    "BackboneReply",
    "BackboneRequest",
    "BaselineRequest",
    "DescribeReply",
    "DescribeRequest",
    "EvaluateReply",
    "EvaluateRequest",
    "TrainReply",
    "TrainRequest",
    "array_bytes",
    "content_id",
    "payload_bytes",
    "read_head",
    "read_heads",
    "write_head",
    "write_heads",
]

Arrays = Mapping[str, npt.NDArray[np.generic]]
T = TypeVar("T")


def payload_bytes(content: RecordDict) -> int:
    """Size of a message's content as it is serialized."""
    return int(recorddict_to_proto(content).ByteSize())


def array_bytes(content: RecordDict) -> int:
    """What a reply's arrays take as they came, before anything of them is read."""
    stock = sum(len(a.data) for record in content.array_records.values() for a in record.values())
    report = content.get("report")
    packed = report.get("arrays") if isinstance(report, ConfigRecord) else None
    return stock + (len(packed) if isinstance(packed, bytes) else 0)


def _config(content: RecordDict, name: str) -> ConfigRecord:
    record = content.get(name)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError(f"record {name!r} is missing")
    return record


def _pack(arrays: Arrays) -> bytes:
    return save({key: np.ascontiguousarray(a) for key, a in arrays.items()})


def _unpack(record: Mapping[str, Any], key: str) -> dict[str, npt.NDArray[Any]]:
    if key not in record:
        raise ProtocolError(f"{key} is missing")
    try:
        return load(record[key])
    except Exception as exc:
        # Foreign bytes raise many kinds; none of them may end a server.
        raise ProtocolError(f"{key!r} holds arrays that cannot be read") from exc


def content_id(arrays: Arrays) -> str:
    """SHA-256 of named arrays, hex; empty for none."""
    if not arrays:
        return ""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _named(head: Head) -> dict[str, FloatArray]:
    return {"head.weight": head.weight, "head.bias": head.bias}


def _head(arrays: Arrays) -> Head:
    if set(arrays) != {"head.weight", "head.bias"}:
        raise ProtocolError(f"arrays are {sorted(arrays)}, expected head.bias and head.weight")
    weight, bias = arrays["head.weight"], arrays["head.bias"]
    if weight.dtype.kind != "f" or bias.dtype.kind != "f":
        raise ProtocolError(f"head has dtypes {weight.dtype} and {bias.dtype}, expected floats")
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ProtocolError(f"head.weight is {weight.shape} and head.bias {bias.shape}")
    return Head(weight.astype(np.float32), bias.astype(np.float32))


def write_head(head: Head) -> ArrayRecord:
    """The head as Flower arrays; the keys a stock strategy averages."""
    return ArrayRecord({key: Array(np.ascontiguousarray(a)) for key, a in _named(head).items()})


def read_head(content: RecordDict) -> Head:
    """The reverse of write_head; float64 sums of a stock strategy become float32."""
    record = content.get("arrays")
    if not isinstance(record, ArrayRecord):
        raise ProtocolError("record 'arrays' is missing")
    try:
        arrays = {str(key): array.numpy() for key, array in record.items()}
    except Exception as exc:
        # numpy raises many kinds on foreign bytes.
        raise ProtocolError("record 'arrays' holds an array that cannot be read") from exc
    return _head(arrays)


def write_heads(heads: Mapping[str, Head]) -> RecordDict:
    """Several named heads in one reply."""
    packed = _pack({name: head.matrix for name, head in heads.items()})
    return RecordDict({"report": ConfigRecord({"arrays": packed})})


def read_heads(content: RecordDict) -> dict[str, Head]:
    """The reverse of write_heads."""
    arrays = _unpack(_config(content, "report"), "arrays")
    return {name: Head.from_matrix(matrix) for name, matrix in arrays.items()}


def _same_length(first: Sized, *others: Sized) -> None:
    if any(len(other) != len(first) for other in others):
        raise ProtocolError("lists with one entry a client differ in length")


class _Flat:
    """A message that is one record of plain values."""

    _record: ClassVar[str]

    def __init_subclass__(cls, record: str = "config") -> None:
        cls._record = record

    def write(self) -> RecordDict:
        return RecordDict({self._record: to_record(self)})

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        return from_record(cls, _config(content, cls._record))


@dataclass(frozen=True)
class DescribeRequest(_Flat):
    """Asks a node which clients it hosts, and tells it the task.

    Attributes:
        run_id: names the run in the node's state folder.
        classes: names of the classes, in label order.
        test_fraction: part of a device's examples kept for its own evaluation.
        seed: of the run.
        name: of the run, for people.
        max_examples: pictures that a client may use at most; 0: all.
    """

    run_id: str
    classes: tuple[str, ...]
    test_fraction: float
    seed: int
    name: str = ""
    max_examples: int = 0


@dataclass(frozen=True)
class DescribeReply(_Flat, record="report"):
    """What a node hosts.

    Attributes:
        clients: ids of the node's clients.
        num_examples: training examples of each.
        simulated: whether the node stands for phones, so that all data is on this machine.
        unused: pictures that are left out because of the request's bound.
    """

    clients: tuple[int, ...]
    num_examples: tuple[int, ...]
    simulated: bool
    unused: int = 0

    def __post_init__(self) -> None:
        _same_length(self.clients, self.num_examples)


@dataclass(frozen=True)
class BackboneRequest(_Flat):
    """Asks whether a node has a backbone (no data), or brings it.

    Statement and signature are those of ``common.signing``, empty where nothing is signed.
    """

    fingerprint: str
    data: bytes = b""
    statement: bytes = b""
    signature: bytes = b""


@dataclass(frozen=True)
class BackboneReply(_Flat, record="report"):
    """Whether the node has the backbone now."""

    present: bool


@dataclass(frozen=True, eq=False)
class TrainRequest:
    """One round's order to a node.

    Attributes:
        head: the global head.
        plan: what each client does.
        training: hyperparameters of local SGD.
        clients: which of the node's clients take part.
        round_number: from 1.
        run_id: names the run in the node's state folder.
        seed: of the run.
        fingerprint: of the backbone whose features the head reads.
        reduce: "sum", "individual", or "stock" for a reply in Flower's own format.
        max_norm: bound on an update's norm, 0 for none.
        counted: for each client, the last round whose update counted and that it starts from,
            0 for none; empty where clients remember nothing.
        oldest_round: to whose end the server may still go back, if its later checkpoints turn out
            to be damaged; 0 is before the first.
        constant_id: see ``content_id``, of the plan's constant arrays; empty where it has none.
        brings: whether they are in this message; if not, the clients have kept them.
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
    counted: tuple[int, ...] = ()
    oldest_round: int = 0
    constant_id: str = ""
    brings: bool = False

    def config(self) -> ConfigRecord:
        """All but the arrays; also what a stock strategy passes on to its nodes."""
        return to_record(self, skip=("head", "arrays", "constant", "exclude", "everyone"))

    def write(self) -> RecordDict:
        shared = ConfigRecord({"head": _pack(_named(self.head))})
        if self.plan.arrays:
            shared["plan"] = _pack(self.plan.arrays)
        if self.brings:
            shared["constant"] = _pack(self.plan.constant)
        return RecordDict({"config": self.config(), "shared": shared})

    @classmethod
    def read(cls, content: RecordDict) -> TrainRequest:
        config = dict(_config(content, "config"))
        # Flower's FedProx writes its coefficient under this name.
        if "proximal-mu" in config:
            config["mu"] = config["proximal-mu"]
        arrays, constant = {}, {}
        if config.get("reduce") == "stock":
            head = read_head(content)
        else:
            shared = _config(content, "shared")
            head = _head(_unpack(shared, "head"))
            arrays, constant = (
                _unpack(shared, name) if name in shared else {} for name in ("plan", "constant")
            )
        plan = from_record(
            ClientPlan, config, arrays=arrays, constant=constant, exclude=(), everyone=False
        )
        return from_record(cls, config, head=head, plan=plan)


@dataclass(frozen=True, eq=False)
class TrainReply:
    """A node's answer to a TrainRequest.

    Attributes:
        fingerprint: of the backbone that the node trained on.
        clients: who is in the fields, in the order of their rows (or sum).
        num_examples: of each client.
        loss_before: mean loss of the global head on each client's examples.
        loss_after: the same of its local head.
        payload_bytes: what each client's own update weighs on the wire.
        rejected_clients: clients whose update was refused on the node.
        rejected_reasons: why, in the same order.
        missing_backbone: the node has not got the backbone and did nothing.
        missing_constant: the same of the plan's constant arrays.
        fields: arrays (m, ...), or (1, ...) for a sum.
    """

    fingerprint: str
    clients: tuple[int, ...] = ()
    num_examples: tuple[int, ...] = ()
    loss_before: tuple[float, ...] = ()
    loss_after: tuple[float, ...] = ()
    payload_bytes: tuple[int, ...] = ()
    rejected_clients: tuple[int, ...] = ()
    rejected_reasons: tuple[str, ...] = ()
    missing_backbone: bool = False
    missing_constant: bool = False
    fields: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        _same_length(
            self.clients, self.num_examples, self.loss_before, self.loss_after, self.payload_bytes
        )
        _same_length(self.rejected_clients, self.rejected_reasons)

    def write(self) -> RecordDict:
        report = to_record(self, skip=("fields",))
        report["arrays"] = _pack(self.fields)
        return RecordDict({"report": report})

    def only(self, index: Sequence[int]) -> TrainReply:
        """What it reports of the clients at these positions, without arrays."""

        def pick(values: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(values[i] for i in index)

        return replace(
            self,
            clients=pick(self.clients),
            num_examples=pick(self.num_examples),
            loss_before=pick(self.loss_before),
            loss_after=pick(self.loss_after),
            payload_bytes=pick(self.payload_bytes),
            fields={},
        )

    def write_stock(self, head: Head) -> RecordDict:
        """Flower's own format: the whole local head, num-examples and train_loss."""
        report = to_record(self, skip=("fields",))
        return RecordDict(
            {"arrays": write_head(head), "metrics": self.stock_metrics(), "report": report}
        )

    def stock_metrics(self) -> MetricRecord:
        """What stock strategies weight by."""
        return MetricRecord(
            {"num-examples": self.num_examples[0], "train_loss": self.loss_before[0]}
        )

    @classmethod
    def read(cls, content: RecordDict) -> TrainReply:
        report = _config(content, "report")
        fields = {} if "arrays" in content else _unpack(report, "arrays")  # the stock form's head
        return from_record(cls, report, fields=fields)


@dataclass(frozen=True, eq=False)
class EvaluateRequest:
    """Asks clients how well a head does on their own test parts.

    Attributes:
        head: the global head.
        clients: which of the node's clients are meant.
        fingerprint: of the backbone whose features the head reads.
        run_id: names the run in the node's state folder.
        personal: lambda with which each client makes a head of its own as well, 0 for none.
    """

    head: Head
    clients: tuple[int, ...]
    fingerprint: str
    run_id: str
    personal: float = 0.0

    def write(self) -> RecordDict:
        shared = ConfigRecord({"head": _pack(_named(self.head))})
        return RecordDict({"config": to_record(self, skip=("head",)), "shared": shared})

    @classmethod
    def read(cls, content: RecordDict) -> EvaluateRequest:
        head = _head(_unpack(_config(content, "shared"), "head"))
        return from_record(cls, _config(content, "config"), head=head)


@dataclass(frozen=True)
class EvaluateReply(_Flat, record="report"):
    """Counts on each client's local test part; a client without one is left out.

    ``personal_correct`` is what the clients' own heads get right; empty where none were asked for.
    """

    clients: tuple[int, ...]
    num_examples: tuple[int, ...]
    correct: tuple[int, ...]
    loss: tuple[float, ...]
    personal_correct: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        personal = self.personal_correct or self.clients
        _same_length(self.clients, self.num_examples, self.correct, self.loss, personal)


@dataclass(frozen=True)
class BaselineRequest(_Flat):
    """Asks a simulated node for the heads that all clients' data in one place would give."""

    training: LocalTraining
    num_classes: int
    ridge_lambda: float
    seed: int
    fingerprint: str
