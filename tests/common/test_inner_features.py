"""Features of inner blocks: which blocks, what each feature means, what is left out."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from common.backbone.architectures import ARCHITECTURES
from common.backbone.blocks import blocks_of
from common.backbone.networks import skeleton
from common.backbone.spec import BackboneSpec
from common.config import load_config
from common.errors import BackboneError, ConfigError

pytestmark = pytest.mark.wide

LAYERS = 19  # of MobileNetV2


@pytest.mark.parametrize(
    ("features", "blocks"),
    [
        ("gap", (18,)),
        ("compact", (6, 10, 13, 16, 17)),
        ("gap+mid", (6, 10, 13, 16, 18)),
        ((0, 18), (0, 18)),
    ],
)
def test_a_setting_names_blocks(features, blocks):
    assert blocks_of(features, "mobilenet_v2", LAYERS) == blocks


def test_an_unknown_block_is_told_with_the_number_of_layers():
    line = "mobilenet_v2 has no block 25: its 19 layers are numbered from 0 to 18"
    with pytest.raises(BackboneError, match=line):
        blocks_of((6, 25), "mobilenet_v2", LAYERS)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_inner_blocks_end_a_width_from_an_eighth_of_the_resolution_on(arch):
    x, shapes = torch.zeros(1, 3, 96, 96, device="meta"), []
    for layer in skeleton(arch).eval():
        x = layer(x)
        shapes.append(x.shape)
    ends = [i for i, (a, b) in enumerate(pairwise(shapes)) if a[1] != b[1]]
    deep = tuple(i for i in ends if shapes[i][2] <= 96 // 8)
    assert ARCHITECTURES[arch].inner == deep


def test_every_kind_of_features_has_its_own_fingerprint(images, prepare):
    made = [prepare(images, features=kind) for kind in ("gap", "compact", "gap+mid", (6, 18))]
    assert len({backbone.fingerprint for backbone in made}) == 4
    assert [backbone.spec.num_features for backbone in made] == [1280, 672, 1632, 1312]


def test_layers_behind_the_last_block_are_left_out(images, prepare):
    plain, compact = prepare(images, features="gap"), prepare(images, features="compact")
    dropped = 320 * 1280  # weights of the last convolution, a byte each
    assert len(compact.to_bytes()) < len(plain.to_bytes()) - dropped
    assert compact.spec.float_model_bytes < plain.spec.float_model_bytes - 4 * dropped


def test_the_last_layers_features_do_not_depend_on_the_others(images, prepare):
    alone = prepare(images, distill_steps=0, features="gap")
    both = prepare(images, distill_steps=0, features="gap+mid")
    assert np.array_equal(both.features(images)[:, -1280:], alone.features(images))


@pytest.mark.parametrize("scaling", ["none", "center", "standardize"])
def test_every_block_is_scaled_by_itself(images, prepare, scaling):
    features = prepare(images, distill_steps=0, features="compact", feature_scaling=scaling)
    ends = np.cumsum([tap.num_features for tap in features.spec.taps])[:-1]
    alone = [
        prepare(images, distill_steps=0, features=(tap.block, 17), feature_scaling=scaling)
        for tap in features.spec.taps[:-1]
    ]
    for gain, center, other in zip(
        np.split(features.affine.gain, ends),
        np.split(features.affine.center, ends),
        alone,
        strict=False,
    ):
        assert np.array_equal(gain, other.affine.gain[: len(gain)])
        assert np.array_equal(center, other.affine.center[: len(center)])
        if scaling == "center":
            assert len(np.unique(gain)) == 1


def test_zero_points_are_those_of_each_features_block(images, prepare):
    spec = prepare(images, features="compact").spec
    assert spec.zero_points.shape == (672,)
    assert spec.zero_points[[0, 32, -1]].tolist() == [spec.taps[i].zero_point for i in (0, 1, -1)]


def test_a_description_comes_back_from_its_json(images, prepare):
    spec = prepare(images, features="compact").spec
    assert BackboneSpec.from_json(spec.to_json()) == spec
    wrong = dataclasses.replace(spec, taps=(dataclasses.replace(spec.taps[0], zero_point=0.5),))
    with pytest.raises(BackboneError, match="zero_point is 0.5, expected int"):
        BackboneSpec.from_json(wrong.to_json())


def test_a_list_of_blocks_is_kept_in_ascending_order(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text("[backbone]\nfeatures = [16, 6]\n")
    assert load_config(file, {}).backbone.features == (6, 16)


@pytest.mark.parametrize("value", ['"last"', "[]", "[6, 6]", "[-1]", "[true]", "6"])
def test_other_values_are_refused(tmp_path, value):
    file = tmp_path / "own.toml"
    file.write_text(f"[backbone]\nfeatures = {value}\n")
    with pytest.raises(ConfigError, match="backbone.features"):
        load_config(file, {})
