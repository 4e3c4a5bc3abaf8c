from typing import Literal

import numpy as np
import pytest

from common.ridge import auto_ridge
from common.statistics import feature_statistics, ridge
from common.types import Affine, FeatureSet, Head, UpdateBatch
from server.strategies.averaging import fedavg
from server.strategies.scaffold import scaffold
from server.strategies.statistics_first import with_statistics
from server.strategies.wrappers import norm_clipping, with_clipping
from server.strategy import RoundContext, with_metrics


def rows(*norms: float) -> UpdateBatch:
    deltas = np.zeros((len(norms), 2, 3), np.float32)
    deltas[:, 0, 0] = norms
    counts = np.arange(1, len(norms) + 1)
    ids = tuple((i,) for i in range(len(norms)))
    return UpdateBatch(ids, counts, counts.astype(np.float64), {"delta": deltas})


def test_only_long_updates_are_shortened_and_none_is_changed_in_place() -> None:
    strategy = norm_clipping(bound=2.0)
    batch = rows(0.0, 1.0, 2.0, 8.0)
    before = batch.fields["delta"].copy()
    assert strategy.each is not None
    clipped = strategy.each(None, Head.zeros(2, 2), batch)  # type: ignore[arg-type]
    norms = np.linalg.norm(clipped.fields["delta"], axis=(1, 2))
    np.testing.assert_allclose(norms, [0, 1, 2, 2])
    assert (batch.fields["delta"] == before).all()
    assert clipped.fields["delta"].dtype == np.float32


def test_it_asks_for_single_updates_and_works_on_sums_inside() -> None:
    strategy = with_clipping(fedavg(), 1.0)
    assert (strategy.reduce, strategy.name) == ("individual", "fedavg")
    with pytest.raises(ValueError, match="does not work on sums"):
        with_clipping(strategy, 1.0)


def test_what_cannot_be_clipped_is_refused() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        with_clipping(fedavg(), -1.0)
    clipped = with_clipping(scaffold(), 1.0)
    context = RoundContext(1, 3, 3, 0.1, Affine(np.ones(2), np.ones(2)), zero_point=0, seed=0)
    with pytest.raises(ValueError, match="scaffold needs more than the delta"):
        clipped.plan(clipped.init(Head.zeros(2, 2)), context)


Told = Literal["auto"] | float


@pytest.mark.parametrize(
    ("of_head", "of_steps"), [("auto", "auto"), (3.0, 3.0), (10.0, "auto"), ("auto", 5.0)]
)
def test_a_round_of_statistics_chooses_the_penalty_of_head_and_preconditioner_unless_told(
    of_head: Told, of_steps: Told
) -> None:
    rng = np.random.default_rng(0)
    affine = Affine(np.full(6, 0.02, np.float32), np.full(6, 128.0, np.float32))
    q, labels = rng.integers(0, 256, (40, 6), np.uint8), rng.integers(0, 3, 40)
    sums = feature_statistics(FeatureSet(q, labels, affine, ""), 3)
    a, b = sums.in_feature_space(affine)
    chosen = auto_ridge(a, b, 40).lam
    lambdas = [chosen if told == "auto" else told for told in (of_head, of_steps)]
    strategy = with_statistics(
        fedavg(), temperature=2.0, init_lambda=of_head, precondition_lambda=of_steps
    )
    context = RoundContext(1, 1, 1, 0.1, affine, zero_point=0, seed=0)
    zeros = Head.zeros(3, 6)
    fields = {"gram": sums.gram[None], "moments": sums.moments[None]}
    batch = UpdateBatch(((0,),), np.array([40]), np.ones(1), fields)
    given = strategy.aggregate(strategy.init(zeros), zeros, batch, context)
    state, head, metrics = with_metrics(given, "fedavg")
    assert metrics.get("ridge-lambda") == (chosen if of_head == "auto" else None)
    assert metrics.get("precondition-lambda") == (chosen if of_steps == "auto" else None)
    np.testing.assert_allclose(head.matrix, 2 * ridge(a, b, lambdas[0]), rtol=1e-6, atol=1e-8)
    inverse = np.linalg.inv((a + lambdas[1] * np.eye(7)) / 40)
    np.testing.assert_allclose(state.preconditioner, inverse, rtol=1e-5, atol=1e-6)
