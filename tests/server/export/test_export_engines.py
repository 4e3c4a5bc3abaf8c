"""What another engine gives, or few images, is no reason to refuse a file."""

import dataclasses
import json
import sys

import numpy as np
import pytest

import server.export.targets.torchscript as torchscript
from common.types import Head
from server.export.exporters import FILES, check_installed, export

pytestmark = pytest.mark.wide

# Stands in for a processor whose default engine computes anything, or nothing.
ODD = """
import os, runpy, sys, torch
load = torch.jit.load

def odd(path):
    if torch.backends.quantized.engine == "qnnpack":
        return load(path)
    if "{kind}" == "dies":
        os.abort()
    if "{kind}" == "fails":
        raise RuntimeError("Didn't find engine for operation\\nquantized::conv2d_prepack")
    size = {{"noise": 1e4, "nothing": float("nan")}}["{kind}"]
    return lambda images: torch.randn(len(images), 10) * size

torch.jit.load = odd
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def odd_processor(tmp_path, monkeypatch, caplog):
    """Makes the default engine's logits noise, not finite, or an error."""

    def install(kind):
        script = tmp_path / "odd.py"
        script.write_text(ODD.format(kind=kind))
        fresh = torchscript.fresh_process
        python = [sys.executable, "-W", "ignore", str(script)]
        monkeypatch.setattr(torchscript, "fresh_process", lambda name: fresh(name, python))
        caplog.set_level("WARNING", "fedhead")

    return install


def test_a_default_engine_of_noise_is_told_and_the_model_is_exported(
    trained, exported, tmp_path, odd_processor, caplog
):
    odd_processor("noise")
    report = export(trained, "model", tmp_path / "model.pt")
    assert report.sha256 == exported.sha256
    card = json.loads((tmp_path / "model.json").read_bytes())
    default = card["file"]["default_engine"]
    assert default["check"]["argmax_agreement"] < 0.5
    assert default["check"]["max_logit_difference"] > 100
    (line,) = caplog.messages
    assert line.startswith("model.pt is right on qnnpack; torch's ")
    assert line.endswith("images another class; see model.json")


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        pytest.param("fails", "quantized::conv2d_prepack", marks=pytest.mark.slow),
        pytest.param("nothing", "not finite", marks=pytest.mark.slow),
        ("dies", "it ended the process"),
    ],
)
def test_a_default_engine_that_cannot_run_the_file_is_told_and_the_model_is_exported(
    trained, exported, tmp_path, odd_processor, caplog, kind, problem
):
    odd_processor(kind)
    report = export(trained, "model", tmp_path / "model.pt")
    assert report.sha256 == exported.sha256
    assert report.default_engine.check is None
    assert problem in report.default_engine.problem
    (line,) = caplog.messages
    assert "does not run" in line
    assert problem in line


TARGETS = {"random": ("onnx", "head"), "imagenet": ()}


@pytest.mark.parametrize(
    ("weights", "target"),
    [
        pytest.param(weights, target, marks=() if target in fast else pytest.mark.slow)
        for weights, fast in TARGETS.items()
        for target in FILES
    ],
)
def test_few_images_always_give_a_file(make_trained, tmp_path, weights, target):
    check_installed(target)
    whole = make_trained("mobilenet_v2", weights, 32 if weights == "random" else 64)
    # Of 44 images a class or two are nearly ties, and one alone may be.
    for part in (slice(16, 60), slice(0, 1)):
        few = dataclasses.replace(
            whole,
            images=whole.images[part],
            features=whole.features[part],
            labels=whole.labels[part],
        )
        report = export(few, target, tmp_path / "file")
        assert report.path.stat().st_size == report.model_bytes


@pytest.mark.slow
def test_a_head_of_nearly_tied_classes_is_exported(trained, tmp_path):
    head = Head(trained.head.weight * np.float32(1e-4), np.zeros(10, np.float32))
    tied = dataclasses.replace(trained, head=Head(head.weight + 1e3, head.bias))
    for target in ("model", "device"):
        assert export(tied, target, tmp_path / "file").features_equal
