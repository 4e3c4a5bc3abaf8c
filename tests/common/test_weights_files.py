"""One network saved in the ways that people save it: read alike, or refused in one line."""

from __future__ import annotations

import argparse
import io
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from common.backbone._deprecations import accepted_deprecations
from common.backbone.architectures import ARCHITECTURES
from common.backbone.networks import random_network, skeleton
from common.backbone.weights import load_weights
from common.backbone.weights_file import read_tensors
from common.errors import BackboneError

SMALL = "mobilenet_v3_small"
LITE = "efficientnet_lite0"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def features() -> State:
    """Random, under torchvision's names within ``features``; not to be changed."""
    return dict(random_network(SMALL, seed=0).state_dict())


@pytest.fixture(scope="module")
def network(features: State) -> State:
    """The same as torchvision names the whole network, its classifier included."""
    heads = {"classifier.0.weight": torch.zeros(1024, 576), "classifier.3.bias": torch.zeros(1000)}
    return {**{f"features.{key}": value for key, value in features.items()}, **heads}


def below(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def headless(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("classifier.")}


Save = Callable[[State], object]
SAVED: dict[str, Save] = {
    "plain": lambda s: s,
    "ordered": OrderedDict,
    "features alone": lambda s: {k.removeprefix("features."): v for k, v in headless(s).items()},
    "state_dict": lambda s: {"epoch": 3, "arch": "x", "state_dict": s, "optimizer": {"state": {}}},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.zeros(())}}}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.1},
    "any name": lambda s: {"net_weights": s},
    "of a script with arguments": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
    "with its moving average": lambda s: {"state_dict": s, "state_dict_ema": below("x.", s)},
    "the moving average alone": lambda s: {"model_ema": s},
    "DataParallel": lambda s: below("module.", s),
    "DataParallel in a checkpoint": lambda s: {"state_dict": below("module.", s)},
    "AveragedModel": lambda s: {**below("module.", s), "n_averaged": torch.tensor(3)},
    "backbone.": lambda s: below("backbone.", headless(s)),
    "model.": lambda s: below("model.", s),
    "module.encoder.net.": lambda s: below("module.encoder.net.", s),
    "foreign head": lambda s: {**headless(s), "fc.weight": torch.zeros(7, 576)},
    "foreign convolution": lambda s: {**s, "decoder.conv.weight": torch.zeros(2, 576, 1, 1)},
    "a sequence": lambda s: {
        **{k.replace("features.", "0."): v for k, v in headless(s).items()},
        "3.weight": torch.zeros(7, 576),
    },
    "in order of names": lambda s: {key: s[key] for key in sorted(s)},
}


@pytest.mark.parametrize("how", SAVED)
def test_however_it_was_saved_the_same_weights_are_read(tmp_path, features, network, how):
    file = tmp_path / "weights.pth.tar"
    torch.save(SAVED[how](network), file)
    loaded = load_weights(SMALL, f"file:{file}").state
    assert list(loaded) == list(features)
    for key, value in features.items():
        assert key.endswith("num_batches_tracked") or torch.equal(loaded[key], value), key


@pytest.mark.parametrize("name", ["old.pth", "w.bin", "half.pth"])
def test_old_and_other_formats_are_known_by_their_content(tmp_path, features, network, name):
    file = tmp_path / name
    if name == "w.bin":
        safetensors.torch.save_file(network, file)
    elif name == "old.pth":
        torch.save(network, file, _use_new_zipfile_serialization=False)
    else:
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in network.items()}, file)
    loaded = load_weights(SMALL, f"file:{file}").state
    want = features["12.0.weight"]
    assert torch.equal(loaded["12.0.weight"], want.half().float() if name == "half.pth" else want)
    assert loaded["12.0.weight"].dtype == torch.float32


def test_what_is_left_out_or_found_below_a_prefix_is_said_once(tmp_path, network, caplog):
    caplog.set_level("INFO", "fedhead")
    torch.save(network, tmp_path / "plain.pth")
    load_weights(SMALL, f"file:{tmp_path / 'plain.pth'}")
    assert not caplog.messages
    state = {**below("module.", headless(network)), "module.fc.weight": torch.zeros(7, 576)}
    torch.save({"model": state, "model_ema": network}, tmp_path / "other.pth")
    load_weights(SMALL, f"file:{tmp_path / 'other.pth'}")
    first, second = caplog.messages
    assert first == "other.pth: model is read, not its moving average model_ema"
    assert "the features lie below 'module.features.'" in second
    assert second.endswith("1 tensors are not features: module.fc.weight")


# --- names


def timm_layers() -> dict[str, list[tuple[str, list[int], bool]]]:
    networks: dict[str, list[tuple[str, list[int], bool]]] = {}
    for line in (Path(__file__).parent / "timm_layers.txt").read_text().splitlines():
        if line.startswith("["):
            layers = networks.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            name, *sizes = line.removesuffix(" +bias").split()
            layers.append((name, [int(size) for size in sizes], line.endswith("+bias")))
    return networks


def timm_state(name: str) -> State:
    """Random numbers under the names, and in the order, of timm's own state dict."""
    draw = torch.Generator().manual_seed(0)
    state: State = {}
    for layer, shape, has_bias in timm_layers()[name]:
        state[f"{layer}.weight"] = torch.randn(shape, generator=draw)
        if len(shape) == 1:
            for tensor in ("bias", "running_mean", "running_var"):
                state[f"{layer}.{tensor}"] = torch.rand(shape, generator=draw)
            state[f"{layer}.num_batches_tracked"] = torch.tensor(5)
        elif has_bias:
            state[f"{layer}.bias"] = torch.randn(shape[0], generator=draw)
    return state


TIMM = {
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    SMALL: "mobilenetv3_small_100",
    LITE: "tf_efficientnet_lite0",
}


@pytest.mark.parametrize("arch", TIMM)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth.tar"])
def test_timms_names_of_the_same_network_are_read(tmp_path, arch, suffix):
    state = timm_state(TIMM[arch])
    file = tmp_path / f"timm{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, file)  # which puts names into an order of its own
    else:
        torch.save({"state_dict": below("module.", state)}, file)
    loaded = load_weights(arch, f"file:{file}").state
    norms = {k for k, m in skeleton(arch).named_modules() if isinstance(m, nn.BatchNorm2d)}
    # timm's modules stand in torchvision's order, so the tensors do; its heads come last.
    for (key, value), want in zip(loaded.items(), state.values(), strict=False):
        layer, _, tensor = key.rpartition(".")
        if tensor == "num_batches_tracked" or (layer in norms and tensor == "weight"):
            continue
        turned = arch == LITE and value.ndim == 4
        assert torch.equal(value.flip(2, 3) if turned else value, want), key
    for layer, timm_layer in {STEM_NORM.get(arch, "0.1"): "bn1", **LAST_NORM[arch]}.items():
        epsilon = skeleton(arch).get_submodule(layer).eps
        theirs = 1e-3 if arch == LITE else 1e-5  # what timm's batch norms add
        got = loaded[f"{layer}.weight"] / (loaded[f"{layer}.running_var"] + epsilon).sqrt()
        want = state[f"{timm_layer}.weight"] / (state[f"{timm_layer}.running_var"] + theirs).sqrt()
        assert torch.allclose(got, want, rtol=1e-5)


LAST_NORM = {
    "mobilenet_v2": {"18.1": "bn2"},
    "mobilenet_v3_large": {"16.1": "blocks.6.0.bn1"},
    SMALL: {"12.1": "blocks.5.0.bn1"},
    LITE: {"18.1": "bn2"},
}
STEM_NORM = {LITE: "1.1"}


@pytest.mark.parametrize(
    ("arch", "folder"),
    [(SMALL, "tf_mobilenetv3_small_100.in1k"), (LITE, "efficientnet_lite0.ra_in1k")],
)
def test_timms_variants_that_pad_otherwise_are_refused(tmp_path, arch, folder):
    (tmp_path / folder).mkdir()
    file = tmp_path / folder / "model.safetensors"
    safetensors.torch.save_file(timm_state(TIMM[arch]), file)
    with pytest.raises(BackboneError, match=f"padding differs from {TIMM[arch]}'s"):
        load_weights(arch, f"file:{file}")


# --- refusals: one line, with names that are in the file


def refusal(arch: str, file: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        load_weights(arch, f"file:{file}")
    assert file.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def test_missing_unexpected_and_wrong_tensors_have_the_files_own_names(tmp_path, network):
    state = below("module.", network)
    state["module.features.0.0.kernel"] = state.pop("module.features.0.0.weight")
    state["module.features.0.1.weight"] = torch.zeros(3)
    state["module.features.12.1.running_var"] = -torch.ones(576)
    state["module.features.12.1.bias"] = torch.zeros(576, dtype=torch.int8)
    torch.save(state, tmp_path / "w.pth")
    line = refusal(SMALL, tmp_path / "w.pth")
    for part in (
        "1 keys are missing: module.features.0.0.weight",
        "1 keys are unexpected: module.features.0.0.kernel",
        "module.features.0.1.weight is (3,), expected (16,)",
        "1 variances are negative: module.features.12.1.running_var",
        "1 tensors are not floats: module.features.12.1.bias",
    ):
        assert part in line


def test_a_missing_tensor_is_named_as_timm_would(tmp_path):
    state = timm_state(TIMM[SMALL])
    del state["blocks.1.0.conv_pwl.weight"]
    torch.save(state, tmp_path / "w.pth")
    line = refusal(SMALL, tmp_path / "w.pth")
    assert line.endswith("1 keys are missing: blocks.1.0.conv_pwl.weight")


def test_weights_of_another_backbone_say_of_which(tmp_path, network):
    torch.save(network, tmp_path / "w.pth")
    line = refusal("mobilenet_v2", tmp_path / "w.pth")
    assert line.endswith(f"they are {SMALL}'s (backbone.arch)")


def test_a_deeper_network_is_not_cut_off(tmp_path, features, network):
    extra = torch.zeros(8, 576, 1, 1)
    for state in ({**network, "features.13.0.weight": extra}, {**features, "13.weight": extra}):
        torch.save(state, tmp_path / "w.pth")
        assert "1 keys are unexpected: " in refusal(SMALL, tmp_path / "w.pth")


@pytest.mark.parametrize("nested", [True, False])
def test_of_two_networks_in_a_file_none_is_taken_unasked(tmp_path, network, nested):
    twice = {"student": network, "teacher": network}
    flat = {**below("student.", network), **below("teacher.", network)}
    torch.save(twice if nested else flat, tmp_path / "w.pth")
    line = refusal(SMALL, tmp_path / "w.pth")
    assert "student" in line
    assert "teacher" in line


def test_an_int8_network_is_told_that_floats_are_wanted(tmp_path, network):
    state = dict(network)
    weight = state["features.0.0.weight"]
    with accepted_deprecations():
        state["features.0.0.weight"] = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    torch.save(state, tmp_path / "tensor.pth")
    prepared = {**network, "features.0.0.weight_fake_quant.scale": torch.ones(1)}
    torch.save(prepared, tmp_path / "observed.pth")
    for name in ("tensor.pth", "observed.pth"):
        line = refusal(SMALL, tmp_path / name)
        assert "is quantized or prepared for quantization (features.0.0.weight" in line


@pytest.mark.parametrize("kind", ["meta", "sparse", "complex", "float8", "int64"])
def test_tensors_of_other_kinds_are_refused_or_read_but_never_a_traceback(tmp_path, network, kind):
    name = "features.12.1.running_var"
    value = network[name]
    odd = {
        "meta": lambda: value.to("meta"),
        "sparse": value.to_sparse,
        "complex": lambda: value.to(torch.complex64),
        "float8": lambda: value.to(torch.float8_e4m3fn),
        "int64": value.long,
    }[kind]()
    torch.save({**network, name: odd}, tmp_path / "w.pth")
    if kind == "float8":
        loaded = load_weights(SMALL, f"file:{tmp_path / 'w.pth'}").state
        assert torch.equal(loaded["12.1.running_var"], odd.float())
    else:
        assert name in refusal(SMALL, tmp_path / "w.pth")


def archive(names: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in names.items():
            file.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite"),
        (b"\x08\x08\x12\x07pytorch", "ONNX"),
        (b"\x08\x0a:\x10graph", "ONNX"),
        (archive({"net/code/__torch__.py": b"", "net/data.pkl": b""}), "TorchScript"),
        (archive({"w/data.pkl": b"x" * 99}).replace(b"x" * 99, b"x" * 98 + b"y"), "checksum"),
    ],
)
def test_other_kinds_of_files_are_called_by_their_name(tmp_path, content, line):
    (tmp_path / "w.pth").write_bytes(content)
    assert line in refusal(SMALL, tmp_path / "w.pth")


def test_a_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(BackboneError, match="is a folder: name a file in it"):
        load_weights(SMALL, f"file:{tmp_path}")


def test_a_whole_pickled_network_is_told_how_to_save_its_weights(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 1)), tmp_path / "net.pth")
    line = refusal(SMALL, tmp_path / "net.pth")
    assert "needs code, torch.nn.modules.container.Sequential, which is never run" in line
    assert "torch.save(network.state_dict(), 'weights.pth')" in line


def test_a_checkpoint_without_weights_says_what_it_has(tmp_path):
    torch.save({"epoch": 3, "optimizer": {"state": {}}}, tmp_path / "w.pth")
    assert refusal(SMALL, tmp_path / "w.pth").endswith("but epoch, optimizer")


def test_every_architecture_has_timms_name_in_the_tests():
    assert set(TIMM) == set(ARCHITECTURES)


def test_a_safetensors_header_of_any_length_is_no_web_page(tmp_path: Path) -> None:
    for more in range(256):  # one of them makes a length that begins with " <"
        note = {"note": "x" * (15_000 + 8 * more)}
        content = safetensors.torch.save({"a": torch.zeros(1)}, note)
        if re.match(rb"\s*<", content):
            break
    else:
        pytest.fail("no such length was met")
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    assert [*read_tensors(path)] == ["a"]


def test_code_in_a_pickle_is_called_code_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(BackboneError, match="system, which is never run"):
        read_tensors(path)
    assert not (tmp_path / "ran").exists()


def test_what_swells_on_its_way_into_memory_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, tmp_path / "plain.pth")
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(path, "w") as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(BackboneError, match="is compressed, unlike files of torch.save"):
        read_tensors(path)
    torch.save({"a": torch.zeros(1).as_strided((10**6, 10**6, 3, 3), (0,) * 4)}, path)
    with pytest.raises(BackboneError, match="claims 36,000,000,000,000 bytes and has fewer"):
        read_tensors(path)
