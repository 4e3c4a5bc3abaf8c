"""A private round's clients: their integers are the same everywhere, and nothing else leaves."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.app import _result, host_of
from client.budget import Budget
from client.cohort.cohort import Cohort, warm_up
from client.discretion import UNTOLD
from client.memory import ClientMemory
from client.node import node_update
from client.together import update_together
from common.errors import DataError, FedheadError, ProtocolError
from common.fields import check_plausible
from common.messages import (
    DescribeReply,
    DescribeRequest,
    TrainReply,
    TrainRequest,
    payload_bytes,
)  # fmt: skip
from common.plausible import Limits
from common.privacy.integers import OFFSET, RESOLUTION, offset_sum, squared_norm
from common.types import WHOLE, Affine, ClientPlan, FeatureSet, Head, LocalTraining

K, D = 3, 20
PLAN = ClientPlan(
    fields=("clipped_delta", "within_clip"), weighting="uniform", clip=0.5, unit_norm=3.0
)
ONE_STEP, SEVERAL = LocalTraining(0.3, 1, WHOLE), LocalTraining(0.3, 2, 4)


@dataclass(frozen=True, eq=False)
class Data:
    """Clients' examples, one client's after another's."""

    features: FeatureSet
    rows: list[np.ndarray]

    def of(self, client: int) -> FeatureSet:
        return self.features.select(self.rows[client])

    def cohort(self, **options: Any) -> Cohort:
        return Cohort(self.features, self.rows, **options)


def data(sizes: Iterable[int], seed: int = 0, d: int = D, gain: float = 0.01) -> Data:
    sizes = list(sizes)
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    affine = Affine(np.full(d, gain, np.float32), np.full(d, 128, np.float32))
    q = rng.integers(0, 256, (n, d), dtype=np.uint8)
    fs = FeatureSet(q, rng.integers(0, K, n), affine, "f" * 64)
    return Data(fs, np.split(np.arange(n), np.cumsum(sizes)[:-1]))


def head(d: int = D) -> Head:
    rng = np.random.default_rng(1)
    return Head(rng.normal(size=(K, d)).astype(np.float32), np.zeros(K, np.float32))


def request(clients: Iterable[int], start: Head | None = None, **changes: Any) -> TrainRequest:
    """As it arrives."""
    order = TrainRequest(
        start or head(), PLAN, ONE_STEP, tuple(clients), 4, "r", 0, "f" * 64, "sum"
    )
    return TrainRequest.read(replace(order, **changes).write())


class Reference:
    """A host whose clients are trained one by one, as on devices."""

    budget = Budget()

    def __init__(self, given: Data, folder: Path, *, simulated: bool = True) -> None:
        self._data, self.state, self.simulated = given, folder, simulated
        self.broken: dict[int, FedheadError] = {}

    def describe(self, asked: DescribeRequest) -> DescribeReply:
        raise NotImplementedError

    def clients(self) -> tuple[int, ...]:
        return tuple(range(len(self._data.rows)))

    def train_features(self, client: int, backbone: Any, run_id: str) -> FeatureSet:
        if client in self.broken:
            raise self.broken[client]
        return self._data.of(client)

    def test_features(self, client: int, backbone: Any, run_id: str) -> FeatureSet:
        raise NotImplementedError

    def cohort(self, backbone: Any, part: str) -> None:
        return None

    def gradient(self) -> None:
        return None

    def name(self, client: int) -> str:
        return f"client {client}"

    def tell(self, run_id: str, words: str) -> None:
        raise NotImplementedError


def one_by_one(given: Data, order: TrainRequest, folder: Path) -> TrainReply:
    return node_update(order, None, Reference(given, folder))  # type: ignore[arg-type]


def together(given: Data, order: TrainRequest, folder: Path, **options: Any) -> TrainReply:
    everyone = range(len(given.rows))
    memory = ClientMemory(folder)
    return update_together(
        order, order.clients, given.cohort(**options), memory, residents=everyone
    )


def totals(reply: TrainReply, num_features: int = D) -> tuple[np.ndarray, int]:
    """The exact sum of a node's clients, and how many are within the clip."""
    count = len(reply.clients)
    (delta,), (within,) = reply.payloads["clipped_delta"], reply.payloads["within_clip"]
    width = len(delta) // (K * (num_features + 1))
    sent = np.frombuffer(delta, f"<u{width}").reshape(K, num_features + 1)
    check_plausible({"clipped_delta": sent}, Limits(count, 1.0, clients=count))
    return offset_sum(sent, count), int(np.frombuffer(within, f"<u{len(within)}")[0])


# The same integers everywhere


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.sampled_from([ONE_STEP, SEVERAL]),
    st.sampled_from([1e-6, 0.05, 0.5, 1e6]),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=40)
def test_a_cohorts_total_is_the_references_up_to_rounding(
    sizes: list[int], training: LocalTraining, clip: float, norm: float, seed: int
) -> None:
    given_data, folder = data(sizes, seed), Path("unused")
    plan = replace(PLAN, clip=clip, unit_norm=norm)
    # Where a softmax is nearly 1, little is left of what a client would add, but its roundings are.
    start = Head.from_matrix(0.2 * head().matrix)
    order = request(range(len(sizes)), start, training=training, plan=plan)
    expected, inside = totals(one_by_one(given_data, order, folder))
    total, within = totals(together(given_data, order, folder))
    # A float32 delta is off by some 2^-22 of the sums it is made of; a client's is 2^18 long.
    np.testing.assert_allclose(total, expected, rtol=0, atol=4 * len(sizes))
    assert within == inside
    assert squared_norm(total) <= (RESOLUTION * len(sizes)) ** 2
    assert clip == 1e6 or np.abs(total).max() > 100


@pytest.mark.parametrize("trainer", [one_by_one, together])
@pytest.mark.parametrize("training", [ONE_STEP, SEVERAL])
@pytest.mark.parametrize("d", [5, 64, 255])
def test_totals_are_equal_on_any_number_of_nodes(
    tmp_path: Path, trainer: Any, training: LocalTraining, d: int
) -> None:
    sizes = np.random.default_rng(d).integers(1, 70, 24)
    given_data, start = data(sizes, d=d), head(d)
    expected, inside = totals(
        trainer(given_data, request(range(24), start, training=training), tmp_path), d
    )
    for nodes in (2, 5, 24):
        orders = [request(range(i, 24, nodes), start, training=training) for i in range(nodes)]
        parts = [totals(trainer(given_data, order, tmp_path), d) for order in orders]
        np.testing.assert_array_equal(sum(part for part, _ in parts), expected)
        assert sum(within for _, within in parts) == inside


@pytest.mark.parametrize("training", [ONE_STEP, SEVERAL])
def test_neither_threads_nor_chunks_change_a_total(tmp_path: Path, training: LocalTraining) -> None:
    given_data = data(np.random.default_rng(0).integers(1, 70, 24))
    order = request(range(24), training=training)
    expected = together(given_data, order, tmp_path)
    for options in ({"threads": 1}, {"chunk_rows": 1}, {"chunk_rows": 99}):
        assert together(given_data, order, tmp_path, **options).payloads == expected.payloads


def test_a_single_client_sends_what_is_summed(tmp_path: Path) -> None:
    given_data = data([5, 9, 3])
    for trainer in (one_by_one, together):
        single = trainer(given_data, request(range(3), reduce="individual"), tmp_path)
        rows = [np.frombuffer(row, "<u4") for row in single.payloads["clipped_delta"]]
        for row in rows:
            check_plausible({"clipped_delta": row}, Limits(1, 1.0))
        summed, _ = totals(trainer(given_data, request(range(3)), tmp_path))
        np.testing.assert_array_equal(offset_sum(sum(rows), 3).reshape(K, D + 1), summed)
        assert (summed[:, -1] == 0).all()  # no bias
        assert summed.any()


def test_kept_gram_matrices_of_plain_and_scaled_examples_are_told_apart(tmp_path: Path) -> None:
    given_data, clients = data([9, 4, 12]), range(3)
    shared, memory = given_data.cohort(), ClientMemory(tmp_path)
    shared.prepare(np.arange(3))
    plans = (
        ClientPlan(weighting="uniform"),
        PLAN,
        replace(PLAN, unit_norm=1.0),
        ClientPlan(),
        replace(PLAN, unit_norm=0.0),
    )
    for plan in (*plans, *plans):
        order = request(clients, plan=plan, training=SEVERAL)
        found = update_together(order, order.clients, shared, memory, residents=clients)
        assert found.payloads == together(given_data, order, tmp_path).payloads


# Nothing else leaves


@pytest.mark.parametrize("reduce", ["sum", "individual"])
@pytest.mark.parametrize("trainer", [one_by_one, together])
def test_all_that_a_reply_tells_beside_the_integers_is_the_same_for_any_data(
    tmp_path: Path, trainer: Any, reduce: str
) -> None:
    few, many = data([1, 2, 1]), data([40, 30, 90], seed=7, gain=5.0)
    answers = [
        trainer(each, request(range(3), reduce=reduce, training=SEVERAL), tmp_path)
        for each in (few, many)
    ]
    assert answers[0].payloads != answers[1].payloads
    assert replace(answers[0], payloads={}).write() == replace(answers[1], payloads={}).write()
    assert {(r.num_examples, r.loss_before, r.loss_after) for r in answers[0].reports} == {
        (1, 0, 0)
    }
    sizes = {payload_bytes(answer.write()) for answer in answers}
    assert len(sizes) == 1
    single = trainer(few, request([1], reduce="individual"), tmp_path)
    assert {report.payload_bytes for report in answers[1].reports} == {
        payload_bytes(single.write())
    }


@pytest.mark.parametrize("reduce", ["sum", "individual"])
@pytest.mark.parametrize("trainer", [one_by_one, together])
def test_reasons_and_logs_hold_no_number_of_a_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trainer: Any, reduce: str
) -> None:
    caplog.set_level(logging.DEBUG)
    wild = data([6, 5, 7], gain=1e36)  # products of its features are infinite
    wild.features.labels[wild.rows[0]] = K
    wild.features.q[wild.rows[2]] = 128
    plan = replace(PLAN, unit_norm=0.0)
    order = request([0, 1, 2, 3], plan=plan, reduce=reduce)
    if trainer is one_by_one:
        order = request([0, 1, 2], plan=plan, reduce=reduce)
    answer = trainer(wild, order, tmp_path)
    reasons = {rejection.client: rejection.reason for rejection in answer.rejected}
    reasons.pop(3, None)  # a client that is not there
    assert reasons == {0: UNTOLD, 1: UNTOLD}
    assert answer.clients == (2,)
    assert not caplog.records


def test_an_updates_length_is_never_told(tmp_path: Path) -> None:
    # Without privacy an update may be refused by its norm, which the reason names.
    given_data = data([6, 5], gain=10.0)
    plain = request(range(2), plan=ClientPlan(), max_norm=1e-3)
    told = together(given_data, plain, tmp_path).rejected[0].reason
    assert re.search(r"\d{2}", told)
    for trainer in (one_by_one, together):
        assert not trainer(given_data, request(range(2), max_norm=1e-3), tmp_path).rejected


@pytest.mark.parametrize("simulated", [True, False])
def test_what_is_wrong_with_a_clients_data_stays_on_its_machine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, simulated: bool
) -> None:
    host = Reference(data([6, 5]), tmp_path, simulated=simulated)
    host.broken[1] = DataError("/home/ann/cats/17.png: 17 bytes")
    answer = node_update(request(range(2)), None, host)  # type: ignore[arg-type]
    words = UNTOLD if simulated else "its images cannot be used; see its own log"
    assert [rejection.reason for rejection in answer.rejected] == [words]
    assert answer.clients == (0,)
    assert ("17.png: 17 bytes" in caplog.text) is not simulated
    assert ("left out of round" in caplog.text) is not simulated
    assert ("17 bytes" in caplog.text) is not simulated


def test_a_devices_reasons_are_fixed_words(tmp_path: Path) -> None:
    wild = data([6, 5], gain=1e36)
    wild.features.labels[wild.rows[0]] = K
    order = request(range(2), plan=replace(PLAN, unit_norm=0.0))
    answer = node_update(order, None, Reference(wild, tmp_path, simulated=False))  # type: ignore[arg-type]
    assert [rejection.reason for rejection in answer.rejected] == [
        f"has examples of more than the {K} classes of the head", "delta is not finite",
    ]  # fmt: skip


def test_kernels_for_private_rounds_can_be_had_before_a_round() -> None:
    from client.cohort.clipping import _add_products, _add_rows, _multiply_each
    from client.cohort.conversion import lengths_of

    warm_up(private=True)
    for kernel in (_add_products, _add_rows, _multiply_each, lengths_of):
        assert kernel.signatures  # type: ignore[attr-defined]


# What is asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": ("clipped_delta", "delta")}, "a plan with a clip asks for the field 'delta'"),
        ({"fields": ("fair_scale",)}, "a plan with a clip asks for the field 'fair_scale'"),
        ({"clip": 0.0, "unit_norm": 0.0}, "without a clip asks for the field 'clipped_delta'"),
        ({"clip": 0.0, "fields": ("delta",)}, "unit_norm needs a clip"),
        ({"clip": -1.0}, "clip is -1, expected a finite number of at least 0"),
        ({"clip": float("inf")}, "clip is inf, expected"),
        ({"clip": float("nan")}, "clip is nan, expected"),
        ({"unit_norm": float("nan")}, "unit_norm is nan, expected"),
        ({"unit_norm": -2.0}, "unit_norm is -2, expected"),
        ({"weighting": "examples"}, "weights uniformly"),
        ({"correction": "scaffold"}, "corrects nothing"),
        ({"kind": "statistics"}, "a plan with a clip trains"),
    ],
)
def test_a_client_refuses_to_tell_more_than_the_clipped_update(
    changes: dict[str, Any], message: str
) -> None:
    order = request(range(2))
    with pytest.raises(ProtocolError, match=message):
        replace(order, plan=replace(PLAN, **changes))
    # And so it does of an order that the server's own check let through.
    forged = replace(order)
    object.__setattr__(forged, "plan", replace(PLAN, **changes))
    content = forged.write()
    if changes.get("fields") != ("delta",):  # which is written as a plan without privacy
        with pytest.raises(ProtocolError):
            TrainRequest.read(content)


def test_flowers_own_format_is_refused_because_it_holds_the_head() -> None:
    with pytest.raises(ProtocolError, match="a client's head, which has no noise"):
        replace(request([0]), reduce="stock")


def test_a_plan_without_privacy_travels_as_before() -> None:
    config = request([0], plan=ClientPlan()).config()
    assert not {"clip", "unit-norm"} & set(config)
    private = request([0])
    assert (private.plan.clip, private.plan.unit_norm) == (0.5, 3.0)


# What is checked


def row(*values: int) -> dict[str, np.ndarray]:
    return {"clipped_delta": (np.array([values]) + OFFSET).astype(np.uint32)}


def test_the_server_refuses_integers_that_are_longer_than_the_clip() -> None:
    check_plausible(row(RESOLUTION, 0), Limits(1, 1.0))
    with pytest.raises(FedheadError, match="is 1 clips long, which is more than 1"):
        check_plausible(row(RESOLUTION, 1), Limits(1, 1.0))
    check_plausible(row(RESOLUTION, 1), Limits(9, 1.0, clients=2))  # less than two offsets each
    check_plausible({"within_clip": np.array([2], np.uint32)}, Limits(2, 1.0, clients=2))
    with pytest.raises(FedheadError, match="within_clip holds 3, expected at most 2"):
        check_plausible({"within_clip": np.array([3], np.uint32)}, Limits(2, 1.0, clients=2))


# Who is there


def describe(folder: Path, **changes: Any) -> DescribeReply:
    host = host_of({"data": f"folder:{folder / 'images'}", "state": str(folder / "state")}, {}, 7)
    asked = DescribeRequest("1a2b", ("ant", "bee"), 0.0, 3, max_examples=4, **changes)
    return host.describe(DescribeRequest.read(asked.write()))


def test_a_device_says_only_whether_it_has_images(tmp_path: Path) -> None:
    for i in range(6):
        file = tmp_path / "images" / "ant" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 9, 9)).save(file)
    plain, private = describe(tmp_path), describe(tmp_path, private=True)
    assert (plain.num_examples, plain.unused) == ((4,), 2)
    assert (private.num_examples, private.unused) == ((1,), 0)
    assert replace(private, num_examples=(4,), unused=2) == plain


def test_a_devices_log_does_not_take_blanks_for_figures(tmp_path: Path) -> None:
    given_data = data([6])
    for plan, words in ((PLAN, "sent its clipped update"), (ClientPlan(), "trained on 6 examples")):
        answer = one_by_one(given_data, request([0], plan=plan), tmp_path)
        assert _result(answer, private=plan.private).startswith(words)
