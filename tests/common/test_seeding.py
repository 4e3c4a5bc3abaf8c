import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.seeding import Purpose, batch_order, draws, permutation, uniform

MASK = (1 << 64) - 1


def splitmix(z: int) -> int:
    # Java's SplittableRandom, as published: the reference in plain integers.
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def plain_draw(keys: list[int], index: int) -> int:
    state = 0
    for key in keys:
        state = splitmix(state ^ (key & MASK))
    return splitmix((state + index * 0x9E3779B97F4A7C15) & MASK) >> 1


def test_splitmix64_matches_the_published_sequence() -> None:
    # First outputs of splitmix64 seeded with 0 (Vigna's splitmix64.c).
    assert [splitmix(i * 0x9E3779B97F4A7C15 & MASK) for i in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4), st.integers(0, 2**40))
def test_numpy_and_plain_integers_agree(keys: list[int], index: int) -> None:
    got = draws(keys[0], Purpose.COHORT, *keys[1:], index=np.array([index]))
    assert int(got[0]) == plain_draw([keys[0], int(Purpose.COHORT), *keys[1:]], index)


def test_batch_order_is_a_permutation_that_depends_on_every_key() -> None:
    keys = {"seed": 1, "round_number": 2, "client": 3, "epoch": 4}
    first = batch_order(50, **keys)
    assert sorted(first.tolist()) == list(range(50))
    for name in keys:
        other = batch_order(50, **{**keys, name: 9})
        assert other.tolist() != first.tolist(), name


def test_purposes_do_not_share_a_stream() -> None:
    orders = {tuple(permutation(20, 0, purpose)) for purpose in Purpose}
    assert len(orders) == len(Purpose)


def test_uniform_fills_the_unit_interval() -> None:
    values = uniform(3, Purpose.COHORT, index=np.arange(20_000))
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert counts.sum() == 20_000
    assert np.abs(counts - 2000).max() < 200  # 4.7 sigma
