"""What an exported file says about itself, and how it is read."""

import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import server.export.targets.torchscript as torchscript
from common.apart import reused
from common.backbone._deprecations import accepted_deprecations
from common.errors import ExportError
from common.files import sha256_file
from common.machine import processor
from server.export.card import CARD_RECORD, read_card
from server.export.exporters import export
from tests.server.export.opening import run_python

pytestmark = pytest.mark.wide


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
