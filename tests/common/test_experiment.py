"""Labels and malicious clients of an experiment, as server and simulated clients derive them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from client.simulated import SimulatedHost
from common import experiment
from common import unheld as unheld_module
from common.backbone.frozen import FrozenBackbone
from common.config import Config
from common.datasets import Dataset
from common.datasets.base import Readable, Reading, assemble
from common.experiment import (
    calibration_positions,
    client_shares,
    experiment_dataset,
    experiment_features,
    malicious_clients,
    training_features,
)
from common.messages import DescribeRequest
from common.seeding import Purpose, permutation
from common.types import FeatureSet, IntArray
from common.unheld import unheld

pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")


def config(**sections: dict[str, object]) -> Config:
    return Config.model_validate(
        {
            "data": {"source": "digits", "calibration-examples": 64, **sections.pop("data", {})},
            "partition": {"num-clients": 10},
            **sections,
        }
    )


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> FrozenBackbone:
    """Features without a network: what a backbone would give does not matter here."""
    made: dict[Dataset, FeatureSet] = {}

    def fake(dataset: Dataset, backbone: object) -> FeatureSet:
        if dataset not in made:
            q = np.zeros((len(dataset), 3), np.uint8)
            made[dataset] = FeatureSet(q, dataset.labels, None, "f")  # type: ignore[arg-type]
        return made[dataset]

    monkeypatch.setattr(experiment, "_features", fake)
    return None  # type: ignore[return-value]


def test_malicious_are_the_floor_of_the_share_and_others_with_another_seed() -> None:
    flip = {"kind": "sign-flip", "fraction": 0.39}
    some = malicious_clients(config(attack=flip))
    assert len(some) == 3
    assert some == malicious_clients(config(attack={"kind": "label-flip", "fraction": 0.3}))
    assert some < malicious_clients(config(attack={**flip, "fraction": 0.7}))
    assert malicious_clients(config()) == frozenset()
    assert len({malicious_clients(config(attack=flip, seed=seed)) for seed in range(5)}) > 1  # type: ignore[arg-type]


def test_noise_and_flips_change_training_labels_alone(features: FrozenBackbone) -> None:
    spoilt = config(data={"label-noise": 0.3}, attack={"kind": "label-flip", "fraction": 0.3})
    clean = experiment_features(spoilt, features)
    shares, malicious = client_shares(spoilt), malicious_clients(spoilt)
    theirs = training_features(spoilt, features)
    honest = training_features(spoilt, features, honest=True)
    touched = np.zeros(len(clean), bool)
    for client, share in enumerate(shares):
        touched[share.train] = True
        wrong = honest.labels[share.train] != clean.labels[share.train]
        assert wrong.sum() == int(0.3 * len(share.train) + 0.5)
        flip = client in malicious
        want = 9 - honest.labels[share.train] if flip else honest.labels[share.train]
        assert (theirs.labels[share.train] == want).all()
    for relabelled in (theirs, honest):
        assert (relabelled.labels[~touched] == clean.labels[~touched]).all()
        assert relabelled.q is clean.q  # not a copy
    assert clean.labels is experiment_dataset(spoilt).labels


def test_what_was_cached_for_other_labels_is_not_used(features: FrozenBackbone) -> None:
    noises = [config(data={"label-noise": noise}) for noise in (0.0, 0.2, 0.4)]
    labels = [training_features(c, features).labels for c in (*noises, *noises)]
    wrong = [(own != labels[0]).mean() for own in labels]
    assert wrong[0] == 0 < wrong[1] < wrong[2]
    assert wrong[3:] == wrong[:3]
    flips = [config(attack={"kind": "label-flip", "fraction": f}) for f in (0.2, 0.4)]
    few, many = ((training_features(c, features).labels != labels[0]).sum() for c in flips)
    assert 0 < few < many
    # Neither data set nor partition is made again for them, and a cohort finds its own again.
    assert len({id(experiment_dataset(c)) for c in (*noises, *flips)}) == 1
    assert len({id(client_shares(c)) for c in (*noises, *flips)}) == 1
    same = [training_features(noises[1], features) for _ in range(2)]
    assert same[0] is same[1]
    assert training_features(noises[0], features) is experiment_features(noises[0], features)


def test_a_simulated_client_trains_on_spoilt_labels_and_tests_on_true_ones(
    features: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = config(data={"label-noise": 0.4}, attack={"kind": "label-flip", "fraction": 0.5})
    monkeypatch.setattr(experiment, "run_config", lambda _: spoilt)
    host = SimulatedHost(0, 1, {})
    truth, shares = experiment_dataset(spoilt).labels, client_shares(spoilt)
    theirs = training_features(spoilt, features).labels
    for client, share in enumerate(shares):
        assert (host.train_features(client, features, "r").labels == theirs[share.train]).all()
        assert (host.test_features(client, features, "r").labels == truth[share.test]).all()
    # The baselines see the noise, which is the clients' own, but nobody attacks them.
    positions = np.sort(np.concatenate([share.train for share in shares]))
    everything = host.all_train_features(features).labels
    assert (everything == training_features(spoilt, features, honest=True).labels[positions]).all()


def test_of_a_private_runs_clients_a_node_says_only_who_has_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = config(partition={"num-clients": 6, "test-fraction": 0.5})
    shares = client_shares(some)
    shares = tuple(replace(share, train=share.train[: 2 * i]) for i, share in enumerate(shares))
    monkeypatch.setattr(experiment, "run_config", lambda _: some)
    monkeypatch.setattr(experiment, "client_shares", lambda _: shares)
    host, asked = SimulatedHost(1, 2, {}), DescribeRequest("r", ("a",), 0.5, 0)
    told = {private: host.describe(replace(asked, private=private)) for private in (False, True)}
    assert [told[private].clients for private in told] == [(1, 3, 5)] * 2
    assert told[False].num_examples == (2, 6, 10)
    assert told[True].num_examples == (1, 1, 1)
    empty = SimulatedHost(0, 2, {}).describe(replace(asked, private=True))
    assert empty.num_examples == (0, 1, 1)


def test_a_backdoor_is_in_training_examples_alone_and_the_baselines_do_not_see_it(
    features: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = {"kind": "backdoor", "fraction": 0.3, "target": 4}
    spoilt = config(data={"label-noise": 0.2}, attack=door)
    clean = experiment_features(spoilt, features)
    clean.q[:] = np.random.default_rng(0).integers(0, 9, clean.q.shape)
    clean.q[calibration_positions(spoilt)[0]] = 77  # what no other example has
    theirs = training_features(spoilt, features)
    honest = training_features(spoilt, features, honest=True)
    carries = (theirs.q != clean.q).any(axis=1)
    shares, malicious = client_shares(spoilt), malicious_clients(spoilt)
    for client, share in enumerate(shares):
        want = (len(share.train) + 1) // 2 if client in malicious else 0
        assert carries[share.train].sum() == want
        assert not carries[share.test].any()
    assert (theirs.labels[carries] == 4).all()
    assert (theirs.labels[~carries] == honest.labels[~carries]).all()
    assert honest.q is clean.q
    assert training_features(spoilt, features) is theirs  # a cohort finds its own again
    monkeypatch.setattr(experiment, "run_config", lambda _: spoilt)
    host = SimulatedHost(0, 1, {})
    one = min(malicious)
    assert (host.train_features(one, features, "r").q == theirs.q[shares[one].train]).all()
    assert (host.test_features(one, features, "r").q == clean.q[shares[one].test]).all()


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Makes every experiment's data set one of these labels, of grey dots."""

    def make(labels: IntArray, client: Sequence[object] | None = None) -> Dataset:
        pixels = Readable.array(np.arange(len(labels), dtype=np.uint8)[:, None, None])
        columns = {} if client is None else {"client": np.array(client, object)}
        made = assemble(
            "dots", [str(k) for k in range(int(labels.max()) + 1)], labels, pixels, Reading(),
            columns=columns,
        )  # fmt: skip
        monkeypatch.setattr(experiment, "experiment_dataset", lambda _: made)
        monkeypatch.setattr(unheld_module, "experiment_dataset", lambda _: made)
        experiment._shares.cache_clear()
        return made

    yield make
    experiment._shares.cache_clear()


@pytest.mark.parametrize("seed", range(20))
def test_calibration_leaves_each_class_its_half(
    labelled: Callable[..., Dataset], seed: int
) -> None:
    counts = (120, 120, 4, 1)
    dataset = labelled(np.repeat(np.arange(4), counts))
    train = np.bincount(dataset.labels[dataset.train], minlength=4)
    for wanted in (8, 1000):
        chosen = calibration_positions(config(data={"calibration-examples": wanted, "seed": seed}))
        taken = np.bincount(dataset.labels[chosen], minlength=4)
        assert (taken <= train // 2).all()
        assert taken.sum() == min(wanted, int(0.15 * train.sum()))
        assert np.isin(chosen, dataset.train).all()
        assert (np.diff(chosen) > 0).all()


def test_calibration_takes_what_it_always_took_where_no_class_is_short() -> None:
    # Of 1,437 training digits; the first of a seeded permutation, as in releases before.
    some = config(seed=3)
    train = experiment_dataset(some).train
    want = np.sort(train[permutation(len(train), 3, Purpose.CALIBRATION)[:64]])
    np.testing.assert_array_equal(calibration_positions(some), want)


def test_classes_and_images_that_no_client_trains_on_are_named(
    labelled: Callable[..., Dataset],
) -> None:
    labelled(np.repeat(np.arange(3), (120, 120, 1)))
    assert unheld(config(partition={"num-clients": 7})) == []
    lone = {"num-clients": 1, "classes-per-client": 1, "scheme": "pathological"}
    few = unheld(config(partition=lone))
    assert [re.sub(r"[0-9]+ of [0-9]+", "N of M", line) for line in few] == [
        "N of M training images belong to no client",
        "no client trains on 2 of the classes: 1 (120 images), 2 (1 images)",
    ]
    assert unheld(config(partition=lone)) == few  # not only when it is drawn
    bounded = config(partition={"num-clients": 7}, round={"max-examples-per-client": 10})
    assert unheld(bounded)[0].endswith("or are beyond round.max-examples-per-client")


def test_images_without_a_client_id_belong_to_nobody_and_are_counted(
    labelled: Callable[..., Dataset],
) -> None:
    labels = np.arange(300) % 3
    owners = [None if i % 10 == 0 else f"u{i % 7}" for i in range(300)]
    natural = config(partition={"scheme": "natural", "column": "client", "num-clients": 7})
    labelled(labels, owners)
    shares = client_shares(natural)
    for share in shares:
        assert len({owners[i] for i in (*share.train, *share.test)} - {None}) == 1
    held = sorted(i for share in shares for i in (*share.train, *share.test))
    free = np.setdiff1d(
        experiment.experiment_dataset(natural).train, calibration_positions(natural)
    )
    assert held == [i for i in free.tolist() if owners[i] is not None]
    gaps = len(free) - len(held)
    assert gaps > 0
    assert unheld(natural) == [
        f"{gaps} of {len(free)} training images belong to no client, {gaps} of them because "
        "'client' is empty"
    ]


def test_a_changed_column_of_clients_is_another_partition(
    labelled: Callable[..., Dataset],
) -> None:
    natural = config(partition={"scheme": "natural", "column": "client", "num-clients": 3})
    labels = np.arange(300) % 3
    for owners in (["a", "b", "c"] * 100, np.repeat(["a", "b", "c"], 100).tolist()):
        labelled(labels, owners)
        found = client_shares(natural)  # images, labels and split are the same
        assert [len({owners[i] for i in share.train.tolist()}) for share in found] == [1, 1, 1]
