"""What an exported file computes: the training side's bits, and probabilities."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
import torch

from server.export.card import Calibration
from server.export.exported import exported as exported_file
from server.export.exporters import export
from server.export.predict import classify
from tests.server.export.opening import load, run, run_python

pytestmark = pytest.mark.wide

# Raises what Python raises when a package is not installed.
BLOCKER = """
import sys
class OnlyTorch:
    def find_spec(self, name, path=None, target=None):
        allowed = {"torch", "torchgen", "numpy", "typing_extensions"}
        if name.partition(".")[0] not in sys.stdlib_module_names | allowed:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, OnlyTorch())
"""


# What it computes


def test_runs_by_the_three_lines_on_its_card_where_only_torch_can_be_imported(
    trained, exported, tmp_path
):
    trained.images.tofile(tmp_path / "images")
    code = f"""{BLOCKER}
for name in ("torchvision", "flwr", "common", "server", "pydantic", "safetensors", "PIL"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{{name}} could be imported")
import json, pathlib
usage = json.loads(pathlib.Path("model.json").read_text())["usage"]
exec(usage[0])
images = torch.from_file(sys.argv[1], size={trained.images.size}, dtype=torch.uint8)
images = images.view({tuple(trained.images.shape)})
exec(usage[1])
exec(usage[2])
print(json.dumps(probabilities.tolist()))
"""
    output = run_python(code, tmp_path / "images", cwd=exported.path.parent)
    there = np.array(json.loads(output))
    here = torch.from_numpy(run(load(exported.path), trained.images)).softmax(1).numpy()
    np.testing.assert_array_equal(there.astype(np.float32), here)
    assert (there.argmax(1) == trained.labels).mean() == exported.accuracy


def test_the_blocked_packages_are_there_without_the_blocker():
    code = """
from importlib.util import find_spec
names = ("torchvision", "flwr", "common", "server", "pydantic", "safetensors", "PIL")
print([name for name in names if find_spec(name) is None])
"""
    assert run_python(code).strip() == "[]"


def test_features_inside_the_file_are_the_training_sides_bits(trained, exported):
    inside = run(load(exported.path).backbone, trained.images)
    np.testing.assert_array_equal(inside, trained.backbone.features(trained.images))
    assert inside.std(axis=0).max() > 1  # not a constant network


def test_logits_do_not_depend_on_the_rest_of_the_batch(trained, exported):
    model = load(exported.path)
    together = run(model, trained.images)
    alone = np.concatenate([run(model, image[None]) for image in trained.images[:20]])
    np.testing.assert_array_equal(alone, together[:20])
    order = np.random.default_rng(0).permutation(len(together))
    np.testing.assert_array_equal(run(model, trained.images[order]), together[order])


def test_logits_agree_with_the_head_that_was_trained(trained, exported):
    x = trained.backbone.affine(trained.backbone.features(trained.images))
    expected = x @ trained.head.weight.T + trained.head.bias
    logits = run(load(exported.path), trained.images)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() == pytest.approx(exported.max_logit_difference)
    assert (logits.argmax(1) == expected.argmax(1)).mean() == exported.argmax_agreement
    # One class may be nearly a tie: which ones are depends on the float kernels that made them.
    assert exported.argmax_agreement >= 1 - 1 / len(expected)
    assert exported.max_logit_difference < 0.03 * np.ptp(expected, axis=1).mean()


def test_mobilenet_v2_with_ten_classes_is_at_most_three_megabytes(exported):
    assert exported.model_bytes == exported.path.stat().st_size <= 3_000_000


# Probabilities


def test_a_file_that_predicts_gives_probabilities_and_one_that_trains_the_trained_head(
    trained, exported, tmp_path
):
    found = Calibration(
        temperature=0.1, fitted_on="clients' test parts", fitted_examples=60, ece=0.01,
        ece_before=0.5, loss=0.2, loss_before=2.0, examples=60,
    )  # fmt: skip
    warm = dataclasses.replace(trained, calibration=found)
    model = export(warm, "model", tmp_path / "model.pt")
    device = export(warm, "device", tmp_path / "device.pt")
    with loaded(exported.path) as (plain, pixels), loaded(model.path) as (cold, _):
        before, after = plain.logits(pixels), cold.logits(pixels)
        np.testing.assert_allclose(after, 10 * before, rtol=1e-3, atol=1e-3 * np.ptp(after))
        assert (before.argmax(1) == after.argmax(1)).all()
        of_model = classify(cold, pixels)
        shares = torch.from_numpy(after).double().softmax(1).numpy()
        inside = cold.card
    assert (inside.temperature, inside.calibration) == (0.1, found)
    assert inside.head_sha256 == trained.head.sha256
    assert "divided by the temperature; softmax" in inside.output
    with loaded(device.path) as (trains, _):
        np.testing.assert_allclose(trains.logits(pixels), before, atol=1e-2 * np.ptp(before))
        # Of two classes that are nearly equal the int8 head may take the other one. So the class is
        # right if the model gives it the same probability, which is as high as that of its own.
        for i, (k, own) in enumerate(classify(trains, pixels)):
            assert own == pytest.approx(shares[i, k], abs=0.02)
            assert own == pytest.approx(of_model[i][1], abs=0.02)


@contextlib.contextmanager
def loaded(path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    with exported_file(path) as file:
        yield file, pixels
