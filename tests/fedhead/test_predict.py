"""``predict``: images of any kind in, class names out; bad files are one clear line."""

import csv
import io
import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import common.progress
import server.export.exported
import server.export.predict
from common.backbone._deprecations import accepted_deprecations
from common.errors import BackboneError, DamagedError, DataError, ExportError, MissingExtraError
from common.images import decode_file
from server.export.card import BESIDE, Card, FileFacts, SelfCheck, card_path, read_card
from server.export.exported import exported as load
from server.export.exporters import FILES, export
from server.export.fresh_process import fresh_process
from server.export.predict import find_images, predict

pytestmark = pytest.mark.wide

SIZE = 8


class Brightest(nn.Module):
    """Logit k is the mean of colour k over 100, so that every answer is known."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=[2, 3]) / 100


class Fails(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() @ torch.zeros(1, 1, 3, 5)


def write_model(path, module=None, classes=("red", "green", "blue"), **changes):
    card = Card(
        target="model",
        usage=("", "", ""),
        usage_elsewhere={},
        engine="qnnpack",
        classes=classes,
        arch="none",
        input="",
        output="",
        input_size=SIZE,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_features=3,
        weights="none",
        weights_licence="none",
        fingerprint="0",
        head_sha256="0",
        torch_version=torch.__version__,
        metrics={},
        self_check=SelfCheck(
            images=1,
            accuracy=1.0,
            argmax_agreement=1.0,
            max_logit_difference=0.0,
            logit_spread=1.0,
        ),
    ).model_copy(update=changes)
    buffer = io.BytesIO()
    with accepted_deprecations():
        scripted = torch.jit.script(module or Brightest())
        torch.jit.save(scripted, buffer, _extra_files={"card.json": card.to_json()})
    path.write_bytes(buffer.getvalue())
    return path


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model.pt")


def image(path, colour, mode="RGB", size=(20, 13)):
    Image.new(mode, size, colour).save(path)
    return path


def answers(model, *paths):
    with load(model) as loaded:
        return list(predict(loaded, find_images(paths)))


def said(model, *paths):
    """Answers as (name, class) or as the error's text."""
    return [
        str(one) if isinstance(one, DataError) else (one.path.name, one.class_name)
        for one in answers(model, *paths)
    ]


def test_each_image_gets_its_class_and_softmax_probability_in_order(model, tmp_path):
    red = image(tmp_path / "red.png", (255, 0, 0))
    blue = image(tmp_path / "blue.bmp", (0, 0, 200), size=(1, 1))
    found = answers(model, red, blue, red)
    assert [(p.path, p.class_name) for p in found] == [(red, "red"), (blue, "blue"), (red, "red")]
    assert found[0].probability == pytest.approx(np.exp(2.55) / (np.exp(2.55) + 2))
    assert found[1].probability == pytest.approx(np.exp(2) / (np.exp(2) + 2))


def test_a_grey_image_is_three_equal_colours(model, tmp_path):
    (found,) = answers(model, image(tmp_path / "grey.png", 77, mode="L"))
    assert found.probability == pytest.approx(1 / 3)


def test_more_images_than_fit_one_batch_keep_their_order(model, tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.permuted(np.tile([0, 100, 200], (70, 1)), axis=1)
    paths = [image(tmp_path / f"{i}.png", tuple(map(int, c))) for i, c in enumerate(colours)]
    expected = [("red", "green", "blue")[int(c.argmax())] for c in colours]
    assert [p.class_name for p in answers(model, *paths)] == expected


def test_the_engine_of_the_process_is_put_back(model, tmp_path):
    path = image(tmp_path / "red.png", (255, 0, 0))
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "onednn"
        answers(model, path, tmp_path / "none.png")
        assert torch.backends.quantized.engine == "onednn"
        with pytest.raises(ExportError):
            answers(write_model(tmp_path / "other.pt", module=Fails()), path)
        assert torch.backends.quantized.engine == "onednn"
    finally:
        torch.backends.quantized.engine = before


def test_an_unreadable_image_is_named_in_its_place_and_the_others_go_on(model, tmp_path):
    red = image(tmp_path / "red.png", (255, 0, 0))
    text = tmp_path / "text.png"
    text.write_text("not an image")
    found = said(model, text, red, tmp_path / "none.png", red)
    assert found[1] == found[3] == ("red.png", "red")
    assert "text.png: not an image" in found[0]
    assert "none.png: cannot be read" in found[2]
    assert said(model, text) == [found[0]]


def test_a_folder_is_all_images_below_it_and_what_is_left_out_is_counted(model, tmp_path, caplog):
    folder = tmp_path / "images"
    (folder / "b" / "c").mkdir(parents=True)
    (folder / ".trash").mkdir()
    image(folder / "b" / "c" / "2.png", (0, 0, 200))
    image(folder / "b" / "1.PNG", (0, 200, 0))
    image(folder / "z.png", (200, 0, 0))
    image(folder / ".trash" / "old.png", (0, 0, 0))
    for name in ("notes.txt", "more.txt", "README"):
        (folder / name).write_text("")
    (folder / "link").symlink_to(tmp_path)
    assert said(model, folder) == [("z.png", "red"), ("1.PNG", "green"), ("2.png", "blue")]
    not_used = "linked folders: 1, 2 .txt, 1 .trash/, 1 other files"
    assert caplog.messages == [f"{folder}: not used: {not_used}"]


def test_a_folder_without_images_is_an_error_in_its_place(model, tmp_path):
    (tmp_path / "empty").mkdir()
    red = image(tmp_path / "red.png", (255, 0, 0))
    error, found = said(model, tmp_path / "empty", red)
    assert error.endswith("empty: no images in it")
    assert found == ("red.png", "red")


def test_a_run_folder_stands_for_its_model(model, tmp_path):
    red = image(tmp_path / "red.png", (255, 0, 0))
    assert said(tmp_path, red) == [("red.png", "red")]
    (tmp_path / "run").mkdir()
    with pytest.raises(ExportError, match="does not exist: fedhead export .*run"):
        said(tmp_path / "run", red)


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_foreign_and_damaged_models_are_refused_in_one_line(model, tmp_path):
    red = image(tmp_path / "red.png", (255, 0, 0))
    bad = tmp_path / "bad.pt"
    torch.save({"weight": torch.zeros(2)}, bad)
    with pytest.raises(ExportError, match=r"bad\.pt: not a model exported by fedhead") as caught:
        answers(bad, red)
    one_line(caught)
    bad.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"bad\.pt: not a model file, or cut off") as caught:
        answers(bad, red)
    one_line(caught)
    with pytest.raises(ExportError, match=r"gone\.pt: cannot be read") as caught:
        answers(tmp_path / "gone.pt", red)
    one_line(caught)


def test_an_engine_that_this_torch_has_not_is_named(tmp_path):
    model = write_model(tmp_path / "model.pt", engine="abacus")
    with pytest.raises(
        BackboneError, match=r"this torch has no quantized engine 'abacus', only .*qnnpack"
    ):
        answers(model)


def test_a_model_that_fails_or_contradicts_its_card_is_refused_in_one_line(tmp_path):
    red = image(tmp_path / "red.png", (255, 0, 0))
    model = write_model(tmp_path / "model.pt", module=Fails())
    with pytest.raises(ExportError, match=r"model\.pt: does not run") as caught:
        answers(model, red)
    one_line(caught)
    model = write_model(tmp_path / "model.pt", classes=("red", "green"))
    with pytest.raises(ExportError, match=r"logits are \(1, 3\), expected \(1, 2\)"):
        answers(model, red)


def test_no_images_give_no_predictions(model):
    assert answers(model) == []


# Other runtimes


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    datasets = pytest.importorskip("sklearn.datasets", reason="pip install 'fedhead[demo]'")
    folder = tmp_path_factory.mktemp("digits")
    pixels = (datasets.load_digits().images[400:412] * (255 / 16)).astype(np.uint8)
    for i, digit in enumerate(pixels):
        Image.fromarray(digit).save(folder / f"{i:02d}.png")
    return folder


@pytest.mark.parametrize("target", ["device", "lite"])
def test_the_files_that_train_say_what_the_model_says(exported, device_files, digits, target):
    own, other = answers(exported.path, digits), answers(device_files[target].path, digits)
    assert len(own) == len(other) == 12
    for a, b in zip(own, other, strict=True):
        # The model's head is int8.
        assert a.class_name == b.class_name or abs(a.probability - b.probability) < 0.01
        assert a.probability == pytest.approx(b.probability, abs=0.02)


def test_an_onnx_file_says_what_its_runtime_computes(trained, digits, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    file = export(trained, "onnx", tmp_path / "model.onnx").path
    pixels = np.stack([decode_file(path, 32) for path in sorted(digits.iterdir())])
    logits = onnxruntime.InferenceSession(file).run(None, {"images": pixels})[0]
    found = answers(file, digits)
    assert [int(p.class_name) for p in found] == logits.argmax(axis=1).tolist()


@pytest.mark.slow
def test_an_executorch_file_says_what_its_runtime_computes(trained, digits, tmp_path):
    pytest.importorskip("executorch")
    report = export(trained, "executorch", tmp_path / "model.pte")
    pixels = np.stack([decode_file(path, 32) for path in sorted(digits.iterdir())])
    with fresh_process("run_executorch.py") as process:
        job, shape = {"model": str(report.path)}, np.zeros((12, 10), np.float32)
        logits = process.run(job, {"images": pixels}, {"logits": shape})[0]["logits"]
    found = answers(report.path, digits)
    assert [int(p.class_name) for p in found] == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize(
    ("target", "package"), [("onnx", "onnxruntime"), ("executorch", "executorch")]
)
def test_a_runtime_that_is_not_installed_is_named_with_its_command(
    monkeypatch, tmp_path, target, package
):
    monkeypatch.setattr(server.export.exported, "find_spec", lambda name: None)
    file = other_file(tmp_path / FILES[target], target)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*'fedhead\[{target}\]'"):
        answers(file, tmp_path / "red.png")


def other_file(path, target, data=b"not really"):
    """A file with a card beside it that names it rightly."""
    path.write_bytes(data)
    card = read_card(write_model(path.with_name("card.pt"), target=target))
    facts = FileFacts(bytes=len(data), sha256=sha256(data).hexdigest(), runtime="", processor="")
    BESIDE.write(card_path(path), card.model_copy(update={"file": facts}).model_dump(mode="json"))
    return path


@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_a_file_without_its_card_or_with_anothers_is_refused_in_one_line(tmp_path, target):
    pytest.importorskip(
        {"onnx": "onnxruntime"}.get(target, target), reason="pip install 'fedhead[dev]'"
    )
    file = other_file(tmp_path / FILES[target], target)
    with pytest.raises(ExportError, match="its runtime cannot load it") as caught:
        answers(file)
    one_line(caught)
    file.write_bytes(b"another")
    with pytest.raises(ExportError, match="is the card of another file than") as caught:
        answers(file)
    one_line(caught)
    card_path(file).write_text("[]")
    with pytest.raises(DamagedError, match="it has no checksum") as caught:
        answers(file)
    one_line(caught)
    BESIDE.write(card_path(file), {})
    with pytest.raises(ExportError, match="not a card") as caught:
        answers(file)
    one_line(caught)
    card_path(file).unlink()
    with pytest.raises(ExportError, match="has no card, expected") as caught:
        answers(file)
    one_line(caught)


def test_a_head_alone_is_refused_in_one_line(trained, tmp_path):
    head = export(trained, "head", tmp_path / "device-head.safetensors").path
    with pytest.raises(ExportError, match="is only a head") as caught:
        answers(head)
    one_line(caught)


# The command


def test_the_command_prints_a_line_an_image_and_exits_with_1_where_one_cannot_be_read(
    fedhead, model, tmp_path
):
    red = image(tmp_path / "red.png", (255, 0, 0))
    (tmp_path / "text.png").write_text("not an image")
    code, out, err = fedhead("predict", model, "text.png", red)
    assert code == 1
    assert out == f"{red}  red  0.865\n"
    assert err.splitlines() == [
        "fedhead: text.png: not an image",
        "fedhead: 1 of 2 images not classified, named above",
    ]
    code, out, err = fedhead("predict", model, red, "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)
    assert (row["image"], row["class"]) == (str(red), "red")


def test_a_table_holds_every_name_whatever_its_bytes(fedhead, model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["a,b.png", 'quo"te.png', "new\nline.png", os.fsdecode(b"caf\xe9.png")]
    for name in names:
        image(tmp_path / "x.png", (255, 0, 0)).rename(folder / name)
    code, out, err = fedhead("predict", model, folder, "--csv", "table.csv")
    assert (code, out, err) == (0, "table.csv: 4 images\n", "")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names[-1] = r"caf\xe9.png"
    assert {Path(row["image"]).name for row in rows} == set(names)
    assert {(row["class"], row["probability"]) for row in rows} == {("red", "0.864930")}
    code, out, _ = fedhead("predict", model, folder, "--csv", "-")
    assert out == (tmp_path / "table.csv").read_text()
    code, out, _ = fedhead("predict", model, folder)
    assert code == 0
    assert len(out.splitlines()) == 4
    assert r"new\nline.png" in out
    assert r"caf\xe9.png" in out


def test_a_table_is_written_whole_or_not_at_all(fedhead, tmp_path):
    red = image(tmp_path / "red.png", (255, 0, 0))
    model = write_model(tmp_path / "model.pt", module=Fails())
    (tmp_path / "table.csv").write_text("before")
    code, _, err = fedhead("predict", model, red, "--csv", "table.csv")
    assert code == 1
    assert "does not run" in err
    assert (tmp_path / "table.csv").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt", "red.png", "table.csv"]
    code, _, err = fedhead("predict", model, red, "--csv", tmp_path)
    assert (code, "is a folder, expected a file" in err) == (1, True)
    code, _, err = fedhead("predict", model, red, "--csv", "tabels/t.csv")
    assert (code, "--csv tabels/t.csv: there is no folder tabels" in err) == (1, True)
    assert not (tmp_path / "tabels").exists()
    code, _, err = fedhead("predict", model, red, "--csv", "t.csv", "--json")
    assert (code, "exclude each other" in err) == (1, True)


def test_signs_of_life_stay_out_of_what_is_piped(fedhead, model, tmp_path, monkeypatch):
    red, decode = image(tmp_path / "red.png", (255, 0, 0)), server.export.predict.decode_file

    def slow(path, size):
        common.progress._WATCH.look()  # as if nothing had been said for long
        return decode(path, size)

    monkeypatch.setattr(common.progress, "_SILENCE_SECONDS", -1.0)
    monkeypatch.setattr(server.export.predict, "decode_file", slow)
    for options, lines in (((), 1), (("--csv", "-"), 2), (("--json",), 1)):
        code, out, err = fedhead("predict", model, red, *options)
        assert (code, len(out.splitlines())) == (0, lines)
        assert "0 s" in err
        assert " s" not in out


def test_a_model_named_as_data_are_is_told_apart_from_a_missing_file(fedhead, model):
    code, _, err = fedhead("predict", f"folder:{model}", "a.png")
    assert code == 1
    assert err.endswith("give the path alone, without folder:)\n")
