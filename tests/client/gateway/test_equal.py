"""A round of phones gives what a node with the same clients gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.codecs import find_codec
from common.codecs.downlink import add_change, encode_change
from common.codecs.uplink import decode_sum
from common.errors import ProtocolError
from common.evaluation import evaluate, losses_of
from common.messages import (
    EvaluateRequest,
    HeadChanges,
    TrainReply,
    TrainRequest,
    content_id,
    head_id,
)
from common.phones import phones_pb2 as pb
from common.types import ClientPlan, Head, LocalTraining
from tests.client.gateway.actors import (
    FINGERPRINT,
    RUN,
    D,
    Deployment,
    K,
    Node,
    request_for,
)

NAMES = ("anna", "ben", "cleo", "dora", "emil")


def agree(reply: TrainReply, node: TrainReply, request: TrainRequest) -> None:
    """The replies are alike, to the rounding of a single sum."""
    assert reply.fingerprint == node.fingerprint
    assert reply.clients == node.clients
    assert not reply.rejected
    assert not node.rejected
    for mine, theirs in zip(reply.reports, node.reports, strict=True):
        assert (mine.num_examples, mine.payload_bytes) == (
            theirs.num_examples,
            theirs.payload_bytes,
        )
        losses = [(r.loss_before, r.loss_after) for r in (mine, theirs)]
        np.testing.assert_allclose(*losses, rtol=1e-6)
    summed = request.reduce == "sum" and request.uplink.is_summed(len(reply.reports))
    assert {name: len(rows) for name, rows in reply.payloads.items()} == {
        name: len(rows) for name, rows in node.payloads.items()
    }
    for i in range(1 if summed else len(reply.reports)):
        found, expected = (
            decode_sum(row, request.uplink.layouts)
            if summed
            else request.uplink.decode(reply.clients[i], row)
            for row in ({n: rows[i] for n, rows in r.payloads.items()} for r in (reply, node))
        )
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6, err_msg=name)
            assert np.abs(array).max() > 1e-3, f"{name} would agree with nothing"


ROUNDS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox with momentum": {
        "plan": ClientPlan(mu=0.3),
        "training": LocalTraining(0.05, 3, 4, momentum=0.8, weight_decay=0.01),
    },
    "adamw": {"training": LocalTraining(0.01, 2, 8, optimizer="adamw", weight_decay=0.02)},
    "fednova": {
        "plan": ClientPlan(fields=("normalized_delta", "effective_steps"), mu=0.1),
        "training": LocalTraining(0.05, 2, 4, momentum=0.5),
    },
    "q-fedavg": {
        "plan": ClientPlan(fields=("fair_delta", "fair_scale"), weighting="uniform", q=2.0)
    },
    "drive": {"plan": ClientPlan(uplink="drive")},
    "drive, bounded": {"plan": ClientPlan(uplink="drive"), "max_norm": 5.0},
    "int8": {"plan": ClientPlan(uplink="int8")},
    "eden, which phones have not got": {"plan": ClientPlan(uplink="eden")},
    "a codec and fields of the gateway's": {
        "plan": ClientPlan(fields=("normalized_delta", "effective_steps"), uplink="int8")
    },
    "statistics": {
        "plan": ClientPlan(kind="statistics", fields=("gram", "moments"), weighting="uniform")
    },
    "encoded statistics": {
        "plan": ClientPlan(
            kind="statistics", fields=("gram", "moments"), weighting="uniform", uplink="gram-int8"
        )
    },
    "each on its own": {"reduce": "individual", "plan": ClientPlan(weighting="uniform")},
    "each on its own, encoded": {"reduce": "individual", "plan": ClientPlan(uplink="drive")},
    "private": {
        "plan": ClientPlan(
            fields=("clipped_delta", "within_clip"), weighting="uniform", clip=0.65, unit_norm=2.0
        )
    },
}


@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_is_what_a_node_would_send(
    name: str, deployment: Deployment, tmp_path: Path
) -> None:
    private = name == "private"
    phones = deployment.gather(*NAMES, private=private)
    request = request_for(phones, **ROUNDS[name])
    node = Node(tmp_path / "node", phones).update(request)
    agree(deployment.round(request, phones), node, request)


@pytest.mark.parametrize("fields", [("delta", "control_delta"), ("delta",)])
def test_what_phones_remember_is_what_a_node_remembers(
    fields: tuple[str, ...], deployment: Deployment, tmp_path: Path
) -> None:
    scaffold = len(fields) > 1
    phones = deployment.gather(*NAMES)
    node = Node(tmp_path / "node", phones)
    rng = np.random.default_rng(3)
    for number in (1, 2, 3):
        control = {"control": rng.normal(0, 0.02, (K, D + 1)).astype(np.float32)}
        plan = ClientPlan(
            fields=fields,
            weighting="uniform",
            mu=0.0 if scaffold else 0.2,
            correction="scaffold" if scaffold else "feddyn",
            arrays=control if scaffold else {},
            uplink="none" if scaffold else "int8",  # the gateway must remember what was not lost
        )
        request = request_for(
            phones, plan=plan, round_number=number, memory_rounds=(number - 1,) * len(phones)
        )
        agree(deployment.round(request, phones), node.update(request), request)


def test_a_preconditioner_is_sent_once_and_fetched_by_all(
    deployment: Deployment, tmp_path: Path
) -> None:
    phones = deployment.gather(*NAMES)
    node = Node(tmp_path / "node", phones)
    root = np.random.default_rng(3).normal(0, 0.2, (D + 1, D + 1)).astype(np.float32)
    constant = {"preconditioner": np.eye(D + 1, dtype=np.float32) + root @ root.T}
    plan = ClientPlan(constant=constant)
    request = request_for(
        phones, plan=plan, constant_id=content_id(constant), has_constant=True, round_number=1
    )
    agree(deployment.round(request, phones), node.update(request), request)
    request = replace(request, has_constant=False, round_number=2)
    agree(deployment.round(request, phones), node.update(request), request)

    unknown = replace(request, constant_id="a" * 64, round_number=3)
    assert deployment.train(unknown).result(20).missing_constant


def test_a_head_that_came_as_changes(deployment: Deployment, tmp_path: Path) -> None:
    phones = deployment.gather(*NAMES)
    node = Node(tmp_path / "node", phones)
    codec, seed = find_codec("int8"), 7
    plan = ClientPlan(downlink="int8")
    first = request_for(phones, plan=plan)
    deployment.round(first, phones)
    target = first.head.matrix + 0.01
    payload = encode_change(first.head.matrix, target, codec, seed, 2)
    head = Head.from_matrix(add_change(first.head.matrix, payload, codec, seed, 2))
    changes = HeadChanges(1, (payload,), head.matrix.shape, head_id(head))  # type: ignore[arg-type]
    request = replace(first, round_number=2, head=head)
    reply = deployment.round(replace(request, changes=changes), phones)
    agree(reply, node.update(request), request)
    lost = replace(request, round_number=3, changes=replace(changes, head_id="0" * 16))
    assert deployment.train(lost).result(20).missing_head


def test_phones_evaluate(deployment: Deployment) -> None:
    phones = deployment.gather(*NAMES)
    request = request_for(phones)
    asked = EvaluateRequest(request.head, request.clients, FINGERPRINT, RUN, seconds=30.0)
    answer = deployment.evaluate(asked)
    deployment.at_once(*(phone.take_part for phone in phones[:-1]))
    silent = phones[-1].next_task()
    assert silent.kind == pb.EVALUATE
    late = phones[-1].done(silent)
    late.correct = 1 + late.num_examples
    assert phones[-1].submit(late).reason.startswith("impossible")
    found = {e.client: e for e in answer.result(30).evaluations}
    assert set(found) == {phone.client for phone in phones[:-1]}
    for phone in phones[:-1]:
        expected = evaluate(request.head, phone.test)
        mine = found[phone.client]
        assert (mine.num_examples, mine.correct) == (len(phone.test), expected.correct)
        np.testing.assert_allclose(mine.loss, expected.loss)
        np.testing.assert_array_equal(mine.curve, losses_of(request.head, phone.test))


def test_phones_make_no_heads_of_their_own(deployment: Deployment) -> None:
    phones = deployment.gather("anna")
    request = request_for(phones)
    asked = EvaluateRequest(request.head, request.clients, FINGERPRINT, RUN, personal=1.0)
    with pytest.raises(ProtocolError, match="no personal heads"):
        deployment.evaluate(asked).result(20)
