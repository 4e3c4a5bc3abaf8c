"""``predict``: pictures of any kind in, class names out; bad files are one clear line."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.backbone._deprecations import accepted_deprecations
from common.errors import BackboneError, DataError, ExportError
from server.card import Card, SelfCheck
from simulations.predict import predict

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


def picture(path, colour, mode="RGB", size=(20, 13)):
    Image.new(mode, size, colour).save(path)
    return path


def test_each_picture_gets_its_class_and_softmax_probability_in_order(model, tmp_path):
    red = picture(tmp_path / "red.png", (255, 0, 0))
    blue = picture(tmp_path / "blue.bmp", (0, 0, 200), size=(1, 1))
    found = predict(model, [red, blue, red])
    assert [(p.path, p.class_name) for p in found] == [(red, "red"), (blue, "blue"), (red, "red")]
    assert found[0].probability == pytest.approx(np.exp(2.55) / (np.exp(2.55) + 2))
    assert found[1].probability == pytest.approx(np.exp(2) / (np.exp(2) + 2))


def test_a_grey_picture_is_three_equal_colours(model, tmp_path):
    (found,) = predict(model, [picture(tmp_path / "grey.png", 77, mode="L")])
    assert found.probability == pytest.approx(1 / 3)


def test_more_pictures_than_fit_one_batch_keep_their_order(model, tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.permuted(np.tile([0, 100, 200], (70, 1)), axis=1)
    paths = [picture(tmp_path / f"{i}.png", tuple(map(int, c))) for i, c in enumerate(colours)]
    found = predict(model, paths)
    expected = [("red", "green", "blue")[int(c.argmax())] for c in colours]
    assert [p.class_name for p in found] == expected


def test_the_engine_of_the_process_is_put_back(model, tmp_path):
    path = picture(tmp_path / "red.png", (255, 0, 0))
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "onednn"
        predict(model, [path])
        assert torch.backends.quantized.engine == "onednn"
        with pytest.raises(DataError):
            predict(model, [tmp_path / "none.png"])
        assert torch.backends.quantized.engine == "onednn"
    finally:
        torch.backends.quantized.engine = before


def test_an_unreadable_picture_is_named(model, tmp_path):
    good = picture(tmp_path / "red.png", (255, 0, 0))
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(DataError, match=r"text\.png"):
        predict(model, [good, text])
    with pytest.raises(DataError, match=r"none\.png"):
        predict(model, [good, tmp_path / "none.png"])


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_foreign_and_damaged_models_are_refused_in_one_line(model, tmp_path):
    red = picture(tmp_path / "red.png", (255, 0, 0))
    bad = tmp_path / "bad.pt"
    torch.save({"weight": torch.zeros(2)}, bad)
    with pytest.raises(ExportError, match=r"bad\.pt: not a model exported by fedhead") as caught:
        predict(bad, [red])
    one_line(caught)
    bad.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"bad\.pt: not a model file, or cut off") as caught:
        predict(bad, [red])
    one_line(caught)
    with pytest.raises(ExportError, match=r"gone\.pt: cannot be read") as caught:
        predict(tmp_path / "gone.pt", [red])
    one_line(caught)


def test_an_engine_that_this_torch_has_not_is_named(tmp_path):
    model = write_model(tmp_path / "model.pt", engine="abacus")
    with pytest.raises(BackboneError, match=r"engine 'abacus' is not in this torch, .*qnnpack"):
        predict(model, [])


def test_a_model_that_fails_or_contradicts_its_card_is_refused_in_one_line(tmp_path):
    red = picture(tmp_path / "red.png", (255, 0, 0))
    model = write_model(tmp_path / "model.pt", module=Fails())
    with pytest.raises(ExportError, match=r"model\.pt: does not run") as caught:
        predict(model, [red])
    one_line(caught)
    model = write_model(tmp_path / "model.pt", classes=("red", "green"))
    with pytest.raises(ExportError, match=r"logits are \(1, 3\), expected \(1, 2\)"):
        predict(model, [red])


def test_no_pictures_give_no_predictions(model):
    assert predict(model, []) == []
