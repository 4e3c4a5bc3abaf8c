"""The codec of sums over examples, and what the server still refuses of what it brings."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.codecs import decode_array, find_codec
from common.codecs.zstd import deflated
from common.errors import ReplyError
from common.fields import check_plausible
from common.plausible import Limits
from common.statistics import Statistics, feature_statistics
from common.types import Affine, FeatureSet, Layout

pytestmark = pytest.mark.wide

CODEC = find_codec("gram-int8")
KINDS = ("normal", "sparse", "copies", "extremes", "constant", "few-values")


def some_features(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    """uint8 (n, d) features of one client, some kinds of them hard."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, d))
    if kind == "normal":
        mixed = noise @ rng.standard_normal((d, d)) / np.sqrt(d)
        return np.clip(128 + 25 * mixed, 0, 255).astype(np.uint8)
    if kind == "sparse":
        return np.where(noise > 1.5, 200 * rng.random((n, d)), 0).astype(np.uint8)
    if kind == "copies":  # all features but for one value: nothing is left within
        return np.clip(128 + 60 * noise[:, :1] + (noise > 3), 0, 255).astype(np.uint8)
    if kind == "extremes":
        return np.where(noise > 0, 255, 0).astype(np.uint8)
    if kind == "constant":
        return np.full((n, d), rng.integers(0, 256, d), np.uint8)
    return rng.integers(0, 2, (n, d), np.uint8)


def sums_of(q: np.ndarray, num_classes: int = 3) -> Statistics:
    labels = np.arange(len(q)) ** 2 % num_classes
    affine = Affine(np.ones(q.shape[1], np.float32), np.zeros(q.shape[1], np.float32))
    return feature_statistics(FeatureSet(q, labels, affine, "f"), num_classes)


def there_and_back(array: np.ndarray, seed: int = 3) -> np.ndarray:
    return decode_array(CODEC, CODEC.encode(array, seed), Layout(array.shape, "u"), seed, "gram")


def square(gram: np.ndarray) -> np.ndarray:
    """A triangle as a symmetric float64 matrix."""
    width = int(np.sqrt(2 * len(gram)))
    upper = np.zeros((width, width))
    upper[np.triu_indices(width)] = gram
    return upper + np.triu(upper, 1).T


def checked(sums: Statistics, gram: np.ndarray, rounding: float = CODEC.rounding) -> None:
    limits = Limits(sums.num_examples, 1.0, rounding)
    check_plausible({"gram": gram, "moments": sums.moments}, limits)


def test_a_client_of_the_projected_default_sends_less_than_40_kilobytes() -> None:
    sums = sums_of(some_features("normal", 75, 255, 0), 10)
    gram, moments = (len(CODEC.encode(array, 0)) for array in (sums.gram, sums.moments))
    assert gram + moments < 40_000 < (sums.gram.nbytes + sums.moments.nbytes) / 3


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(1, 500), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_no_honest_client_is_refused(kind: str, n: int, d: int, seed: int) -> None:
    sums = sums_of(some_features(kind, n, d, seed))
    gram, moments = there_and_back(sums.gram, seed), there_and_back(sums.moments, seed)
    np.testing.assert_array_equal(moments, sums.moments)
    exact, noisy = square(sums.gram), square(gram)
    np.testing.assert_array_equal(noisy[-1], exact[-1])
    np.testing.assert_array_equal(np.diag(noisy), np.diag(exact))
    spread = np.maximum(np.diag(exact) - exact[-1] ** 2 / n, 1)
    assert (np.abs(noisy - exact) < np.sqrt(np.outer(spread, spread)) / 126 + 2).all()
    checked(sums, gram)


@pytest.mark.parametrize("n", [3, 75, 500])
def test_no_honest_client_with_many_features_is_refused_and_no_sum_of_clients(n: int) -> None:
    total, counted = np.zeros(256 * 257 // 2, np.uint64), None
    for seed, kind in enumerate(("copies", "normal", "few-values")):
        q = some_features(kind, n, 255, seed)
        sums = sums_of(q)
        gram = there_and_back(sums.gram, seed)
        checked(sums, gram)
        total += gram.astype(np.uint64)
        counted = sums.moments if counted is None else counted + sums.moments
        checked(Statistics(total, counted), total)


@pytest.mark.parametrize("seeds", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_mean_over_seeds_is_the_gram(seeds: int) -> None:
    for kind in ("normal", "sparse"):
        gram = sums_of(some_features(kind, 60, 12, 1)).gram
        total = np.zeros(len(gram))
        for seed in range(seeds):
            total += there_and_back(gram, seed)
        error = square(total / seeds - gram)
        spread = np.sqrt(np.diag(square(gram)))
        # The noise is at most half a step: 5 sigma are 5 / 2 / 126 / sqrt(seeds).
        assert np.abs(error / np.outer(spread, spread)).max() < 5 / 2 / 126 / np.sqrt(seeds)
        assert np.abs(error).max() > 0


def test_the_bytes_of_a_seed_are_the_same_for_ever() -> None:
    q = (np.arange(40 * 9) * 77 % 251).astype(np.uint8).reshape(40, 9)
    gram = there_and_back(sums_of(q).gram, 2**63 + 12345)
    assert hashlib.sha256(gram.astype("<u8").tobytes()).hexdigest()[:16] == "63f91ebab63e8ab3"


def test_ten_million_examples_stay_whole() -> None:
    rows = some_features("normal", 50, 6, 0).astype(np.uint64)
    rows = np.concatenate([rows, np.ones((50, 1), np.uint64)], axis=1)
    for times in (200_000, 10**9):  # with 50 billion examples the sums travel as they are
        gram = (rows.T @ rows * np.uint64(times))[np.triu_indices(7)]
        error = square(there_and_back(gram)) - square(gram)
        assert (np.abs(error).max() > 0) == (times == 200_000)
        assert np.abs(error).max() <= 1e-3 * float(gram.max())


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (6,), (2, 3), (2, 2, 2)])
def test_what_is_no_gram_travels_as_it_is(shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(0)
    for top in (1, 255, 70_000, np.iinfo(dtype).max):
        array = rng.integers(0, top, shape, dtype, endpoint=True)
        got = there_and_back(array)
        np.testing.assert_array_equal(got, array)
        assert got.dtype == (np.uint32 if array.max() < 2**32 else np.uint64)


def bent(sums: Statistics, share: float) -> np.ndarray:
    """A Gram whose features all are less alike than features can be."""
    gram = square(sums.gram)
    mean = gram[-1] / gram[-1, -1]
    spread = np.sqrt(np.diag(gram) - gram[-1] * mean)
    wrong = np.outer(gram[-1], mean) - share * np.outer(spread, spread)
    wrong[-1], wrong[:, -1] = gram[-1], gram[-1]
    wrong[np.diag_indices(len(gram))] = np.diag(gram)
    return np.rint(wrong[np.triu_indices(len(gram))]).astype(np.uint64)


@pytest.mark.parametrize("d", [10, 255])
def test_a_gram_of_no_features_is_still_refused(d: int) -> None:
    sums = sums_of(some_features("normal", 100, d, 0))
    for share in (0.2, 0.02 if d == 255 else 0.3):
        with pytest.raises(ReplyError, match="gram cannot come from features"):
            checked(sums, there_and_back(bent(sums, share)))


def test_without_the_codec_the_check_is_as_tight_as_ever() -> None:
    sums = sums_of(some_features("copies", 75, 40, 0))
    gram = there_and_back(sums.gram)
    assert (gram != sums.gram).any()
    with pytest.raises(ReplyError, match="gram cannot come from features"):
        checked(sums, gram, rounding=0.0)


def test_truncated_longer_and_foreign_bytes_are_refused() -> None:
    gram = sums_of(some_features("normal", 75, 20, 0)).gram
    layout, payload = Layout(gram.shape, "u"), CODEC.encode(gram, 0)
    assert payload[0] == 1
    foreign = (payload[1:], bytes(500), deflated(bytes(len(gram))), b"\1(\xb5/\xfd" + bytes(60))
    for wrong in (b"", payload[:-1], payload[:9], payload + b"\0", *foreign):
        with pytest.raises(ReplyError, match="^gram "):
            decode_array(CODEC, wrong, layout, 0, "gram")


def test_sums_of_no_features_are_refused() -> None:
    layout = Layout((6,), "u")  # D = 3: one code, then 5 exact numbers
    for body, match in (
        (b"\1" + bytes(6), "belong to no features"),  # no examples
        (b"\1\0" + bytes([3, 9, 200, 9, 1]), "belong to no features"),  # 200 > 255 * ...
        (b"\1\x80" + bytes([9, 9, 9, 9, 9]), "belong to no features"),  # the code -128
        (b"\2" + bytes(6), "kind 02, expected 00 or 01"),
        (b"\1" + bytes(12), "bytes for 5 numbers"),
    ):
        with pytest.raises(ReplyError, match=match):
            decode_array(CODEC, deflated(body), layout, 0, "gram")
    with pytest.raises(ReplyError, match="kind 01, expected 00"):
        decode_array(CODEC, deflated(b"\1" + bytes(4)), Layout((4,), "u"), 0, "gram")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_flipped_bits_give_sums_or_a_refusal(data: st.DataObject) -> None:
    gram = sums_of(some_features("normal", 75, 20, 0)).gram
    payload = bytearray(CODEC.encode(gram, 1))
    for at in data.draw(st.lists(st.integers(0, 8 * len(payload) - 1), min_size=1, max_size=9)):
        payload[at // 8] ^= 1 << at % 8
    try:
        got = decode_array(CODEC, bytes(payload), Layout(gram.shape, "u"), 1, "gram")
    except ReplyError:
        return
    assert got.shape == gram.shape
