import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.labels import flipped, noisy


@given(
    st.integers(0, 200), st.integers(2, 12), st.floats(0, 0.99), st.integers(0, 99),
    st.integers(0, 10**6),
)  # fmt: skip
def test_exactly_the_share_gets_a_class_that_is_not_the_true_one(
    n: int, k: int, share: float, seed: int, client: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, k, n)
    before = labels.copy()
    wrong = noisy(labels, share, k, seed=seed, client=client)
    assert (labels == before).all()
    assert int((wrong != labels).sum()) == int(share * n + 0.5)
    assert wrong.dtype == np.int64
    assert ((wrong >= 0) & (wrong < k)).all()
    assert (wrong == noisy(labels, share, k, seed=seed, client=client)).all()


def test_each_other_class_is_as_likely_and_clients_draw_for_themselves() -> None:
    labels = np.full(9000, 1)
    wrong = noisy(labels, 0.999, 4, seed=0, client=0)
    counts = np.bincount(wrong[wrong != 1], minlength=4)
    assert counts[1] == 0
    # 8991 draws over three classes: 2997 each, standard deviation 45
    assert np.abs(counts[[0, 2, 3]] - 2997).max() < 5 * 45
    other = noisy(labels, 0.5, 4, seed=0, client=1)
    same = (other != 1) & (noisy(labels, 0.5, 4, seed=0, client=2) != 1)
    assert 0.2 < same.mean() < 0.3  # independent: a quarter


def test_more_noise_keeps_what_less_had_spoilt() -> None:
    labels = np.arange(50) % 5
    little, much = (noisy(labels, share, 5, seed=3, client=7) for share in (0.2, 0.6))
    spoilt = little != labels
    assert (much[spoilt] == little[spoilt]).all()


def test_flipped_labels_are_mirrored() -> None:
    assert flipped(np.array([0, 1, 4]), 5).tolist() == [4, 3, 0]
