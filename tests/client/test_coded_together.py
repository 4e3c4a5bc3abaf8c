"""A cohort sums what a server would decode, without making each client's bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.cohort.codecs import THROUGH
from client.cohort.cohort import Cohort
from client.memory import ClientMemory
from client.together import update_together
from common.codecs import CODECS, find_codec
from common.codecs.uplink import Uplink
from common.messages import TrainReply, TrainRequest
from common.seeding import words
from common.types import Affine, ClientPlan, FeatureSet, Head, LocalTraining
from common.updates import FieldSums

pytestmark = pytest.mark.wide

K, D, CLIENTS = 3, 20, 6
EVERYONE = tuple(range(CLIENTS))
PLANS = {
    "delta": ClientPlan(),
    "scaffold": ClientPlan(
        fields=("delta", "control_delta"), weighting="uniform", correction="scaffold",
        arrays={"control": np.full((K, D + 1), 0.01, np.float32)},
    ),
    "feddyn": ClientPlan(weighting="uniform", mu=0.1, correction="feddyn"),
    "fednova": ClientPlan(fields=("normalized_delta", "effective_steps")),
}  # fmt: skip
CODED = ["drive", "eden", "int8"]


def cohort(chunk_rows: int = 40, wild: int = -1) -> Cohort:
    """Clients of 10 examples; the features of the wild one are far too large."""
    rng = np.random.default_rng(0)
    q = rng.integers(100, 150, (10 * CLIENTS, D), dtype=np.uint8)
    gain = np.full(D, 0.01, np.float32)
    if wild >= 0:
        gain[0] = 1e20
        q[:, 0] = 128
        q[10 * wild : 10 * wild + 10, 0] = 255
    affine = Affine(gain, np.full(D, 128, np.float32))
    fs = FeatureSet(q, rng.integers(0, K, len(q)), affine, "f" * 64)
    return Cohort(fs, np.split(np.arange(len(q)), CLIENTS), chunk_rows=chunk_rows)


def reply(
    folder: Path, plan: ClientPlan, data: Cohort | None = None,
    clients: tuple[int, ...] = EVERYONE, **changes: Any,
) -> TrainReply:  # fmt: skip
    request = TrainRequest(
        Head.zeros(K, D), plan, LocalTraining(0.1, 2, 4), clients, 5, "r", 0, "f" * 64, "sum",
        memory_rounds=(0,) * len(clients) if plan.correction != "none" else (),
    )  # fmt: skip
    request = replace(request, **changes)
    memory = ClientMemory(folder)
    return update_together(request, clients, data or cohort(), memory, residents=EVERYONE)


@pytest.fixture
def by_bytes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes codecs whose every payload is made and decoded."""

    def forget() -> None:
        for name in CODED:
            slow = replace(CODECS[name], through=None, sized=False)
            monkeypatch.setitem(CODECS, name, slow)

    return forget


@pytest.mark.parametrize("codec", CODED)
@pytest.mark.parametrize("plan", PLANS)
def test_the_sum_and_the_reports_are_those_of_each_clients_bytes_to_the_bit(
    tmp_path: Path, by_bytes: Any, codec: str, plan: str
) -> None:
    asked = replace(PLANS[plan], uplink=codec)
    fast = reply(tmp_path / "fast", asked)
    by_bytes()
    slow = reply(tmp_path / "slow", asked)
    assert fast.reports == slow.reports
    assert len(fast.reports) == CLIENTS
    assert fast.payloads == slow.payloads
    assert fast.payloads != reply(tmp_path / "plain", PLANS[plan]).payloads


@pytest.mark.parametrize("codec", CODED)
@pytest.mark.parametrize("wild", [-1, 2])
@pytest.mark.parametrize("share", [1e-6, 0.6, 1.0, 1e6])
def test_the_same_clients_are_refused_as_by_their_bytes(
    tmp_path: Path, by_bytes: Any, codec: str, wild: int, share: float
) -> None:
    plain = reply(tmp_path, ClientPlan(), reduce="individual")
    deltas = [np.frombuffer(row, "<f4").astype(np.float64) for row in plain.payloads["delta"]]
    bound = share * float(np.median([np.linalg.norm(delta) for delta in deltas]))
    asked, data = ClientPlan(uplink=codec), cohort(wild=wild)
    fast = reply(tmp_path, asked, data, max_norm=bound)
    by_bytes()
    slow = reply(tmp_path, asked, data, max_norm=bound)
    assert (fast.reports, fast.rejected) == (slow.reports, slow.rejected)
    assert fast.payloads == slow.payloads
    assert set(fast.clients) | set(fast.rejected_clients) == set(EVERYONE)
    if share == 1e-6:
        assert not fast.clients
    if share == 1e6:
        assert fast.rejected_clients == ((2,) if wild == 2 else ())


@pytest.mark.parametrize("codec", CODED)
def test_a_bound_holds_for_what_is_decoded(tmp_path: Path, codec: str) -> None:
    asked = ClientPlan(uplink=codec)
    single = reply(tmp_path, asked, reduce="individual")
    uplink = Uplink(asked, K, D, seed=0, round_number=5)
    rows = zip(single.clients, single.payloads["delta"], strict=True)
    norms = [
        np.linalg.norm(uplink.decode(client, {"delta": row})["delta"].astype(np.float64))
        for client, row in rows
    ]
    bound = float(np.median(norms))
    kept = {client for client, norm in zip(single.clients, norms, strict=True) if norm <= bound}
    assert set(reply(tmp_path, asked, max_norm=bound).clients) == kept


def test_a_client_alone_in_its_nodes_answer_sends_its_bytes(tmp_path: Path) -> None:
    asked = ClientPlan(uplink="drive")
    size = len(CODECS["drive"].encode(np.zeros((K, D + 1), np.float32), 0))
    for data in (cohort(), cohort(chunk_rows=10)):
        assert [len(row) for row in reply(tmp_path, asked, data, (4,)).payloads["delta"]] == [size]
        both = reply(tmp_path, asked, data, (3, 4))
        assert [len(row) for row in both.payloads["delta"]] == [4 * K * (D + 1)]
    # One of two is refused after the other, in another chunk, has been trained.
    left = reply(tmp_path, asked, cohort(chunk_rows=10, wild=2), (2, 4))
    assert (left.clients, left.rejected_clients) == ((4,), (2,))
    assert [len(row) for row in left.payloads["delta"]] == [size]


def test_codecs_that_cannot_be_told_without_bytes_are_summed_too(
    tmp_path: Path, by_bytes: Any
) -> None:
    by_bytes()
    asked = ClientPlan(uplink="drive")
    whole = reply(tmp_path, asked)
    single = reply(tmp_path, asked, reduce="individual")
    uplink, sums = Uplink(asked, K, D, seed=0, round_number=5), FieldSums()
    for report, row in zip(single.reports, single.payloads["delta"], strict=True):
        sums.add(uplink.decode(report.client, {"delta": row}), report.num_examples)
    got = np.frombuffer(whole.payloads["delta"][0], "<f4").reshape(K, D + 1)
    np.testing.assert_allclose(got, sums.row()["delta"][0], rtol=1e-6, atol=1e-7)


@given(
    st.integers(1, 300), st.integers(1, 5), st.integers(1, 4),
    st.sampled_from([0.0, 1e-42, 1e-30, 1.0, 1e30]), st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_compiled_rotations_are_those_of_numpy_to_the_bit(
    width: int, rows: int, clients: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    arrays = (rng.normal(size=(clients, rows, width)) * scale).astype(np.float32)
    arrays[rng.random(arrays.shape) < 0.3] = 0
    seeds = words(np.uint64(seed), np.arange(clients, dtype=np.uint64))
    for name, through in THROUGH.items():
        codec = find_codec(name)
        assert codec.through is not None
        want = codec.through(arrays, seeds)
        got = through(arrays, seeds)
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes()
