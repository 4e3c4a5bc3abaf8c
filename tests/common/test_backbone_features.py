"""What a backbone takes and gives: uint8 images, uint8 features, whatever the batch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from common.backbone.frozen import FrozenBackbone, quantized_engine
from common.errors import BackboneError
from tests.common.backbones import IMAGENET


def test_images_in_uint8_features_out(backbone, images):
    features = backbone.features(images)
    assert features.dtype == np.uint8
    assert features.shape == (len(images), 672)
    assert features.std() > 1, "features of different blobs must differ"
    assert np.array_equal(features, backbone.features(torch.from_numpy(images.copy())))


def test_features_do_not_depend_on_the_batch(backbone, images):
    whole = backbone.features(images)
    one_by_one = np.concatenate([backbone.features(images[i : i + 1]) for i in range(len(images))])
    shuffled = np.random.default_rng(0).permutation(len(images))
    assert np.array_equal(whole, one_by_one)
    assert np.array_equal(whole[shuffled], backbone.features(images[shuffled]))


def test_forward_changes_no_state(backbone, images):
    before, first = backbone.to_bytes(), backbone.features(images)
    backbone.features(255 - images)
    assert np.array_equal(first, backbone.features(images))
    again = FrozenBackbone.from_bytes(backbone.to_bytes(), backbone.fingerprint)
    assert np.array_equal(first, again.features(images))
    assert len(before) == len(backbone.to_bytes())


def test_input_is_not_written_to(backbone, images):
    copy = images.copy()
    read_only = images.copy()
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(backbone.features(read_only), backbone.features(copy))
    assert np.array_equal(copy, images)


@pytest.mark.parametrize("features", ["gap", "compact", "gap+mid"])
def test_pooling_is_dequantize_mean_quantize(images, prepare, features):
    """The definition in floats beside the integers of the module; one step where they tie."""
    backbone = prepare(images, features=features)
    module, spec = backbone.module, backbone.spec
    with quantized_engine(spec.engine), torch.inference_mode():
        taps = module.body(module.quant(IMAGENET(images)))
    parts, ties = [], []
    for activations, tap in zip(taps, spec.taps, strict=True):
        assert activations.shape[1] == tap.num_features
        pooled = activations.dequantize().double().mean((2, 3)).numpy() / tap.scale
        parts.append(np.clip(np.rint(pooled) + tap.zero_point, 0, 255))
        ties.append(np.abs(np.abs(pooled) % 1 - 0.5) < 1e-4)
    difference = np.abs(np.concatenate(parts, axis=1) - backbone.features(images))
    assert difference.max() <= 1
    assert (difference[~np.concatenate(ties, axis=1)] == 0).all()
    assert np.concatenate(ties, axis=1).mean() < 0.05


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (np.zeros((2, 3, 32, 32), np.float32), "float32, expected uint8"),
        (np.zeros((2, 3, 32, 31), np.uint8), r"\(2, 3, 32, 31\), expected \(n, "),
        (np.zeros((2, 1, 32, 32), np.uint8), r"\(2, 1, 32, 32\), expected"),
        (np.zeros((3, 32, 32), np.uint8), r"\(3, 32, 32\), expected"),
        (np.zeros((0, 3, 32, 32), np.uint8), "no image"),
    ],
)
def test_bad_images_get_one_clear_line(backbone, bad, line):
    with pytest.raises(BackboneError, match=line):
        backbone.features(bad)


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (torch.zeros(2, 3, 32, 32), "expected uint8"),
        (torch.zeros(2, 3, 32, 31, dtype=torch.uint8), "expected \\(n, 3, 32, 32\\)"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "expected \\(n, 3, 32, 32\\)"),
        (torch.zeros(0, 3, 32, 32, dtype=torch.uint8), "no image"),
    ],
)
def test_the_torchscript_itself_refuses_bad_images(backbone, bad, line):
    with pytest.raises(torch.jit.Error, match=line):
        backbone.module(bad)
