"""An export that computes otherwise is refused, and leaves no file."""

import dataclasses
import io
import zipfile

import numpy as np
import pytest

import server.export.targets.torchscript as torchscript
from common.errors import ExportError
from common.types import Head
from server.export.exporters import export
from server.export.phone_model import quantize_head
from tests.server.export.opening import files_in

pytestmark = pytest.mark.wide


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
