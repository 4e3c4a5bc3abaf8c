"""A profile tells each layer's time apart and measures the file in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import ExportError
from simulations.bench.speed import Job, layers, run_file, time_by_kind

Fedhead = Callable[..., tuple[int, str, str]]


def event(name: str, start: float, duration: float, path: str, shape: list[int]) -> dict[str, Any]:
    hierarchy = "TOP(Net)::forward." + "".join(
        f"{part}(Some.Type)::forward." for part in path.split("/") if part
    )
    args = {"Module Hierarchy": hierarchy, "Input Dims": [[], shape]}
    return {"cat": "cpu_op", "name": name, "ts": start, "dur": duration, "args": args}


def one_call(start: float, convolution: float) -> list[dict[str, Any]]:
    """A call of 100 us: pixels, a convolution with an operator inside it, a head of two."""
    shape = [1, 3, 8, 8]
    return [
        event("forward", start, 100, "", []),
        event("aten::to", start + 1, 8, "backbone", shape),
        event("quantized::conv2d", start + 10, convolution, "backbone/0/1", shape),
        event("aten::contiguous", start + 11, 5, "backbone/0/1", shape),
        event("aten::mul", start + 90, 3, "head", [1, 4]),
        event("aten::add", start + 94, 3, "head", [1, 4]),
        {"cat": "python_function", "name": "noise", "ts": start, "dur": 5000},
    ]


def test_layers_get_the_median_time_of_their_outermost_operators(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    calls = [one_call(0, 40), one_call(200, 60), one_call(400, 50)]
    trace.write_text(json.dumps({"traceEvents": [e for call in calls for e in reversed(call)]}))
    found = layers(trace, 3, {"backbone.0.1": (3, 1, 3, 3)})
    assert [layer.name for layer in found] == ["backbone", "backbone.0.1", "head"]
    assert [round(1000 * layer.milliseconds) for layer in found] == [8, 50, 6]
    assert sum(layer.share for layer in found) == pytest.approx(1)
    assert [layer.kind for layer in found] == ["to", "3x3 depthwise", "mul and more"]
    assert found[1].shape == (1, 3, 8, 8)
    assert list(time_by_kind(found)) == ["3x3 depthwise", "to", "mul and more"]
    with pytest.raises(ExportError, match="3 calls of the model, expected 2"):
        layers(trace, 2, {})


@pytest.mark.slow
def test_profile_of_an_exported_model(fedhead: Fedhead, tiny_toml: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_toml)
    code, _, err = fedhead("run", "tiny.toml", "--set", "train.rounds=1")
    assert code == 0, err
    model = tmp_path / "runs" / "tiny" / "model.pt"
    code, out, err = fedhead("profile", model, "--trace", "there.json", "--json")
    assert code == 0, err
    found = json.loads(out)
    convolutions = [layer for layer in found["layers"] if layer["kernel"]]
    assert len(convolutions) == 52  # MobileNetV2's, without its classifier
    assert convolutions[0]["kernel"] == [32, 3, 3, 3]
    assert convolutions[0]["shape"] == [1, 3, 64, 64]
    assert sum(layer["kind"] == "3x3 depthwise" for layer in convolutions) == 17
    assert found["layers"][-1]["name"] == "head"
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1)
    assert {timing["batch"] for timing in found["speed"]} == {1, 2, 4, 8, 16}
    assert {timing["threads"] for timing in found["speed"]} >= {1, 2}
    assert all(timing["seconds"] > 0 for timing in found["speed"])
    # The file's own weights lie in memory, and a batch of 16 needs more than one image.
    assert model.stat().st_size < found["memory_bytes"] < found["peak_memory_bytes"]
    assert json.loads((tmp_path / "there.json").read_text())["traceEvents"]

    code, out, err = fedhead("profile", model, "--quantized-engine", "x86")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "quantized engine x86" in out
    assert "1x1 convolution" in out
    code, _, err = fedhead("profile", model, "--quantized-engine", "abacus")
    assert code == 1
    assert "abacus" in err
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(model.read_bytes()[:-1000])
    assert fedhead("profile", damaged)[0] == 1


def test_a_file_that_does_not_run_is_named(tmp_path: Path) -> None:
    from common.backbone.frozen import probe_images

    file = tmp_path / "noise.pt"
    file.write_bytes(b"noise")
    with pytest.raises(ExportError, match="noise.pt: does not run"):
        run_file(Job(file, "torchscript"), probe_images(32))
