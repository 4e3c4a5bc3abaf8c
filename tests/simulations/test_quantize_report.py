"""The quantize report: pruning, each runtime's file, and what is made of the figures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from common.backbone.architectures import ARCHITECTURES
from common.backbone.frozen import UInt8Array
from common.backbone.int8 import Normalization
from common.backbone.module import Tapped, num_layers
from common.backbone.networks import quantizable_network, random_network
from common.backbone.quantize import fold
from common.backbone.quantize import pooled as pooled_blocks
from common.backbone.spec import IMAGENET_MEAN, IMAGENET_STD
from server.export.other_runtime import is_installed
from simulations.bench.speed import Job, run_file
from simulations.quantization import Report, Row, as_json, notes, tables, write_report
from simulations.quantization.claims import DynamicSizes, dynamic_sizes
from simulations.quantization.files import (
    FloatBackbone,
    float_onnx_file,
    lite_file,
    torchscript_file,
)
from simulations.quantization.prune import bottlenecks, pruned
from simulations.quantization.weights import at_hand
from simulations.quantization.yardstick import Yardstick

pytestmark = pytest.mark.wide

Fedhead = Callable[..., tuple[int, str, str]]

SIZE = 32
IMAGENET = Normalization(IMAGENET_MEAN, IMAGENET_STD)


def make_images(n: int) -> UInt8Array:
    """Coloured blobs, uint8 (n, 3, 32, 32)."""
    coarse = np.random.default_rng(0).integers(0, 256, (n, 3, 4, 4))
    return coarse.repeat(8, 2).repeat(8, 3).astype(np.uint8)


def folded_network(arch: str) -> nn.Module:
    """Random weights with the batch statistics of the images, as a trained network has them."""
    features = random_network(arch, 0)
    for module in features.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        features.train()(next(IMAGENET.batches(make_images(32))))
    return fold(quantizable_network(arch, features.eval()))


@pytest.fixture(scope="module")
def folded() -> nn.Module:
    return folded_network("mobilenet_v2")


# --- pruning


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_pruning_takes_whole_channels_of_every_expansion(arch: str) -> None:
    network, images = folded_network(arch), make_images(32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    small = pruned(network, 0.5, IMAGENET.batches(images))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    for old, new in zip(bottlenecks(network), bottlenecks(small), strict=True):
        assert new.channels == max(8, round(old.channels / 16) * 8)
        assert new.depthwise.groups == new.project.in_channels == new.channels
        assert new.expand.in_channels == old.expand.in_channels
        assert new.project.out_channels == old.project.out_channels
        if new.squeeze is not None and new.excite is not None:
            assert new.squeeze.in_channels == new.excite.out_channels == new.channels
    expected = {
        "mobilenet_v2": 16,
        "mobilenet_v3_large": 14,
        "mobilenet_v3_small": 10,
        "efficientnet_lite0": 15,
    }
    assert len(bottlenecks(small)) == expected[arch]
    batch = next(IMAGENET.batches(images))
    with torch.inference_mode():
        assert small(batch).shape == network(batch).shape


def pooled_last(network: nn.Module, batch: Tensor) -> Tensor:
    (pooled,) = pooled_blocks(last_layer(network), batch)
    return pooled


def last_layer(network: nn.Module) -> Tapped:
    return Tapped(network, [num_layers(network) - 1])


def test_pruning_nothing_changes_nothing_that_counts(folded: nn.Module) -> None:
    images = make_images(32)
    same = pruned(folded, 0.0, IMAGENET.batches(images))
    with torch.inference_mode():
        for batch in IMAGENET.batches(images):
            want = pooled_last(folded, batch)
            # All but the ridge that keeps dead channels' fit finite.
            assert (pooled_last(same, batch) - want).norm() < 0.05 * want.norm()


def test_channels_that_repeat_others_are_pruned_without_loss() -> None:
    torch.manual_seed(0)
    expand, depthwise = nn.Conv2d(4, 32, 1), nn.Conv2d(32, 32, 3, groups=32)
    project = nn.Conv2d(32, 6, 1)
    with torch.no_grad():
        for layer in (expand, depthwise):  # the second half is the first one again
            layer.weight[16:], layer.bias[16:] = layer.weight[:16], layer.bias[:16]
        project.weight[:, 16:] *= 1e-4
    block = nn.Sequential(expand, nn.ReLU(), depthwise, nn.ReLU(), project)
    images = torch.randn(64, 4, 12, 12)
    small = pruned(nn.Sequential(block), 0.5, [images])
    assert bottlenecks(small)[0].channels == 16
    with torch.inference_mode():
        want, got = block(images), small(images)
    assert (got - want).norm() < 1e-3 * want.norm()


def test_the_fitted_projection_beats_leaving_channels_out(folded: nn.Module) -> None:
    images = make_images(32)
    fitted = pruned(folded, 0.5, IMAGENET.batches(images))
    cut = pruned(folded, 0.5, IMAGENET.batches(images))
    for whole, block in zip(bottlenecks(folded), bottlenecks(cut), strict=True):
        # The same channels, found by their weights, with the projection they had.
        rows = whole.expand.weight.flatten(1), block.expand.weight.flatten(1)
        kept = torch.cdist(rows[1], rows[0]).argmin(1)
        block.project.weight.copy_(whole.project.weight[:, kept])
        block.project.bias.copy_(whole.project.bias)
    with torch.inference_mode():
        batch = next(IMAGENET.batches(images))
        want = pooled_last(folded, batch)
        errors = [float((pooled_last(network, batch) - want).norm()) for network in (fitted, cut)]
    assert errors[0] < 0.8 * errors[1]


# --- files


@pytest.mark.slow
def test_every_float_file_gives_the_networks_features(folded: nn.Module, tmp_path: Path) -> None:
    images = make_images(5)
    module = FloatBackbone(last_layer(folded), IMAGENET).eval()
    with torch.inference_mode():
        want = module(torch.from_numpy(images)).numpy()
    files = {
        "torchscript": torchscript_file(module),
        "lite": lite_file(module),
    }
    if is_installed("onnx"):
        files["onnx"] = float_onnx_file(module, images.shape[-1])
    for runtime, data in files.items():
        path = tmp_path / runtime
        path.write_bytes(data)
        found = run_file(Job(path, runtime, seconds=0.01), images, features=True)  # type: ignore[arg-type]
        assert found.features is not None
        np.testing.assert_allclose(found.features, want, rtol=1e-3, atol=1e-3 * want.max())
        assert found.memory_bytes > 0
        assert [timing.threads for timing in found.timings] == [1]


# --- figures


def test_yardstick_compares_features_with_those_of_fp32_image_by_image() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    x = (5 + rng.normal(size=(300, 8)) + 1.2 * np.eye(3, 8)[labels]).astype(np.float32)
    yardstick = Yardstick(x, labels, 0)
    same = yardstick.accuracy(x)
    assert same is not None
    assert (same.difference, same.difference_error) == (0, 0)
    assert yardstick.cosine(x) == pytest.approx(1)
    noisy = (x + rng.normal(size=x.shape)).astype(np.float32)
    worse = yardstick.accuracy(noisy)
    assert worse is not None
    assert worse.accuracy == pytest.approx(same.accuracy + worse.difference, abs=1e-6)
    assert worse.difference < -worse.difference_error < 0
    assert yardstick.cosine(noisy) < 0.99
    assert Yardstick(x, None, 0).accuracy(x) is None


def row(mode: str, runtime: str = "torchscript", engine: str = "", **figures: object) -> Row:
    values: dict[str, object] = {
        "arch": "mobilenet_v2",
        "mode": mode,
        "runtime": runtime,
        "engine": engine,
        "file_bytes": 9_000_000,
        "latency_ms": {1: 10.0, 2: 6.0},
        "memory_bytes": 40_000_000,
        "cosine": 1.0,
        "accuracy": 0.95,
        "difference": 0.0,
        "difference_error": 0.0,
    }
    return Row(**{**values, **figures})  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    int8: dict[str, object] = {
        "file_bytes": 2_500_000, "latency_ms": {1: 4.0, 2: 2.5}, "cosine": 0.97,
        "accuracy": 0.9466, "difference": -0.0034, "difference_error": 0.0021,
    }  # fmt: skip
    rows = [
        row("fp32"),
        row("fp16", file_bytes=4_500_000, latency_ms={1: 100.0, 2: 90.0}),
        row("QAT int8", engine="qnnpack", **{**int8, "latency_ms": {1: 20.0, 2: 12.0}}),
        row("QAT int8", engine="x86", **int8),
    ]
    unknown = {"accuracy": None, "difference": None, "difference_error": None}
    rows += [Row(**{**vars(r), "arch": "mobilenet_v3_large", **unknown}) for r in rows]
    return Report(
        source="mnist5k", examples=5000, input_size=96, machine="x86_64",
        versions={"torch": "2.14.1"},
        weights={"mobilenet_v2": "imagenet", "mobilenet_v3_large": "random"},
        missing=("executorch",), rows=tuple(rows),
        dynamic=(
            DynamicSizes("mobilenet_v2", 14_400_000, 10_500_000, 1),
            DynamicSizes("mobilenet_v3_large", 22_300_000, 15_000_000, 2),
            DynamicSizes("resnet18", 46_900_000, 45_300_000, 1),
        ),
    )  # fmt: skip


def test_notes_say_what_the_figures_say(report: Report) -> None:
    text = "\n".join(notes(report))
    assert "fp16 is 2.0 times smaller and 10.0 times slower" in text
    assert (
        "QAT int8 on qnnpack, is 3.6 times smaller than fp32, its heads -0.34 points (± 0.21"
        in text
    )
    assert (
        "Fastest here unpruned on one thread: MobileNetV2, QAT int8, torchscript (x86), 4.0 ms"
        in text
    )
    assert "from 44 to 11 MB. That does not hold" in text
    assert "46.9 MB to 45.3 MB" in text
    assert "MobileNetV3-Large: accuracy is not measured" in text
    assert "pip install 'fedhead[executorch]'" in text
    assert "says nothing about a phone" in text


def test_report_is_written_as_markdown_json_and_an_image(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = write_report(report, tmp_path / "out").read_text()
    lines = page.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    figures = "2.50 | 4.0 | 2.5 | 40 | 0.9700 | 94.66% | -0.34 ± 0.21"
    assert f"| QAT int8 | torchscript | x86 | {figures} |" in lines
    assert sum("not measured |" in line for line in lines) == 4
    values = json.loads((tmp_path / "out" / "quantize.json").read_text())
    assert values == json.loads(json.dumps(as_json(report)))
    assert values["rows"][0]["latency_ms"] == {"1": 10.0, "2": 6.0}
    assert (tmp_path / "out" / "quantize.png").read_bytes().startswith(b"\x89PNG")


def test_terminal_tables_fit_80_columns(report: Report) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    for table in tables(report):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "94.66%" in text
    assert "points to fp32: ± 0.21 at most (standard error)" in text
    assert "…" not in text


def test_dynamic_quantization_replaces_linear_layers_only() -> None:
    (sizes,) = dynamic_sizes(["mobilenet_v2"])
    assert sizes.quantized_layers == 1
    assert 12.5e6 < sizes.before_bytes < 14e6  # compressed
    saved = sizes.before_bytes - sizes.after_bytes
    assert saved == pytest.approx(3 * 1280 * 1000, rel=0.15)


def test_weights_are_taken_where_they_are_and_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = at_hand("mobilenet_v3_large", "")
    assert (found.name, found.pretrained) == ("random", False)
    file = tmp_path / "own.pt"
    torch.save(random_network("mobilenet_v3_large", 1).state_dict(), file)
    own = at_hand("mobilenet_v3_large", f"file:{file}")
    assert own.pretrained
    assert own.label.startswith("file:own.pt@")


def test_unknown_backbones_and_weights_are_named(fedhead: Fedhead) -> None:
    code, _, err = fedhead("quantize-report", "--arch", "resnet18")
    assert code == 1
    assert "unknown backbone 'resnet18'" in err
    code, _, err = fedhead("quantize-report", "--weights", "mobilenet_v2")
    assert code == 1
    assert "expected ARCH=WEIGHTS" in err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_quantize_report_from_end_to_end(fedhead: Fedhead, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    code, out, err = fedhead(
        "quantize-report", "--data", "digits", "--examples", 400, "--arch", "mobilenet_v2",
        "--arch", "mobilenet_v3_small", "--set", "backbone.input-size=64", "--json",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    rows = {(r["arch"], r["mode"], r["runtime"], r["engine"]): r for r in report["rows"]}
    assert len(rows) == len(report["rows"])
    v2 = {key[1:]: r for key, r in rows.items() if key[0] == "mobilenet_v2"}
    fp32, qat = v2["fp32", "torchscript", ""], v2["QAT int8", "torchscript", "qnnpack"]
    assert fp32["difference"] == 0
    assert abs(qat["difference"]) < 0.03
    assert qat["cosine"] > 0.9
    assert qat["file_bytes"] < 0.3 * fp32["file_bytes"]
    smaller = [f"{rate}% pruned, PTQ int8" for rate in (50, 75)]
    sizes = [v2[mode, "torchscript", "qnnpack"]["file_bytes"] for mode in smaller]
    assert sizes[1] < sizes[0] < qat["file_bytes"]
    for (arch, mode, runtime, engine), r in rows.items():
        assert set(r["latency_ms"]) == {"1", "2"}
        assert (r["accuracy"] is None) == (arch == "mobilenet_v3_small")
        if runtime == "lite":
            twin = rows[arch, mode, "torchscript", engine]
            assert (r["cosine"], r["accuracy"]) == (twin["cosine"], twin["accuracy"])
    assert (tmp_path / "quantize-report" / "quantize.png").exists()
