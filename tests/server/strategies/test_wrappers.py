import numpy as np
import pytest

from common.types import Affine, Head, UpdateBatch
from server.strategies.averaging import fedavg
from server.strategies.scaffold import scaffold
from server.strategies.wrappers import norm_clipping, with_clipping
from server.strategy import RoundContext


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
