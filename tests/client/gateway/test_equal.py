"""A round of phones gives what a node with the same clients gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.messages import TrainReply, TrainRequest
from common.types import Layout
from common.codecs.uplink import decode_sum
from tests.client.gateway.actors import Deployment, Node, Phone, request_for

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


def test_fedavg(deployment: Deployment, tmp_path: Path) -> None:
    phones = deployment.gather(*NAMES)
    request = request_for(phones)
    agree(
        deployment.round(request, phones), Node(tmp_path / "node", phones).update(request), request
    )
