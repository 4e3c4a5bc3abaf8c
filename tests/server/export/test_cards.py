"""What a card promises of its file's input is what the file takes: no more, no less."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from common.backbone._deprecations import accepted_deprecations
from common.backbone.engine import quantized_engine
from server.export.card import Card, card_path
from server.export.exporters import export

pytestmark = pytest.mark.wide

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
ANY, ONE = "uint8 (n, 3, 32, 32), RGB", "uint8 (1, 3, 32, 32), RGB"


def card_of(path: Path) -> Card:
    return Card.model_validate_json(card_path(path).read_text())


def test_torchscript_files_take_as_many_images_as_their_cards_say(exported, device_files):
    from torch.jit.mobile import _load_for_lite_interpreter

    with quantized_engine("qnnpack"), accepted_deprecations():
        paths = {"model": exported.path, **{k: r.path for k, r in device_files.items()}}
        for target, path in paths.items():
            card = card_of(path)
            assert card.input.startswith(ANY)
            assert card.output == "float32 (n, 10) logits"
            load = _load_for_lite_interpreter if target == "lite" else torch.jit.load
            model = load(str(path))
            for n in (1, 5):
                logits = model(torch.from_numpy(IMAGES[:n].copy()))
                assert (logits.dtype, logits.shape) == (torch.float32, (n, 10)), target


def test_an_onnx_file_takes_as_many_images_as_its_card_says(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    card = card_of(export(trained, "onnx", tmp_path / "model.onnx").path)
    assert card.input.startswith(ANY)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for n in (1, 5):
        (logits,) = session.run(None, {"images": IMAGES[:n]})
        assert (logits.dtype, logits.shape) == (np.float32, (n, 10))


@pytest.mark.slow
def test_an_executorch_file_takes_one_image_a_call_as_its_card_says(trained, tmp_path):
    pytest.importorskip("executorch")
    path = export(trained, "executorch", tmp_path / "model.pte").path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says of itself that it is experimental
        import executorch.kernels.quantized  # noqa: F401  # what is not in the core runtime
        from executorch.runtime import Runtime

    card = card_of(path)
    assert card.input.startswith(ONE)
    assert card.output == "float32 (1, 10) logits"
    method = Runtime.get().load_program(path).load_method("forward")
    (logits,) = method.execute([torch.from_numpy(IMAGES[:1].copy())])
    assert (logits.dtype, logits.shape) == (torch.float32, (1, 10))
    with pytest.raises(RuntimeError, match="0x"):
        method.execute([torch.from_numpy(IMAGES)])


def test_a_head_alone_promises_no_logits(trained, tmp_path):
    card = card_of(export(trained, "head", tmp_path / "head.safetensors").path)
    assert card.input.startswith("no images: weight float32 (10, 1280) and bias float32 (10,)")
    assert card.output == "nothing by itself"
