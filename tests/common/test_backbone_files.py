"""A backbone as bytes and in a folder: it comes back to the bit, or is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import safetensors.numpy
import torch

from common.backbone._deprecations import accepted_deprecations
from common.backbone.content import content_fingerprint
from common.backbone.frozen import FrozenBackbone, quantized_engine
from common.errors import BackboneError
from common.types import Affine
from tests.common.backbones import fresh_process, reload_with


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


def test_affine_is_part_of_the_fingerprint(backbone):
    moved = Affine(backbone.affine.gain, backbone.affine.center + np.float32(1))
    with quantized_engine("qnnpack"):
        same = content_fingerprint(backbone.module, backbone.spec, backbone.affine)
        other = content_fingerprint(backbone.module, backbone.spec, moved)
    assert same == backbone.fingerprint
    assert other != same
