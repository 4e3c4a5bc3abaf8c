"""The exported file: what it computes, what it says about itself, and when it is refused."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import server.export.exporters
import server.export.targets.torchscript as torchscript
from common.apart import reused
from common.backbone._deprecations import accepted_deprecations
from common.backbone.engine import quantized_engine
from common.errors import ExportError
from common.files import sha256_file
from common.machine import processor
from common.types import Affine, Head
from server.export.card import CARD_RECORD, Calibration, read_card
from server.export.exported import exported as exported_file
from server.export.exporters import FILES, check_installed, export
from server.export.phone_model import PhoneHead, quantize_head
from server.export.predict import classify

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


def run_python(code, *arguments, cwd=None, **environment):
    """Run in a new interpreter that could import this repository."""
    root = server.export.exporters.__file__.rsplit("/", 2)[0]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(path):
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = read_card(path).engine
    try:
        with accepted_deprecations():
            return torch.jit.load(str(path))
    finally:
        torch.backends.quantized.engine = before


def run(model, images):
    with quantized_engine("qnnpack"), torch.no_grad(), accepted_deprecations():
        return model(torch.from_numpy(images)).numpy()


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


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


# The head's arithmetic


@st.composite
def heads(draw):
    """A head, an affine map with gains over up to eight orders of magnitude, and features."""
    classes, width = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    head = Head(
        rng.normal(size=(classes, width)).astype(np.float32),
        rng.normal(size=classes).astype(np.float32),
    )
    gain = 10 ** rng.uniform(-4, draw(st.sampled_from([-4, 0, 4])), width)
    affine = Affine(gain.astype(np.float32), rng.uniform(0, 255, width).astype(np.float32))
    return head, affine, rng.integers(0, 256, (8, width), np.uint8)


def phone_logits(head, affine, q):
    with torch.no_grad():
        return PhoneHead(quantize_head(head, affine))(torch.from_numpy(q)).numpy()


@given(heads())
def test_folding_adds_no_error_but_the_rounding_of_each_weight(case):
    head, affine, q = case
    exact = ((q - affine.center.astype(np.float64)) * affine.gain) @ head.weight.T.astype(
        np.float64
    ) + head.bias
    int8 = quantize_head(head, affine)
    # Half a step for each weight, times how far the feature is from its center.
    step = int8.class_scale[:, None] * int8.feature_scale
    bound = np.abs(q - affine.center.astype(np.float64)) @ (step / 2).T
    error = np.abs(phone_logits(head, affine, q) - exact)
    assert (error <= bound + 1e-6 * (np.abs(exact) + bound)).all()
    assert np.abs(int8.weight).max() <= 127


@given(heads())
def test_an_int8_head_adds_up_exactly_in_any_order(case):
    head, affine, q = case
    reverse = slice(None, None, -1)
    turned = Head(np.ascontiguousarray(head.weight[:, reverse]), head.bias)
    turned_affine = Affine(affine.gain[reverse].copy(), affine.center[reverse].copy())
    int8, other = quantize_head(head, affine), quantize_head(turned, turned_affine)
    # The biases are float sums, made once at export.
    other = dataclasses.replace(other, bias=int8.bias)
    with torch.no_grad():
        forwards = PhoneHead(int8)(torch.from_numpy(q))
        backwards = PhoneHead(other)(torch.from_numpy(q[:, reverse].copy()))
    assert forwards.numpy().tobytes() == backwards.numpy().tobytes()


def test_a_head_of_whole_int8_steps_is_exported_without_any_error():
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (5, 30)).astype(np.float32)
    weight[:, 0] = weight[2] = 127  # every class and every feature uses the whole range
    gain = np.full(30, 0.25, np.float32)
    affine = Affine(gain, rng.integers(0, 256, 30).astype(np.float32))
    q = rng.integers(0, 256, (50, 30), np.uint8)
    head = Head(weight, np.arange(5, dtype=np.float32))
    expected = affine(q) @ weight.T + head.bias
    np.testing.assert_allclose(phone_logits(head, affine, q), expected, rtol=1e-6)


def test_gains_of_very_different_size_do_not_cost_the_other_features_their_resolution():
    # Half of the features are nearly constant, so standardizing gives them a gain of 10,000.
    rng = np.random.default_rng(0)
    d, n = 200, 500
    std = np.where(np.arange(d) % 2, 1e-4, 20.0)
    affine = Affine((1 / std).astype(np.float32), np.full(d, 128, np.float32))
    q = np.clip(rng.normal(128, std, (n, d)).round(), 0, 255).astype(np.uint8)
    head = Head(rng.normal(size=(10, d)).astype(np.float32), np.zeros(10, np.float32))
    trained = affine(q) @ head.weight.T
    agreement = (phone_logits(head, affine, q).argmax(1) == trained.argmax(1)).mean()
    assert agreement >= 0.98
    # One scale a class, as the golden five lines: the reason for the second scale.
    folded = head.weight * affine.gain
    step = np.abs(folded).max(axis=1, keepdims=True) / 127
    rows_only = (q - 128.0) @ (np.rint(folded / step) * step).T
    assert (rows_only.argmax(1) == trained.argmax(1)).mean() < 0.5


def test_a_head_of_zeros_gives_exactly_its_bias():
    head = Head(np.zeros((3, 7), np.float32), np.array([0.1, -2, 3], np.float32))
    affine = Affine(np.ones(7, np.float32), np.full(7, 9, np.float32))
    q = np.full((2, 7), 200, np.uint8)
    np.testing.assert_array_equal(phone_logits(head, affine, q), np.stack([head.bias] * 2))


# What it says about itself


def test_the_card_beside_says_what_the_one_inside_says_and_knows_the_file(trained, exported):
    with zipfile.ZipFile(exported.path) as archive:
        inside = archive.read(CARD_RECORD)
    beside = json.loads(exported.path.with_suffix(".json").read_bytes())
    file, _ = beside.pop("file"), beside.pop("checksum")
    assert {**beside, "file": None} == json.loads(inside)
    assert file["bytes"] == exported.path.stat().st_size
    assert file["sha256"] == sha256_file(exported.path)
    assert file["features_equal"] is True
    assert file["processor"] == processor()
    assert file["default_engine"] == exported.default_engine.model_dump()
    assert file["default_engine"]["engine"] == torch.backends.quantized.engine
    assert file["default_engine"]["check"]["images"] == 60

    extra = {"card.json": ""}
    with accepted_deprecations():
        torch.jit.load(str(exported.path), _extra_files=extra)
    assert extra["card.json"] == inside

    card, spec = json.loads(inside), trained.backbone.spec
    assert card["classes"] == [str(digit) for digit in range(10)]
    assert (card["arch"], card["input_size"], card["engine"]) == (spec.arch, 32, "qnnpack")
    assert (tuple(card["mean"]), tuple(card["std"])) == (spec.mean, spec.std)
    assert (card["weights"], card["weights_licence"]) == (spec.weights, spec.weights_licence)
    assert card["fingerprint"] == trained.backbone.fingerprint
    assert card["head_sha256"] == trained.head.sha256
    assert card["metrics"] == {"accuracy": 0.5, "loss": None}  # JSON has no NaN
    assert card["torch_version"] == torch.__version__
    assert 'torch.backends.quantized.engine = "qnnpack"' in card["usage"][0]
    check = card["self_check"]
    assert check["images"] == 60
    assert check["accuracy"] == exported.accuracy
    assert check["argmax_agreement"] == exported.argmax_agreement
    assert check["max_logit_difference"] == exported.max_logit_difference
    assert exported.sha256 == sha256_file(exported.path)


@pytest.mark.slow
def test_a_process_that_loads_the_backbone_writes_the_same_bytes_as_one_that_has_exported_others(
    trained, tmp_path
):
    with reused():  # other tests of this process have exported other models
        here = export(trained, "model", tmp_path / "here.pt")
    trained.backbone.save(tmp_path)
    arrays = {
        "weight": trained.head.weight,
        "bias": trained.head.bias,
        "images": trained.images,
        "features": trained.features,
        "labels": trained.labels,
    }
    np.savez(tmp_path / "arrays.npz", **arrays)
    code = """
import sys
from pathlib import Path
import numpy as np
from common.backbone.frozen import FrozenBackbone
from common.types import Head
from server.export.exporters import FILES, check_installed, export
from server.export.trained import TrainedModel
folder = Path(sys.argv[1])
arrays = np.load(folder / "arrays.npz")
trained = TrainedModel(
    FrozenBackbone.load(folder), Head(arrays["weight"], arrays["bias"]),
    classes=tuple(str(k) for k in range(10)), metrics={"accuracy": 0.5, "loss": float("nan")},
    images=arrays["images"], features=arrays["features"], labels=arrays["labels"],
)
export(trained, "model", folder / "model.pt")
"""
    run_python(code, tmp_path, PYTHONHASHSEED="7")
    assert sha256_file(tmp_path / "model.pt") == here.sha256


def test_the_file_says_nothing_about_the_machine_it_was_made_on(exported):
    data = exported.path.read_bytes()
    for module in (torch, torchscript):
        assert module.__file__.rsplit("/", 2)[0].encode() not in data


# What another engine gives is no reason to refuse it


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


# When it is refused


def test_a_wrong_head_fails_the_check_and_leaves_nothing(trained, tmp_path, monkeypatch):
    wrong = Head(np.roll(trained.head.weight, 1, axis=0), trained.head.bias)
    monkeypatch.setattr(
        torchscript, "quantize_head", lambda _, affine: quantize_head(wrong, affine)
    )
    with pytest.raises(ExportError, match=r"int8 head: .* is off by .*, rounding explains"):
        export(trained, "model", tmp_path / "model.pt")
    assert files_in(tmp_path) == []


def tampered(change):
    """An archive writer whose result is changed, checksums and all."""
    original = torchscript.compact

    def archive(saved, records):
        target = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(original(saved, records))) as source,
            zipfile.ZipFile(target, "w") as out,
        ):
            for record in source.infolist():
                out.writestr(record, change(record.filename, source.read(record)))
        return target.getvalue()

    return archive


def test_a_file_with_other_weights_than_were_checked_in_memory_is_not_put_in_place(
    trained, tmp_path, monkeypatch
):
    path = tmp_path / "model.pt"
    path.write_bytes(b"an earlier model")

    def flip(name, data):
        is_head = name.startswith("archive/data/") and len(data) == trained.head.weight.size
        return bytes(byte ^ 1 for byte in data) if is_head else data

    monkeypatch.setattr(torchscript, "compact", tampered(flip))
    with pytest.raises(ExportError, match="exported file: the logit of class . of image"):
        export(trained, "model", path)
    assert files_in(tmp_path) == ["model.pt"]
    assert path.read_bytes() == b"an earlier model"


@pytest.mark.parametrize(
    "target",
    ["model", *(pytest.param(name, marks=pytest.mark.slow) for name in ("device", "lite"))],
)
def test_a_file_that_does_not_load_elsewhere_is_not_put_in_place(
    trained, tmp_path, monkeypatch, target
):
    def cut(name, data):
        return b"" if name in ("archive/data.pkl", "archive/bytecode.pkl") else data

    monkeypatch.setattr(torchscript, "compact", tampered(cut))
    with pytest.raises(ExportError, match=r"does not run in a fresh process: .*Error"):
        export(trained, target, tmp_path / "file")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("target", ["model", pytest.param("lite", marks=pytest.mark.slow)])
def test_features_that_the_backbone_does_not_give_are_noticed(trained, tmp_path, target):
    features = trained.features.copy()
    features[0, 0] ^= 1
    changed = dataclasses.replace(trained, features=features)
    with pytest.raises(ExportError, match="features differ"):
        export(changed, target, tmp_path / "file")
    assert files_in(tmp_path) == []


def test_a_device_file_that_trains_otherwise_is_not_put_in_place(trained, tmp_path, monkeypatch):
    def slower(name, data):
        is_step = name == "archive/code/__torch__/server/export/device_model.py"
        return data.replace(b"mul(velocity2, lr)", b"mul(velocity2, 0.9)") if is_step else data

    monkeypatch.setattr(torchscript, "compact", tampered(slower))
    with pytest.raises(ExportError, match="trains a head that is off by"):
        export(trained, "device", tmp_path / "device.pt")
    assert files_in(tmp_path) == []


def wrong_head(change):
    return lambda t: {"head": change(t.head)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"classes": ("one",)}, "the head has 10 classes, but 1 names"),
        (wrong_head(lambda h: Head(h.weight[:, :5], h.bias)), "the head has 5 features, but"),
        (wrong_head(lambda h: Head(h.weight * np.float32("nan"), h.bias)), "not finite"),
        (lambda t: {"images": t.images[:, :, 1:]}, r"expected uint8 \(n, 3, 32, 32\)"),
        (lambda t: {"images": t.images.astype(np.float32)}, "images are float32"),
        (lambda t: {"labels": t.labels[1:]}, "60 images .* 59 labels"),
        (lambda t: {"images": t.images[:0]}, "0 images"),
        (lambda t: {"features": np.zeros((60, 3), np.uint8)}, r"features are uint8 \(60, 3\)"),
    ],
)
def test_values_that_do_not_fit_are_named(trained, change, message):
    with pytest.raises(ExportError, match=message):
        dataclasses.replace(trained, **change(trained))


# Reading a card


def test_a_file_cut_off_anywhere_is_refused_in_one_line(exported, tmp_path):
    data = exported.path.read_bytes()
    for size in (0, 1, 100, len(data) // 2, len(data) - 1):
        path = tmp_path / "cut.pt"
        path.write_bytes(data[:size])
        with pytest.raises(ExportError, match=r"cut\.pt: ") as caught:
            read_card(path)
        assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=60)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_touches_no_content(exported, tmp_path_factory, position, bit):
    data = bytearray(exported.path.read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "model.pt"
    path.write_bytes(data)
    try:
        card = read_card(path)
    except ExportError:
        return
    assert card == read_card(exported.path)


def test_another_programs_files_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ExportError, match="not a model exported by fedhead"):
        read_card(path)
    path.write_text("a text")
    with pytest.raises(ExportError, match="not a model file"):
        read_card(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(CARD_RECORD, '{"format": "something else"}')
    with pytest.raises(ExportError, match="not a model exported by fedhead"):
        read_card(path)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ExportError, match="No such file"):
        read_card(tmp_path / "none.pt")
    with pytest.raises(ExportError, match="Is a directory"):
        read_card(tmp_path)


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
