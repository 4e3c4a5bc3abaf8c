from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from common.errors import ProtocolError
from common.messages import (
    BackboneRequest,
    BaselineRequest,
    ClientEvaluation,
    ClientReport,
    DescribeReply,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    Rejection,
    TrainReply,
    TrainRequest,
    array_bytes,
    payload_bytes,
    read_heads,
    training,
    write_head,
    write_heads,
)
from common.types import ClientPlan, Head, LocalTraining

HEAD = Head(np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, -1], np.float32))
TRAINING = LocalTraining(0.1, 2, 5, 0.5, 0.01)
REPLY = TrainReply(
    "f" * 64, (ClientReport(1, 2, 1.0, 1.0, 5),), payloads={"delta": (HEAD.matrix.tobytes(),)}
)


def over_the_wire(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


def request() -> TrainRequest:
    plan = ClientPlan(
        fields=("delta", "control_delta"),
        weighting="uniform",
        mu=0.25,
        correction="scaffold",
        arrays={"control": np.ones((2, 4), np.float32)},
        exclude=(9,),
    )
    return TrainRequest(HEAD, plan, TRAINING, (1, 4), 3, "run", 7, "f" * 64, "sum", 2.5)


def test_train_request_survives_the_wire() -> None:
    got = TrainRequest.read(over_the_wire(request().write()))
    assert got.head.sha256 == HEAD.sha256
    assert (got.clients, got.round_number, got.run_id, got.seed) == ((1, 4), 3, "run", 7)
    assert (got.training, got.reduce, got.max_norm) == (TRAINING, "sum", 2.5)
    assert (got.plan.fields, got.plan.mu) == (("delta", "control_delta"), 0.25)
    assert (got.plan.weighting, got.plan.correction) == ("uniform", "scaffold")
    np.testing.assert_array_equal(got.plan.arrays["control"], np.ones((2, 4)))
    assert got.plan.exclude == ()  # stays on the server


def test_flowers_fedprox_sets_the_proximal_coefficient() -> None:
    content = request().write()
    config = content["config"]
    assert isinstance(config, ConfigRecord)
    config["proximal-mu"] = 0.75
    assert TrainRequest.read(content).plan.mu == 0.75


def test_train_reply_survives_the_wire() -> None:
    reply = TrainReply(
        "f" * 64,
        (ClientReport(1, 10, 2.0, 1.0, 99), ClientReport(4, 20, 3.0, 1.5, 98)),
        (Rejection(7, "has NaN"),),
        payloads={"delta": (b"\x00a", b""), "x": (b"1", b"2")},
    )
    got = TrainReply.read(over_the_wire(reply.write()))
    assert (got.reports, got.rejected) == (reply.reports, reply.rejected)
    assert got.payloads == reply.payloads
    assert (got.clients, got.rejected_clients) == ((1, 4), (7,))
    nothing = TrainReply.read(over_the_wire(TrainReply("f" * 64, missing_backbone=True).write()))
    assert (nothing.reports, nothing.rejected, nothing.payloads) == ((), (), {})


def test_payloads_that_are_none_are_refused() -> None:
    for wrong in ([1, 2], b"1", ["x"]):
        content = TrainReply("f" * 64).write()
        content["report"]["field.delta"] = wrong  # type: ignore[index]
        with pytest.raises(ProtocolError, match=r"field\.delta is no list of payloads"):
            TrainReply.read(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": ("detla",)}, "unknown field 'detla', did you mean delta?"),
        ({"correction": "scafold"}, "unknown correction 'scafold', did you mean scaffold?"),
        ({"uplink": "zip"}, r"unknown codec 'zip' \(known: none"),
        ({"downlink": "zip"}, r"unknown codec 'zip' \(known: none"),
    ],
)
def test_a_plan_that_asks_for_what_there_is_not_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        replace(request(), plan=replace(request().plan, **changes))


def test_small_messages_survive_the_wire() -> None:
    describe = DescribeRequest("r", ("a", "b"), 0.1, 3)
    assert DescribeRequest.read(over_the_wire(describe.write())) == describe
    described = DescribeReply((1, 2), (3, 4), simulated=True)
    assert DescribeReply.read(over_the_wire(described.write())) == described
    brought = BackboneRequest("f", b"\x00\x01")
    assert BackboneRequest.read(over_the_wire(brought.write())) == brought
    baseline = BaselineRequest(10, 1.0, 0, "f")
    assert BaselineRequest.read(over_the_wire(baseline.write())) == baseline
    evaluated = EvaluateReply(
        (ClientEvaluation(1, 2, 1, 0.5), ClientEvaluation(3, 4, 0, 0.1, 2, 1, b"\0" * 8))
    )
    assert EvaluateReply.read(over_the_wire(evaluated.write())) == evaluated
    asked = EvaluateRequest.read(over_the_wire(EvaluateRequest(HEAD, (1,), "f", "r").write()))
    assert (asked.head.sha256, asked.clients) == (HEAD.sha256, (1,))
    heads = read_heads(over_the_wire(write_heads({"ridge": HEAD})))
    assert heads["ridge"].sha256 == HEAD.sha256


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("round-number", None, "round-number is missing"),
        ("round-number", 1.5, "round-number is float, expected int"),
        ("round-number", True, "round-number is bool, expected int"),
        ("clients", ["a"], "clients is str, expected int"),
        ("clients", 3, "clients is int, expected list"),
        ("reduce", "all", "reduce is 'all', expected one of"),
        ("lr", "fast", "lr is str, expected float"),
    ],
)
def test_a_malformed_message_names_its_key(key: str, value: object, message: str) -> None:
    content = request().write()
    config = content["config"]
    assert isinstance(config, ConfigRecord)
    if value is None:
        del config[key]
    else:
        config[key] = value  # type: ignore[assignment]
    with pytest.raises(ProtocolError, match=message):
        TrainRequest.read(content)


PICKLE = b"\x80\x04K\x01."


def test_missing_records_and_unreadable_arrays_are_protocol_errors() -> None:
    with pytest.raises(ProtocolError, match="record 'config' is missing"):
        TrainRequest.read(RecordDict())
    content = request().write()
    shared = content["shared"]
    assert isinstance(shared, ConfigRecord)
    for damaged in (PICKLE, b"", shared["head"][:-1]):  # type: ignore[index]
        shared["head"] = damaged
        with pytest.raises(ProtocolError, match=f"head takes {len(damaged)} bytes, expected 32"):
            TrainRequest.read(content)
    whole, shared["head"] = request().write()["shared"]["head"], "text"  # type: ignore[index]
    with pytest.raises(ProtocolError, match="head is str, expected bytes"):
        TrainRequest.read(content)
    shared["head"] = whole
    for shape in ([2], [2, 1], [0, 4], [2, 4, 1], [2.0, 4.0], "2x4"):
        shared["shape"] = shape  # type: ignore[assignment]
        with pytest.raises(ProtocolError, match="expected that of a head"):
            TrainRequest.read(content)
    for key in ("shape", "head"):
        del shared[key]
        with pytest.raises(ProtocolError, match=f"{key} is missing"):
            TrainRequest.read(content)
    shared["plan"] = PICKLE
    with pytest.raises(ProtocolError, match="'plan' holds arrays that cannot be read"):
        TrainRequest.read(content)
    with pytest.raises(ProtocolError, match="arrays is missing"):
        read_heads(RecordDict({"report": ConfigRecord()}))


def test_a_stock_strategys_head_is_read_from_its_arrays() -> None:
    arrays = write_head(HEAD)
    config = replace(request(), reduce="stock").config()
    content = RecordDict({"arrays": arrays, "config": config})
    assert TrainRequest.read(over_the_wire(content)).head.sha256 == HEAD.sha256
    arrays["head.bias"].data = PICKLE
    with pytest.raises(ProtocolError, match="cannot be read"):
        TrainRequest.read(content)


@pytest.mark.parametrize("stock", [False, True])
def test_a_replys_arrays_are_measured_before_they_are_read(stock: bool) -> None:
    content = REPLY.write_stock(HEAD) if stock else REPLY.write()
    assert HEAD.matrix.nbytes <= array_bytes(content) < HEAD.matrix.nbytes + 400


def test_a_superlink_keeps_few_objects_and_what_all_nodes_get_once() -> None:
    assert len(REPLY.write()) == len(REPLY.write().config_records) == 1
    for one in (request(), EvaluateRequest(HEAD, (1,), "f", "r")):
        contents = [replace(one, clients=clients).write() for clients in ((1,), (2,))]
        objects = [{record.object_id for record in content.values()} for content in contents]
        assert [len(found) for found in objects] == [2, 2]
        (shared,) = objects[0] & objects[1]
        assert shared == contents[0]["shared"].object_id


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ProtocolError, match="differ in length"):
        DescribeReply((1, 2), (3,), simulated=True)
    content = replace(REPLY, rejected=(Rejection(7, "has NaN"),)).write()
    content["report"]["rejected-reason"] = ["a", "b"]  # type: ignore[index]
    with pytest.raises(ProtocolError, match="rejected-reason lists 2 values, but rejected-client"):
        TrainReply.read(content)


@pytest.mark.parametrize("wrong", [None, "f" * 64, 1])
def test_a_reply_without_fingerprint_is_refused(wrong: Any) -> None:
    content = REPLY.write()
    del content["report"]["fingerprint"]  # type: ignore[union-attr]
    if wrong is not None:
        content["report"]["fingerprint"] = wrong  # type: ignore[index]
    with pytest.raises(ProtocolError, match="fingerprint is missing"):
        TrainReply.read(content)


def test_little_of_a_small_update_is_not_the_update_itself() -> None:
    reply = replace(REPLY, payloads={"delta": (bytes(360),)})
    assert payload_bytes(reply.write()) <= 360 + 150


def test_payload_bytes_counts_what_is_serialized() -> None:
    content = request().write()
    assert payload_bytes(content) == len(recorddict_to_proto(content).SerializeToString())
    assert payload_bytes(content) > HEAD.weight.nbytes + 32


def test_a_further_figure_of_each_client_is_one_more_attribute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclass(frozen=True)
    class Longer(ClientReport):
        charge: float = 1.0

    monkeypatch.setattr(training, "ClientReport", Longer)
    rows = (Longer(1, 2, 1.0, 0.5, 5, charge=0.25), Longer(2, 9, 1.5, 0.5, 5))
    sent = replace(REPLY, reports=rows, payloads={"delta": (b"", b"")})
    assert TrainReply.read(over_the_wire(sent.write())).reports == rows


@pytest.mark.parametrize(
    ("change", "what"),
    [({"clients": (4, 4)}, "client"), ({"plan": ClientPlan(fields=("delta", "delta"))}, "field")],
)
def test_a_request_names_nothing_twice(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ProtocolError, match=f"a {what} is listed twice"):
        replace(request(), **change)
