"""A simulated fleet: its phones compute what devices do, and its figures mean what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from client.local import batch_orders
from client.sgd import Terms, train_head
from common.delivery.tokens import device_of, issue_tokens
from common.errors import ConfigError
from common.evaluation import evaluate, losses_of
from common.phones.phones_pb2 import EVALUATE, SGD, STATISTICS, Task, Training
from common.seeding import Purpose, batch_order, stream_state
from common.statistics import feature_statistics
from common.types import Affine, FeatureSet, Head, LocalTraining
from simulations.bench.fleet.figures import awake_seconds, spread, steadiness
from simulations.bench.fleet.orders import (
    Orders,
    read_images,
    read_orders,
    write_images,
    write_orders,
)
from simulations.bench.fleet.profile import PROFILES, Profile, Zone, find_profile
from simulations.bench.fleet.simulate import Fleet
from simulations.bench.fleet.table import show
from simulations.bench.fleet.work import Arrays, epoch_order, perform

K, D, N = 4, 12, 23


@pytest.fixture
def images() -> FeatureSet:
    rng = np.random.default_rng(0)
    affine = Affine(np.full(D, 0.02, np.float32), np.full(D, 120, np.float32))
    q, labels = rng.integers(0, 256, (N, D), dtype=np.uint8), rng.integers(0, K, N)
    return FeatureSet(q, labels, affine, "ab")


def matrix(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (K, D + 1)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 10, 200])
def test_an_epochs_order_is_that_of_devices(n: int) -> None:
    seed = stream_state(7, Purpose.BATCH_ORDER, 3, 2**62 + 5)
    for epoch in range(3):
        expected = batch_order(n, seed=7, round_number=3, client=2**62 + 5, epoch=epoch)
        assert epoch_order(seed, epoch, n).tolist() == expected.tolist()


def test_an_update_is_that_of_the_reference(images: FeatureSet) -> None:
    training = LocalTraining(0.3, 3, 5, momentum=0.5, weight_decay=0.01)
    task = Task(
        id="a" * 32, fingerprint="ab", kind=SGD, num_classes=K, num_features=D, fields=["delta"],
        training=Training(
            optimizer="sgd", lr=0.3, epochs=3, batch_size=5, momentum=0.5, weight_decay=0.01,
            mu=0.2, batch_seed=stream_state(7, Purpose.BATCH_ORDER, 3, 99),
        ),
    )  # fmt: skip
    start, correction = matrix(1), matrix(2)
    train = np.arange(2, N)
    arrays = Arrays.read(task, start.tobytes(), correction.tobytes())
    done = perform(task, arrays, images, train, np.arange(2))
    own = images.select(train)
    expected = train_head(
        torch.from_numpy(own.x), torch.from_numpy(own.labels), torch.from_numpy(start), training,
        batch_orders(len(own), training, seed=7, round_number=3, client=99),
        Terms(0.2, torch.from_numpy(correction)),
    )  # fmt: skip
    (array,) = done.arrays
    delta = np.frombuffer(array.data, "<f4").reshape(K, D + 1)
    np.testing.assert_allclose(delta, expected.delta.numpy(), rtol=1e-4, atol=1e-6)
    assert np.abs(delta).max() > 0.1
    assert (array.field, done.num_examples, done.task) == ("delta", len(train), "a" * 32)
    assert done.loss_before == pytest.approx(expected.loss_before, rel=1e-5)
    assert done.loss_after == pytest.approx(expected.loss_after, rel=1e-5)


def test_statistics_and_evaluations_are_those_of_devices(images: FeatureSet) -> None:
    start, train, test = matrix(1), np.arange(8, N), np.arange(8)
    head = Head.from_matrix(start)
    task = Task(kind=STATISTICS, fields=["moments", "gram"], num_classes=K, num_features=D)
    sums = perform(task, Arrays(start), images, train, test)
    expected = feature_statistics(images.select(train), K)
    for array in sums.arrays:
        assert array.data == getattr(expected, array.field).astype("<u4").tobytes()
    assert [array.field for array in sums.arrays] == ["moments", "gram"]
    task = Task(kind=EVALUATE, num_classes=K, num_features=D)
    done = perform(task, Arrays(start), images, train, test)
    found = evaluate(head, images.select(test))
    assert (done.num_examples, done.correct) == (8, found.correct)
    assert done.loss_before == pytest.approx(found.loss, rel=1e-5)
    curve = losses_of(head, images.select(test))
    np.testing.assert_allclose(np.frombuffer(done.losses, "<f8"), curve, rtol=1e-5)


def test_many_tokens_are_found_as_any(tmp_path: Path) -> None:
    tokens = issue_tokens(tmp_path, ["a", "b"])
    assert [device_of(tmp_path, token) for token in tokens.values()] == ["a", "b"]
    assert device_of(tmp_path, tokens["a"].replace("a.", "b.")) is None
    with pytest.raises(FileExistsError):
        issue_tokens(tmp_path, ["b"])


def test_a_zone_is_there_for_its_part_of_each_day() -> None:
    profile = Profile((Zone(starts=0.9, awake=0.3),), day_seconds=50)
    assert awake_seconds(profile, 0, 500) == pytest.approx(150, abs=1)
    # From 45 s until 60 s, which is 10 s into the next day.
    asked = [profile.seconds_until_awake(profile.zones[0], 0.0, t) for t in (9, 11, 44, 46)]
    assert asked == pytest.approx([0, 34, 1, 0])


def test_a_profile_that_there_is_not_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown profile 'diurnl', did you mean diurnal"):
        find_profile("diurnl")
    assert sum(zone.share for zone in PROFILES["greedy"].zones) == 20


def test_random_moments_are_told_from_phones_that_call_together() -> None:
    rng = np.random.default_rng(1)
    counts = np.histogram(rng.uniform(0, 100, 5000), 100, (0, 100))[0]
    even = spread(counts.tolist())
    assert even["per_second"] == 50
    expected = chi2.sf(even["variance_over_mean"] * 99, 99)
    assert even["p"] == pytest.approx(expected, abs=1e-3)
    assert even["p"] > 0.01
    assert 0.6 < even["variance_over_mean"] < 1.4
    together = spread([40] * 90 + [140] * 10)
    assert together["p"] < 1e-6
    assert together["max_over_mean"] == pytest.approx(140 / 50)
    assert spread([]) == {
        "per_second": 0.0, "max_over_mean": 0.0, "variance_over_mean": 0.0, "p": 1.0,
    }  # fmt: skip


def test_growth_is_seen_in_the_second_half() -> None:
    moments = [float(i) for i in range(60)]
    steady = steadiness(moments, [10.0 + min(i, 20) for i in range(60)])
    assert steady["growth_per_minute"] == pytest.approx(0, abs=1e-6)
    leaking = steadiness(moments, [10.0 + i for i in range(60)])
    assert leaking["growth_per_minute"] == pytest.approx(60)
    assert (leaking["first"], leaking["peak"], leaking["last"]) == (10, 69, 69)


def test_orders_and_images_are_read_as_they_were_written(
    tmp_path: Path, images: FeatureSet
) -> None:
    orders = Orders(
        "localhost:1", "ca.crt", ("a.b", "c.d"), "images", PROFILES["greedy"], 3, 0.25, 10.0, 4,
        "figures.json",
    )  # fmt: skip
    write_orders(tmp_path / "orders", orders)
    assert read_orders(tmp_path / "orders") == orders
    assert (tmp_path / "orders").stat().st_mode & 0o077 == 0  # it holds tokens
    write_images(tmp_path / "images", images, [np.arange(3), np.arange(3, 5)])
    found, shares = read_images(tmp_path / "images")
    assert [share.tolist() for share in shares] == [[0, 1, 2], [3, 4]]
    assert (found.x == images.x).all()
    assert (found.labels == images.labels).all()


def test_an_impossible_fleet_is_refused_with_all_its_problems() -> None:
    with pytest.raises(ConfigError, match=r"phones is 0.*faults is 2.*connections is -1"):
        Fleet(phones=0, faults=2, connections=-1)


def test_the_table_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    zone = {"phones": 5000, "awake": 0.3, "haste": 20.0, "check_ins": 123456, "tasks": 10_000,
            "check_ins_per_minute": 12.3, "tasks_per_minute": 0.12}  # fmt: skip
    steady = {"first": 80.0, "peak": 1234.5, "last": 100.0, "growth_per_minute": -0.5}
    show(
        {
            "phones": 10_000, "clients": 9_999, "rounds": 10, "accepted_rounds": 10,
            "round_seconds": 31.4, "accuracy": 0.8125, "valid_updates": 5000,
            "verdicts": {"accepted": 5400, "late": 200, "refused: above-norm": 1, "noted": 200},
            "faults": {"silent": 200}, "failed_calls": {"UNAVAILABLE": 2},
            "calls": {"CheckIn": 200_000}, "most_open_check_ins": 200,
            "check_ins": {"per_second": 500.0, "max_over_mean": 1.2, "variance_over_mean": 1.1},
            "most_uploads_per_second": 90, "megabytes": 500.0, "megabytes_per_second": 1.5,
            "submit_seconds": [0.01, 0.1, 2.0], "phases": {"waiting": [9.0, 20.0]},
            "resident_megabytes": steady, "descriptors": steady, "service_cpu": 0.5,
            "zones": [zone, zone],
        }
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "1 refused: above-norm" in out
    assert "tasks a phone" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
