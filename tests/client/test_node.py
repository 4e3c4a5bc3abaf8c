"""A node's reply: one client's trouble is that client's alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.cohort.cohort import Cohort
from client.memory import ClientMemory
from client.together import update_together
from common.codecs import CODECS, Codec
from common.codecs.uplink import Uplink, encode_sum
from common.messages import ClientReport, Rejection, TrainReply, TrainRequest, payload_bytes
from common.types import Affine, ClientPlan, FeatureSet, Head, LocalTraining
from common.updates import FieldSums

K, D = 3, 8
EVERYONE = (0, 1, 2, 3)
SCAFFOLD = ClientPlan(
    fields=("delta", "control_delta"), weighting="uniform", correction="scaffold",
    arrays={"control": np.zeros((K, D + 1), np.float32)},
)  # fmt: skip


def cohort(labels: int = K) -> Cohort:
    rng = np.random.default_rng(0)
    affine = Affine(np.full(D, 0.01, np.float32), np.full(D, 128, np.float32))
    y = rng.integers(0, K, 40)
    y[20:30] = labels - 1
    fs = FeatureSet(rng.integers(0, 256, (40, D), dtype=np.uint8), y, affine, "f" * 64)
    return Cohort(fs, np.split(np.arange(40), 4))


def reply(
    tmp_path: Path, plan: ClientPlan, data: Cohort | None = None, head: Head | None = None,
    reduce: str = "sum", **training: float,
) -> TrainReply:  # fmt: skip
    request = TrainRequest(
        head or Head.zeros(K, D), plan, LocalTraining(**{"lr": 0.1, **training}), EVERYONE, 5, "r",
        0, "f" * 64, reduce, memory_rounds=(0, 4, 0, 0) if plan.correction != "none" else (),  # type: ignore[arg-type]
    )  # fmt: skip
    memory = ClientMemory(tmp_path)
    return update_together(request, EVERYONE, data or cohort(), memory, residents=EVERYONE)


def test_a_damaged_memory_costs_its_client_alone(tmp_path: Path) -> None:
    memory = ClientMemory(tmp_path)
    memory.save(
        1, 4, {"control": np.zeros((K, D + 1), np.float32)}, counted_round=0, oldest_round=0
    )
    (tmp_path / "1" / "00000004.safetensors").write_bytes(b"x")
    answer = reply(tmp_path, SCAFFOLD)
    assert answer.clients == (0, 2, 3)
    assert answer.rejected_clients == (1,)
    assert "is damaged" in answer.rejected[0].reason
    assert not (tmp_path / "1" / "00000005.safetensors").exists()
    assert (tmp_path / "0" / "00000005.safetensors").exists()


@pytest.mark.parametrize("kind", ["sgd", "statistics"])
def test_a_client_with_more_classes_than_the_head_is_refused(tmp_path: Path, kind: str) -> None:
    plans = {
        "sgd": ClientPlan(),
        "statistics": ClientPlan(
            kind="statistics", fields=("gram", "moments"), weighting="uniform"
        ),
    }
    answer = reply(tmp_path, plans[kind], cohort(labels=K + 1))
    assert (answer.clients, answer.rejected_clients) == ((0, 1, 3), (2,))
    assert answer.rejected[0].reason == "has examples of more than the 3 classes of the head"


@pytest.mark.parametrize("reduce", ["sum", "individual"])
def test_numbers_too_large_to_be_summed_are_refused(tmp_path: Path, reduce: str) -> None:
    answer = reply(tmp_path, ClientPlan(), lr=1e33, reduce=reduce)
    assert answer.clients == ()
    assert answer.rejected_clients == EVERYONE
    assert "above 1e+30" in answer.rejected[0].reason


def test_a_head_of_another_width_is_refused_by_all(tmp_path: Path) -> None:
    answer = reply(tmp_path, ClientPlan(), head=Head.zeros(K, D + 1))
    assert answer.rejected_clients == EVERYONE
    assert answer.rejected[0].reason == "head has 9 features, but the backbone gives 8"


def test_only_planned_statistics_travel(tmp_path: Path) -> None:
    plan = ClientPlan(kind="statistics", fields=("moments",), weighting="uniform")
    size = 4 * K * (D + 1)
    for reduce, rows in (("sum", 1), ("individual", 4)):
        payloads = reply(tmp_path, plan, reduce=reduce).payloads
        assert {name: [len(row) for row in found] for name, found in payloads.items()} == {
            "moments": [size] * rows
        }


@pytest.mark.parametrize("reduce", ["sum", "individual"])
def test_who_diverges_is_refused_and_the_others_count(tmp_path: Path, reduce: str) -> None:
    affine = Affine(np.full(D, 1e20, np.float32), np.full(D, 128, np.float32))
    q = np.full((40, D), 128, np.uint8)  # x = 0 but for the bias
    q[20:30] = 255
    data = Cohort(FeatureSet(q, np.arange(40) % K, affine, "f" * 64), np.split(np.arange(40), 4))
    answer = reply(tmp_path, ClientPlan(), data, reduce=reduce)
    assert (answer.clients, answer.rejected_clients) == ((0, 1, 3), (2,))
    assert answer.rejected == (Rejection(2, "delta is not finite"),)
    deltas = np.frombuffer(b"".join(answer.payloads["delta"]), np.float32)
    assert np.isfinite(deltas).all()
    assert deltas.any()


@pytest.mark.parametrize(
    "fields", [("delta",), ("normalized_delta", "effective_steps"), ("fair_delta", "fair_scale")]
)
def test_the_norm_bound_is_that_of_the_delta_whatever_is_sent(
    tmp_path: Path, fields: tuple[str, ...]
) -> None:
    request = TrainRequest(
        Head.zeros(K, D), ClientPlan(fields=fields), LocalTraining(0.1), EVERYONE, 1, "r", 0,
        "f" * 64, "sum", max_norm=1e-6,
    )  # fmt: skip
    memory = ClientMemory(tmp_path)
    answer = update_together(request, EVERYONE, cohort(), memory, residents=EVERYONE)
    assert answer.rejected_clients == EVERYONE
    assert "above the bound 1e-06" in answer.rejected[0].reason


TENTHS = Codec(
    "tenths",
    lambda array, _seed: np.rint(array * 1000).astype("<i2").tobytes(),
    lambda payload, layout, _seed: (
        np.frombuffer(payload, "<i2").reshape(layout.shape) / np.float32(1000)
    ).astype(np.float32),
)


@pytest.mark.parametrize("fields", [("delta",), ("normalized_delta", "effective_steps")])
def test_with_a_codec_a_node_sums_what_the_server_would_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: tuple[str, ...]
) -> None:
    monkeypatch.setitem(CODECS, "tenths", TENTHS)  # type: ignore[arg-type]
    plan = ClientPlan(fields=fields, uplink="tenths")
    alone, summed = (reply(tmp_path, plan, reduce=reduce) for reduce in ("individual", "sum"))
    assert alone.reports == summed.reports  # with the bytes of each client's own payload
    plain = reply(tmp_path, ClientPlan(fields=fields))
    for coded, exact in zip(alone.reports, plain.reports, strict=True):
        saved = exact.payload_bytes - coded.payload_bytes
        assert saved == pytest.approx(2 * K * (D + 1), abs=3)  # lengths are shorter, too
    uplink = Uplink(plan, K, D, seed=0, round_number=5)
    sums = FieldSums()
    for i, report in enumerate(alone.reports):
        row = {name: rows[i] for name, rows in alone.payloads.items()}
        sums.add(uplink.decode(report.client, row), report.num_examples)
    wanted = encode_sum({name: row[0] for name, row in sums.row().items()})
    assert {name: rows[0] for name, rows in summed.payloads.items()} == wanted
    assert (
        wanted["normalized_delta" if len(fields) > 1 else "delta"] != plain.payloads[fields[0]][0]
    )


def test_a_phone_alone_sends_what_it_has_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CODECS, "tenths", TENTHS)  # type: ignore[arg-type]
    request = TrainRequest(
        Head.zeros(K, D), ClientPlan(uplink="tenths"), LocalTraining(0.1), (2,), 5, "r", 0,
        "f" * 64, "sum",
    )  # fmt: skip
    answer = update_together(request, (2,), cohort(), ClientMemory(tmp_path), residents=EVERYONE)
    assert [len(row) for row in answer.payloads["delta"]] == [2 * K * (D + 1)]
    assert answer.reports[0].payload_bytes == payload_bytes(replace(
        answer, reports=(ClientReport(0, 10, 1.0, 1.0, 0),)
    ).write())  # fmt: skip
