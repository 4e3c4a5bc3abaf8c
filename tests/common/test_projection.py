"""Projected features: the same bits in every arithmetic, and what a payload says of them."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.jit.mobile import _load_for_lite_interpreter

import common.backbone.projection as projection_module
from common.backbone import payload
from common.backbone._deprecations import accepted_deprecations
from common.backbone.cache import cached_projection
from common.backbone.directions import find_projection
from common.backbone.engine import quantized_engine
from common.backbone.frozen import FrozenBackbone
from common.backbone.projection import Projection, projected
from common.errors import BackboneError
from common.features import extract
from common.types import Affine
from tests.common.conftest import make_images

pytestmark = pytest.mark.wide


def random_projection(rng: np.random.Generator, d: int, k: int, extreme: bool) -> Projection:
    sign = rng.choice([-127, 127], (d, k)) if extreme else rng.integers(-127, 128, (d, k))
    return Projection(
        sign.astype(np.int8),
        (rng.choice([0, 255], d) if extreme else rng.integers(0, 256, d)).astype(np.uint8),
        (10 ** rng.uniform(-6, 1, k)).astype(np.float32),
        Affine(np.ones(k, np.float32), np.full(k, 128, np.float32)),
    )


def in_integers(projection: Projection, q: np.ndarray) -> np.ndarray:
    """The definition, in int64, with one product in float32."""
    centered = q.astype(np.int64) - projection.center
    sums = centered @ projection.basis.astype(np.int64)
    product = sums.astype(np.float32) * projection.multiplier
    return (128 + np.clip(np.rint(product), -128, 127).astype(np.int64)).astype(np.uint8)


def in_torch(projection: Projection, q: np.ndarray) -> np.ndarray:
    arrays = (projection.center, projection.basis, projection.multiplier)
    return projected(torch.from_numpy(q), *map(torch.from_numpy, arrays)).numpy()


@given(st.integers(0, 2**32), st.integers(1, 1100), st.integers(1, 20), st.booleans())
@settings(max_examples=60, deadline=None)
def test_numpy_and_torch_give_the_bits_of_integers(seed, d, k, extreme):
    rng = np.random.default_rng(seed)
    projection = random_projection(rng, d, min(k, d), extreme)
    q = rng.integers(0, 256, (7, d)).astype(np.uint8)
    q[0], q[1] = 0, 255
    # As large as a sum can be: each feature as far from its center, on its weight's side.
    q[2] = np.where(projection.basis[:, 0] > 0, 255, 0)
    expected = in_integers(projection, q)
    np.testing.assert_array_equal(projection(q), expected)
    np.testing.assert_array_equal(in_torch(projection, q), expected)
    alone = np.concatenate([in_torch(projection, row[None]) for row in q])
    np.testing.assert_array_equal(alone, expected)


def test_the_largest_sums_of_a_chunk_are_exact():
    d = 3 * projection_module._CHUNK
    projection = Projection(
        np.full((d, 2), 127, np.int8) * np.array([1, -1], np.int8),
        np.zeros(d, np.uint8),
        np.full(2, 1e-9, np.float32),
        Affine(np.ones(2, np.float32), np.zeros(2, np.float32)),
    )
    q = np.full((1, d), 255, np.uint8)
    assert projection.sums(q).tolist() == [[255 * 127 * d, -255 * 127 * d]]
    q[0, ::7] = 254  # an odd sum, which a float32 beyond 2**24 could not hold
    assert projection.sums(q).tolist() == [[127 * int(q.sum()), -127 * int(q.sum())]]


def test_ties_go_to_the_even_number_and_the_rest_is_cut_off():
    projection = Projection(
        np.ones((1, 1), np.int8),
        np.zeros(1, np.uint8),
        np.array([0.5], np.float32),
        Affine(np.ones(1, np.float32), np.zeros(1, np.float32)),
    )
    q = np.array([[1], [3], [5], [255]], np.uint8)
    assert projection(q).ravel().tolist() == [128, 130, 130, 255]
    assert in_torch(projection, q).ravel().tolist() == [128, 130, 130, 255]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"basis": np.zeros((4, 5), np.int8)}, "expected int8 (d, k), k <= d"),
        ({"basis": np.zeros((4, 2), np.int16)}, "int16"),
        ({"basis": np.full((4, 2), -128, np.int8)}, "from -128 up"),
        ({"center": np.zeros(3, np.uint8)}, "center is uint8 (3,), expected uint8 (4,)"),
        ({"multiplier": np.zeros(2, np.float32)}, "multiplier is 0.0, expected above 0"),
        ({"multiplier": np.array([1, np.nan], np.float32)}, "multiplier is not finite"),
        ({"multiplier": np.ones(2)}, "multiplier is float64"),
    ],
)
def test_impossible_projections_are_refused_by_name(change, line):
    rng = np.random.default_rng(0)
    good = random_projection(rng, 4, 2, extreme=False)
    with pytest.raises(BackboneError) as caught:
        dataclasses.replace(good, **change)
    assert line in str(caught.value)


# --- finding one


def mixed(n: int, d: int = 40, seed: int = 0) -> np.ndarray:
    """Features that vary mostly along a few directions."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d)) * (30 * 0.8 ** np.arange(d))[:, None]
    return np.clip(np.rint(100 + rng.normal(size=(n, d)) @ mixing), 0, 255).astype(np.uint8)


PLAIN = Affine(np.full(40, 0.02, np.float32), np.full(40, 100, np.float32))


def test_directions_are_the_principal_ones_half_whitened():
    q = mixed(500)
    projection = find_projection(q, PLAIN, 10, 0)
    x = PLAIN(q).astype(np.float64)
    x -= x.mean(axis=0)
    _, values, rows = np.linalg.svd(x, full_matrices=False)
    expected = x @ rows[:10].T / np.sqrt(values[:10] / np.sqrt(len(x)))  # lambda^(1/4)
    expected *= np.sqrt(x.var(axis=0).mean() / expected.var(axis=0).mean())
    found = projection.affine(projection(q))
    found *= np.sign((found * expected).sum(axis=0))
    assert np.abs(found.mean(axis=0)).max() < 1e-3
    error = np.square(found - expected).mean() / np.square(expected).mean()
    assert error < 2e-3  # 8 bits of z, and of the basis


def test_trainers_see_the_scale_that_they_saw():
    q = mixed(500)
    for wanted in (3, 30):
        projection = find_projection(q, PLAIN, wanted, 0)
        seen = projection.affine(projection(q)).var(axis=0).mean()
        assert seen == pytest.approx(PLAIN(q).var(axis=0).mean(), rel=0.05)


def test_few_values_of_other_images_are_cut_off():
    for n in (16, 64, 300):  # fewer images than features, hardly more, and many more
        z = find_projection(mixed(n), PLAIN, "auto", 0)(mixed(2000, seed=1))
        assert ((z == 0) | (z == 255)).mean() < 5e-3


def test_random_directions_fill_up_orthogonal_to_those_found():
    q = mixed(12)
    projection = find_projection(q, PLAIN, 40, 0)
    basis = projection.basis / np.linalg.norm(projection.basis.astype(float), axis=0)
    off = basis.T @ basis - np.eye(40)
    assert np.abs(off).max() < 0.02
    z = projection(q)
    assert (z[:, :11].std(axis=0) > 5).all()
    assert (z[:, 11:].std(axis=0) < 5).all(), "these images do not vary along the others"
    assert (projection(mixed(500, seed=1))[:, 11:].std(axis=0) > 5).mean() > 0.8
    other = find_projection(q, PLAIN, 40, 1)
    np.testing.assert_array_equal(other.basis[:, :11], projection.basis[:, :11])
    assert not np.array_equal(other.basis[:, 11:], projection.basis[:, 11:])


@pytest.mark.parametrize(
    ("n", "d", "wanted", "k"),
    [(300, 40, "auto", 40), (5, 40, "auto", 40), (300, 300, "auto", 255), (5, 40, 3, 3)],
)
def test_how_many_directions_there_are(n, d, wanted, k):
    affine = Affine(np.ones(d, np.float32), np.zeros(d, np.float32))
    q = np.random.default_rng(0).integers(0, 256, (n, d)).astype(np.uint8)
    assert find_projection(q, affine, wanted, 0).num_directions == k


def test_between_192_and_255_directions_nothing_is_filled_up():
    affine = Affine(np.ones(300, np.float32), np.zeros(300, np.float32))
    q = np.random.default_rng(0).integers(0, 256, (200, 300)).astype(np.uint8)
    assert find_projection(q, affine, "auto", 0).num_directions == 199


def test_images_that_repeat_and_features_that_never_vary_are_borne():
    q = mixed(30)
    q[:, 5] = 7
    q[20:] = q[:10]
    projection = find_projection(q, PLAIN, 40, 0)
    assert projection.num_directions == 40
    x = projection.affine(projection(mixed(200, seed=1)))
    assert np.isfinite(x).all()


@pytest.mark.parametrize("n", [1, 8])
def test_images_that_are_all_the_same_give_no_projection(n):
    with pytest.raises(BackboneError, match=f"no direction in which they vary \\(n = {n}\\)"):
        find_projection(np.full((n, 40), 3, np.uint8), PLAIN, "auto", 0)


def test_more_directions_than_features_are_refused():
    with pytest.raises(BackboneError, match="41 directions, but there are only 40 features"):
        find_projection(mixed(50), PLAIN, 41, 0)


# --- a backbone with one


@pytest.fixture(scope="module")
def base(images, prepare) -> FrozenBackbone:
    return prepare(images)


@pytest.fixture(scope="module")
def backbone(base, images, cache) -> FrozenBackbone:
    return cached_projection(base, images, 40, 3, cache)


def test_its_features_are_the_projected_ones_of_the_network(backbone, base, images):
    z = backbone.features(images)
    assert (z.dtype, z.shape) == (np.uint8, (len(images), 40))
    np.testing.assert_array_equal(z, in_integers(backbone.projection, base.features(images)))
    one_by_one = [backbone.features(image[None]) for image in images]
    np.testing.assert_array_equal(np.concatenate(one_by_one), z)
    assert backbone.spec.num_features == len(backbone.affine.gain) == 40
    assert (backbone.spec.zero_points == 128).all()
    assert backbone.base is base
    assert base.base is base


def test_the_lite_interpreter_gives_the_same_bits(backbone, images):
    with quantized_engine("qnnpack"), accepted_deprecations():
        data = backbone.module._save_to_buffer_for_lite_interpreter()
        lite = _load_for_lite_interpreter(io.BytesIO(data))
        z = lite.run_method("forward", torch.from_numpy(images)).numpy()
    np.testing.assert_array_equal(z, backbone.features(images))


def test_a_payload_brings_both_backbones(backbone, base, images):
    data = backbone.to_bytes()
    again = FrozenBackbone.from_bytes(data, backbone.fingerprint)
    assert (again.spec, again.base.spec) == (backbone.spec, base.spec)
    assert (again.fingerprint, again.base.fingerprint) == (backbone.fingerprint, base.fingerprint)
    np.testing.assert_array_equal(again.features(images), backbone.features(images))
    np.testing.assert_array_equal(again.base.affine.gain, base.affine.gain)
    names = set(safetensors.numpy.load(data))
    assert names >= {"module", "gain", "center", "basis", "basis.center", "basis.multiplier"}
    own = len(data) - len(base.to_bytes())
    assert own == pytest.approx(backbone.projection.payload_bytes, abs=500)
    assert own == pytest.approx(672 * 40 + 672 + 3 * 4 * 40, abs=1000)


def test_the_fingerprint_covers_each_array(backbone, base):
    projection = backbone.projection
    others = []
    for name, array in projection.arrays().items():
        changed = array.copy()
        changed.flat[0] += 1
        others.append(Projection.of({**projection.arrays(), name: changed}))
    found = {base.projected(other).fingerprint for other in [*others, projection]}
    assert len(found) == 6
    assert backbone.fingerprint in found
    assert base.fingerprint not in found


def repacked(data: bytes, changes: dict[str, np.ndarray | None]) -> bytes:
    """The payload with other arrays, and a checksum that fits."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = {**safetensors.numpy.load(data), **changes}
    tensors = {name: array for name, array in tensors.items() if array is not None}
    metadata["sha256"] = payload._checksum(tensors, metadata["spec"], metadata["fingerprint"])
    return safetensors.numpy.save(tensors, metadata)


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("basis", lambda a: a[:, ::-1].copy(), "states fingerprint"),
        ("basis", lambda a: a[:, :39].copy(), "multiplier is float32 (40,), expected float32 (39"),
        ("basis", lambda a: None, "projection has no basis"),
        ("basis", lambda a: a.astype(np.float32), "basis is float32"),
        ("basis", lambda a: a[:100].copy(), "center is uint8 (672,)"),
        ("basis.multiplier", lambda a: a * np.float32(np.inf), "multiplier is not finite"),
        ("basis.affine.center", lambda a: a + np.float32(1), "states fingerprint"),
        ("gain", lambda a: a * np.float32(2), "states fingerprint"),
    ],
)
def test_a_payload_with_another_projection_is_refused(backbone, name, change, line):
    data = backbone.to_bytes()
    tensors = safetensors.numpy.load(data)
    with pytest.raises(BackboneError) as caught:
        FrozenBackbone.from_bytes(repacked(data, {name: change(tensors[name])}))
    assert line in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"projection": 0}, {"projection": 41}, {"projection": -1}, {"base": "0" * 64}]
)
def test_a_payload_that_describes_another_projection_is_refused(backbone, change):
    """The network of another backbone must not come in under this one's fingerprint."""
    tensors, spec, stated = payload.unpack(backbone.to_bytes())
    data = payload.pack(tensors, dataclasses.replace(spec, **change), stated)
    with pytest.raises(BackboneError, match="states fingerprint"):
        FrozenBackbone.from_bytes(data, stated)


def test_an_unprojected_payload_that_names_a_base_is_refused(base):
    tensors, spec, _ = payload.unpack(base.to_bytes())
    data = payload.pack(tensors, dataclasses.replace(spec, base=base.fingerprint), "1" * 64)
    with pytest.raises(BackboneError, match="states fingerprint"):
        FrozenBackbone.from_bytes(data, "1" * 64)


def test_a_flipped_bit_of_the_basis_is_damage(backbone):
    data = bytearray(backbone.to_bytes())
    place = data.index(backbone.projection.basis.tobytes()[:64])
    data[place + 20] ^= 1
    with pytest.raises(BackboneError, match="damaged"):
        FrozenBackbone.from_bytes(bytes(data), opened=False)


def test_a_projection_of_other_features_does_not_fit(backbone, base):
    with pytest.raises(BackboneError, match="is of 672 features, but the backbone has 40"):
        backbone.projected(backbone.projection)


def test_a_machine_that_multiplies_inexactly_is_refused(backbone, base, monkeypatch):
    def coarse(*arrays: torch.Tensor) -> torch.Tensor:
        return projected(*arrays) ^ 1

    monkeypatch.setattr(projection_module, "projected", coarse)
    with pytest.raises(BackboneError, match="does not compute sums of whole numbers"):
        _ = base.projected(backbone.projection).module


def test_it_is_found_once_and_shares_the_networks_features(
    backbone, base, images, cache, monkeypatch
):
    def never(*_: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr("common.backbone.cache.find_projection", never)
    again = cached_projection(base, images, 40, 3, cache)
    assert again.fingerprint == backbone.fingerprint
    assert again.base is base
    with pytest.raises(AssertionError):
        cached_projection(base, images, 41, 3, cache)


def test_features_are_made_of_cached_ones_without_reading_an_image(backbone, base, tmp_path):
    images = make_images(9, seed=5)
    extract(base, lambda i: images[i], 9, content_key="k", cache=tmp_path)

    def never(_: object) -> np.ndarray:
        raise AssertionError("read an image")

    z = extract(backbone, never, 9, content_key="k", cache=tmp_path)
    np.testing.assert_array_equal(z, backbone.features(images))
    assert len([*Path(tmp_path / "features").iterdir()]) == 2


def test_too_few_images_are_told_with_each_run(base, images, cache, caplog):
    logging.getLogger("fedhead").propagate = True
    for _ in range(2):
        caplog.clear()
        cached_projection(base, images, 40, 3, cache)
        assert [record.message for record in caplog.records] == [
            "backbone.projection: 24 calibration images give 23 directions, the other 17 are "
            "random: heads are more accurate with more images"
        ]
    caplog.clear()
    cached_projection(base, images, 20, 3, cache)
    assert not caplog.records
