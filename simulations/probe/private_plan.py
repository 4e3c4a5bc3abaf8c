"""What noise a private run would have, and how accurate its head would be: simulated on images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.config import Config, changed
from common.errors import ConfigError, DataError
from common.experiment import (
    calibration_positions,
    client_shares,
    experiment_dataset,
    experiment_features,
    held_out_positions,
)
from common.noise import wilson
from common.privacy.rule import Mechanism
from common.seeding import Purpose, stream_state
from common.statistics import unit_rows
from common.types import FeatureSet, FloatArray, IntArray
from server.export.run_model import prepare
from server.round.learning_rate import feature_norm
from server.round.private import Decided
from server.round.private_checks import check_population
from server.round.private_terms import DEVICE_EXAMPLES, decide
from simulations.probe.crossval import ridge_head
from simulations.probe.private_training import Dealt, private_head

__all__ = ["Outlook", "PrivatePlan", "plan_privacy"]

_NOISES = 3
"""Runs of each budget that differ in their noise."""


@dataclass(frozen=True)
class Outlook:
    """What a budget would give.

    Attributes:
        epsilon: the budget; infinite without privacy, of a ridge head of all images in one place.
        accuracies: in [0, 1], one for each noise.
        directions: how many features heads train on.
        decided: noise, clip and step; None without privacy.
    """

    epsilon: float
    accuracies: tuple[float, ...]
    directions: int
    decided: Decided | None

    @property
    def accuracy(self) -> float:
        """Mean over the noises."""
        return float(np.mean(self.accuracies))


@dataclass(frozen=True)
class PrivatePlan:
    """Budgets for as many clients.

    Attributes:
        source: of the images.
        clients: n, how many there are to be.
        examples: m, what one of them typically has.
        simulated: how many clients the images make; fewer than ``clients``: each stands for
            several.
        images: how many these hold together.
        tests: images that the accuracies are of.
        delta: of the bound.
        rounds: of training.
        mechanism: how clients take part.
        asked: the budget that was asked for.
        outlooks: of several budgets, ascending.
    """

    source: str
    clients: int
    examples: float
    simulated: int
    images: int
    tests: int
    delta: float
    rounds: int
    mechanism: Mechanism
    asked: float
    outlooks: tuple[Outlook, ...]

    @property
    def wanted(self) -> Outlook:
        """Of the budget that was asked for."""
        return next(one for one in self.outlooks if one.epsilon == self.asked)

    @property
    def margin(self) -> float:
        """Half of the 95 % interval of the wanted accuracy, by chance of the test images."""
        low, high = wilson(self.wanted.accuracy, self.tests)
        return (high - low) / 2


def plan_privacy(config: Config, epsilons: Sequence[float]) -> PrivatePlan:
    """Simulate FedAvg by privacy's rule with several budgets, and ridge regression without.

    Args:
        config: of the run that is planned: partition.num-clients says how many clients there are,
            privacy.epsilon what is asked. Its images are dealt out as [partition] says.
        epsilons: further budgets; the infinite one is without privacy.

    Raises:
        ConfigError: the budget does not suit the clients, or the plan has no such mechanism.
        DataError: there are too few images, or they cannot be dealt out.
    """
    _check(config)
    clients = config.partition.num_clients
    dataset, test = experiment_dataset(config), held_out_positions(config)
    examples, shares = _dealt(config)
    order = np.concatenate(shares)
    outlooks = []
    for epsilon in sorted({*epsilons, config.privacy.epsilon}):
        own = _with_budget(config, epsilon)
        features = experiment_features(own, prepare(own, dataset))
        if math.isinf(epsilon):
            outlooks.append(_without(features, order, test, dataset.num_classes))
            continue
        decided = decide(own, clients, examples, feature_norm(own, features))
        dealt = Dealt(
            _unit(features, order), dataset.labels[order],
            np.array([len(share) for share in shares]), dataset.num_classes,
        )  # fmt: skip
        tested, labels = _unit(features, test), dataset.labels[test]
        accuracies = []
        for number in range(_NOISES):
            state = stream_state(config.seed, Purpose.PRIVACY_PLAN, number)
            rng = np.random.default_rng(state)
            head = private_head(dealt, decided, config.privacy.mechanism, rng)
            accuracies.append(float(((tested @ head.T).argmax(1) == labels).mean()))
        outlooks.append(Outlook(epsilon, tuple(accuracies), features.num_features, decided))
    return PrivatePlan(
        source=config.data.source,
        clients=clients,
        examples=examples,
        simulated=len(shares),
        images=len(order),
        tests=len(test),
        delta=config.privacy.delta,
        rounds=config.train.rounds,
        mechanism=config.privacy.mechanism,
        asked=config.privacy.epsilon,
        outlooks=tuple(outlooks),
    )


def _with_budget(config: Config, epsilon: float) -> Config:
    """The configuration that decides on features and noise of a budget."""
    keys: dict[str, Any] = {"privacy": {"epsilon": epsilon}, "partition": {"scheme": "iid"}}
    if math.isinf(epsilon) and config.backbone.projection == "auto":
        keys["backbone"] = {"projection": "off"}  # the projection is privacy's rule
    return changed(config, keys)


def _check(config: Config) -> None:
    privacy, asked = config.privacy, config.train.clients_per_round
    problems = []
    if privacy.mechanism == "one-shot":
        problems.append(
            "a plan is of FedAvg, and one-shot is for closed forms: fedhead compare EXPERIMENT "
            "--strategies fed3r,lda --epsilons 1,4,inf runs them"
        )
    if privacy.clip == "adaptive":
        problems.append('privacy.clip="adaptive" is not simulated: expected "auto" or a number')
    if (privacy.mechanism == "everyone") != (not asked):
        problems.append(
            f"--clients-per-round {asked:g} with --mechanism {privacy.mechanism}: everyone is "
            "without it, poisson and min-separation need it"
        )
    if problems:
        raise ConfigError(problems)
    check_population(config, config.partition.num_clients)


def _dealt(config: Config) -> tuple[float, list[IntArray]]:
    """A client's typical number of images, and the positions of each simulated client's.

    The images make as many clients as they suffice for, of those that there are to be.
    """
    dataset, clients = experiment_dataset(config), config.partition.num_clients
    count = len(np.setdiff1d(dataset.train, calibration_positions(config)))
    given = config.privacy.typical_examples
    dealt_out = count / clients if clients <= count else DEVICE_EXAMPLES
    examples = float(dealt_out if given == "auto" else given)
    enough = int(count / examples + 1e-9)
    if enough < 1:
        raise DataError(f"{dataset.name} has {count} images for clients, fewer than one client's")
    smaller = {"num-clients": enough, "min-examples": 1, "test-fraction": 0.0}
    keys = {"partition": smaller, "train": {"clients-per-round": 0}}
    shares = client_shares(changed(config, keys))
    return examples, [share.train for share in shares[:clients]]


def _unit(features: FeatureSet, positions: IntArray) -> FloatArray:
    """Features of some images, each of norm 1."""
    x = features.affine(features.q[positions])
    return unit_rows(x.astype(np.float64)).astype(np.float32)


def _without(features: FeatureSet, train: IntArray, test: IntArray, classes: int) -> Outlook:
    head = ridge_head(features.affine(features.q[train]), features.labels[train], classes)
    right = head.predict(features.affine(features.q[test])) == features.labels[test]
    return Outlook(math.inf, (float(right.mean()),), features.num_features, None)
