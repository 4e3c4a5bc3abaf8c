"""The C++ phone takes part in rounds of a real gateway, and computes what Python computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.codecs import find_codec
from common.evaluation import evaluate, losses_of
from common.messages import EvaluateRequest, content_id
from common.privacy.integers import OFFSET
from common.seeding import Purpose, stream_state
from common.types import ClientPlan, Head, LocalTraining
from server.export.trained import TrainedModel
from tests.client.gateway.actors import RUN, Node
from tests.client.native_phones import SEED, arrays_of, examples_of, heard, parts_of, request_for

# A build with libtorch takes minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUNTIMES = ("executorch", "lite")


def correction(trained: TrainedModel) -> Mapping[str, Any]:
    shape = trained.head.matrix.shape
    return {"control": np.random.default_rng(3).normal(0, 0.02, shape).astype(np.float32)}


def preconditioner(trained: TrainedModel) -> Mapping[str, Any]:
    width = trained.head.matrix.shape[1]
    root = np.random.default_rng(4).normal(0, 0.01, (width, width)).astype(np.float32)
    return {"preconditioner": np.eye(width, dtype=np.float32) + root @ root.T}


def rounds(trained: TrainedModel) -> dict[str, dict[str, Any]]:
    terms = LocalTraining(0.03, 2, 9, momentum=0.8, weight_decay=0.01)
    return {
        "fedavg": {},
        "one batch of all": {"training": LocalTraining(0.05, 4, 1000)},
        "fedprox with momentum and decay": {"plan": ClientPlan(mu=0.3), "training": terms},
        "scaffold": {
            "plan": ClientPlan(
                fields=("delta", "control_delta"), weighting="uniform", correction="scaffold",
                arrays=correction(trained),
            ),
            "training": terms,
        },
        "a preconditioner": {
            "plan": ClientPlan(constant=preconditioner(trained)),
            "constant_id": content_id(preconditioner(trained)), "has_constant": True,
        },
        "fednova": {"plan": ClientPlan(fields=("normalized_delta", "effective_steps"))},
        "statistics": {
            "plan": ClientPlan(kind="statistics", fields=("gram", "moments"), weighting="uniform")
        },
    }  # fmt: skip


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rounds_are_what_a_python_node_sends(runtime, place, phone_program, tmp_path):
    trained = place.trained
    phone = place.phone("anna", phone_program(runtime))
    phone.start()
    place.joined(phone)
    reference = examples_of(trained, phone.client)
    for number, (name, changes) in enumerate(rounds(trained).items(), 1):
        request = request_for(trained, phone.client, round_number=number, **changes)
        reply = place.train(request).result(120)
        assert not reply.rejected, (name, reply.rejected, phone.log)
        node = Node(tmp_path / name, [reference]).update(request)
        assert reply.clients == node.clients
        mine, theirs = reply.reports[0], node.reports[0]
        assert mine.num_examples == theirs.num_examples == len(reference.train)
        np.testing.assert_allclose(
            (mine.loss_before, mine.loss_after),
            (theirs.loss_before, theirs.loss_after),
            rtol=1e-5,
            err_msg=name,
        )
        expected = arrays_of(node, request, phone.client)
        for field, array in arrays_of(reply, request, phone.client).items():
            tolerance = 0 if name == "statistics" else 1e-6
            np.testing.assert_allclose(
                array, expected[field], rtol=0, atol=tolerance, err_msg=f"{name}: {field}"
            )
            assert np.abs(expected[field]).max() > 1e-3
    phone.stop()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_more_rows_than_a_file_takes_at_once_are_one_batch(runtime, place, phone_program, tmp_path):
    """device.pte takes 256: 656 rows in batches of 600, and exact sums over all of them."""
    trained = place.trained
    draws = np.random.default_rng(5)
    rows = draws.integers(0, 60, 820)
    noise = draws.integers(0, 4, (820, trained.features.shape[1]), dtype=np.uint8)
    features, labels = np.minimum(trained.features[rows], 250) + noise, trained.labels[rows]
    phone = place.phone("anna", phone_program(runtime), data="features:kept")
    arrays = {"features": features, "labels": labels}
    save_file(arrays, phone.path / "kept", {"fingerprint": trained.backbone.fingerprint})
    phone.start()
    place.joined(phone)
    reference = parts_of(trained, phone.client, features, labels)
    assert len(reference.train) == 656
    plans = [
        {
            "plan": ClientPlan(mu=0.3),
            "training": LocalTraining(0.02, 4, 600, momentum=0.8, weight_decay=0.01),
        },
        {"plan": ClientPlan(kind="statistics", fields=("gram", "moments"), weighting="uniform")},
    ]
    for number, changes in enumerate(plans, 1):
        request = request_for(trained, phone.client, round_number=number, **changes)
        reply = place.train(request).result(120)
        assert not reply.rejected, phone.log
        node = Node(tmp_path / str(number), [reference]).update(request)
        expected = arrays_of(node, request, phone.client)
        for field, array in arrays_of(reply, request, phone.client).items():
            tolerance = 1e-6 if field == "delta" else 0
            np.testing.assert_allclose(array, expected[field], rtol=0, atol=tolerance)
            assert np.abs(expected[field]).max() > 1e-2
    phone.stop()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("codec", ["int8", "drive"])
def test_a_coded_update_is_the_payload_of_the_plain_one(codec, runtime, place, phone_program):
    phone = place.phone("anna", phone_program(runtime))
    phone.start()
    place.joined(phone)
    plain = request_for(place.trained, phone.client)
    delta = arrays_of(place.train(plain).result(120), plain, phone.client)["delta"]
    coded = request_for(place.trained, phone.client, plan=ClientPlan(uplink=codec))
    payloads = place.train(coded).result(120).payloads["delta"]
    seed = stream_state(SEED, Purpose.UPLINK, 1, phone.client, 0)
    assert [*payloads] == [find_codec(codec).encode(delta, seed)]
    phone.stop()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("clip", "within"), [(0.05, 0), (10.0, 1)])
def test_a_private_round_gets_the_clipped_update_and_nothing_else(
    clip, within, runtime, place, phone_program, tmp_path, monkeypatch
):
    check_ins, results = (heard(place, monkeypatch, name) for name in ("check_in", "submit"))
    phone = place.phone("anna", phone_program(runtime))
    phone.start()
    place.joined(phone, private=True)
    fields = ("clipped_delta", "within_clip")
    plan = ClientPlan(fields=fields, weighting="uniform", clip=clip, unit_norm=5.0)
    request = request_for(place.trained, phone.client, plan=plan)
    reply = place.train(request).result(120)
    assert not reply.rejected, phone.log
    node = Node(tmp_path / "node", [examples_of(place.trained, phone.client)]).update(request)
    report = reply.reports[0]
    assert (report.num_examples, report.loss_before, report.loss_after) == (1, 0, 0)
    found, expected = (arrays_of(r, request, phone.client) for r in (reply, node))
    assert found["within_clip"].tolist() == expected["within_clip"].tolist() == [within]
    sent, wanted = (a["clipped_delta"].astype(np.int64) - OFFSET for a in (found, expected))
    assert np.abs(wanted).max() > 1000
    # One unit is the clip's 2^-18th part, and the heads agree to 1e-6.
    assert np.abs(sent - wanted).max() <= 2 + 1e-6 / clip * OFFSET
    phone.stop()
    # Nothing that the phone has sent tells how many examples it has, not even a time.
    assert {(h.num_examples, h.num_test_examples) for c in check_ins for h in c.holdings} == {
        (1, 0)
    }
    (result,) = results
    assert {f.name for f, _ in result.ListFields()} == {
        "task", "fingerprint", "outcome", "num_examples", "arrays",
    }  # fmt: skip
    assert result.num_examples == 1
    assert {a.field for a in result.arrays} == {*fields}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_head_is_judged_as_python_judges_it(runtime, place, phone_program):
    trained = place.trained
    phone = place.phone("anna", phone_program(runtime))
    phone.start()
    place.joined(phone)
    head = Head.from_matrix(trained.head.matrix)
    request = EvaluateRequest(
        head, (phone.client,), trained.backbone.fingerprint, RUN, seconds=60.0
    )
    (found,) = place.evaluate(request).result(60).evaluations
    test = examples_of(trained, phone.client).test
    expected = evaluate(head, test)
    assert (found.num_examples, found.correct) == (len(test), expected.correct)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)
    np.testing.assert_allclose(found.curve, losses_of(head, test), rtol=1e-6, atol=1e-8)
    phone.stop()
