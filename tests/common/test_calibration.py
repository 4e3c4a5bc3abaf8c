"""Which images calibrate: a bounded share, and never a class's last half."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.calibration import LEAST, SHARE, calibration_part


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=300), st.integers(1, 300), st.integers(0, 9)
)
def test_calibration_is_bounded_in_all_and_in_each_class(labels, most, seed):
    labels = np.array(labels, np.int64)
    train = np.arange(0, len(labels), 2)
    chosen = calibration_part(labels, train, most=most, seed=seed)
    counts, taken = np.bincount(labels[train]), np.bincount(labels[chosen], minlength=5)
    assert (np.diff(chosen) > 0).all()
    assert np.isin(chosen, train).all()
    assert (taken[: len(counts)] <= counts // 2).all()
    bound = max(LEAST, int(SHARE * len(train)))
    assert len(chosen) == min(most, bound, int((counts // 2).sum()))


def test_a_small_training_part_calibrates_with_sixteen_and_a_large_one_with_its_share():
    sizes = {50: 16, 200: 30, 2000: 256}
    for size, want in sizes.items():
        labels = np.arange(size) % 4
        assert len(calibration_part(labels, np.arange(size), most=256, seed=0)) == want
