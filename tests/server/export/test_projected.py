"""Files of a backbone with projected features: those that predict have no use for it."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.backbone._deprecations import accepted_deprecations
from common.backbone.cache import cached_projection
from common.backbone.engine import quantized_engine
from common.errors import ExportError
from common.types import Affine, Head
from server.export.card import Calibration, read_card
from server.export.exported import exported as exported_file
from server.export.exporters import FILES, export
from server.export.folding import folded
from server.export.phone_model import PhoneHead, quantize_head
from server.export.trained import TrainedModel

pytestmark = pytest.mark.wide

SLOW = {"lite", "onnx", "executorch", "device-pte"}
K = 40


@pytest.fixture(scope="module")
def projecting(trained: TrainedModel, cache: Path) -> TrainedModel:
    """The trained model with a head that was trained on 40 directions of its features."""
    backbone = cached_projection(trained.backbone, trained.images, K, 0, cache)
    assert backbone.projection is not None
    z = backbone.projection(trained.features)
    x = np.concatenate([backbone.affine(z), np.ones((len(z), 1))], axis=1).astype(np.float64)
    matrix = np.linalg.solve(x.T @ x + 10 * np.eye(K + 1), x.T @ np.eye(10)[trained.labels]).T
    return dataclasses.replace(
        trained,
        backbone=backbone,
        head=Head.from_matrix(10 * matrix),
        features=z,
        pooled=trained.features,
    )


def test_folding_loses_nothing_but_the_rounding_of_z(projecting):
    projection, base = projecting.backbone.projection, projecting.backbone.base
    q = projecting.pooled
    head = folded(projecting.head, projection, base.affine)
    assert head.weight.shape == (10, base.spec.num_features)
    sums = (q.astype(np.int64) - projection.center) @ projection.basis.astype(np.int64)
    z = sums * projection.multiplier.astype(np.float64) + 128
    assert ((z > 0) & (z < 255)).all(), "what is cut off is lost, too"
    x = (z - projection.affine.center) * projection.affine.gain
    unrounded = x @ projecting.head.weight.T + projecting.head.bias
    np.testing.assert_allclose(
        base.affine(q) @ head.weight.T + head.bias, unrounded, atol=2e-4 * np.ptp(unrounded)
    )
    half = 0.5 * np.abs(projecting.head.weight) @ projection.affine.gain
    assert (np.abs(unrounded - projecting.logits) <= half + 1e-3).all()


@pytest.mark.parametrize(
    "target",
    [pytest.param(t, marks=pytest.mark.slow) if t in SLOW else t for t in FILES],
)
def test_every_target_is_written_and_checked(projecting, target, tmp_path):
    report = export(projecting, target, tmp_path / FILES[target])
    card = json.loads(
        (tmp_path / (FILES[target].removesuffix(".pt")))
        .with_suffix(
            ".json" if target in ("model", "device") else f"{Path(FILES[target]).suffix}.json"
        )
        .read_text()
    )
    own = (
        projecting.backbone.base
        if target in ("model", "onnx", "executorch")
        else (projecting.backbone)
    )
    assert card["fingerprint"] == own.fingerprint
    assert card["num_features"] == own.spec.num_features
    assert card["head_sha256"] == projecting.head.sha256
    if target != "head":
        assert report.argmax_agreement is not None
        assert report.argmax_agreement >= 0.9


def shape_of(path: Path) -> tuple[set[str], int, list[str]]:
    """Records of the archive, bytes before compression, and the file's operators."""
    with zipfile.ZipFile(path) as archive:
        records = [r for r in archive.infolist() if not r.filename.endswith("fedhead.json")]
    names = {record.filename.partition("/")[2] for record in records}
    operators = list(read_card(path).operators)
    return names, sum(r.file_size for r in records if "card" not in r.filename), operators


def code_of(path: Path) -> str:
    with quantized_engine("qnnpack"), accepted_deprecations():
        model = torch.jit.load(path)
        graph = str(model.inlined_graph)
    return "\n".join(line.partition(" # ")[0] for line in graph.splitlines()).replace(
        "___torch_mangle_", ""
    )


def test_the_phones_file_is_that_of_a_head_without_projection(projecting, trained, tmp_path):
    head = folded(projecting.head, projecting.backbone.projection, trained.backbone.affine)
    export(projecting, "model", tmp_path / "a.pt")
    plain = dataclasses.replace(trained, head=head)
    export(plain, "model", tmp_path / "b.pt")
    assert shape_of(tmp_path / "a.pt") == shape_of(tmp_path / "b.pt")
    sizes = [(tmp_path / name).stat().st_size for name in ("a.pt", "b.pt")]
    assert abs(sizes[0] - sizes[1]) < 100  # of the card's figures
    with (
        exported_file(tmp_path / "a.pt") as one,
        exported_file(tmp_path / "b.pt") as other,
    ):
        np.testing.assert_array_equal(one.logits(trained.images), other.logits(trained.images))


def test_the_file_computes_the_networks_features_and_the_folded_head_to_the_bit(
    projecting, trained, tmp_path
):
    report = export(projecting, "model", tmp_path / "model.pt")
    base = projecting.backbone.base
    head = folded(projecting.head, projecting.backbone.projection, base.affine)
    with torch.no_grad():
        q = torch.from_numpy(base.features(trained.images))
        expected = PhoneHead(quantize_head(head, base.affine))(q).numpy()
    with exported_file(tmp_path / "model.pt") as model:
        logits = model.logits(trained.images)
    np.testing.assert_array_equal(logits, expected)
    # What the card says is the file's difference from the head that was trained on z.
    off = np.abs(logits - projecting.logits).max()
    assert off == pytest.approx(report.max_logit_difference)
    assert report.accuracy == (logits.argmax(1) == trained.labels).mean()
    same = (logits.argmax(1) == projecting.logits.argmax(1)).mean()
    assert report.argmax_agreement == same >= 0.95


def test_the_temperature_divides_the_folded_logits_too(projecting, tmp_path):
    calibration = Calibration(
        temperature=2.5, fitted_on="clients", fitted_examples=60, ece=0.1, ece_before=0.2,
        loss=1.0, loss_before=1.1, examples=60,
    )  # fmt: skip
    warm = dataclasses.replace(projecting, calibration=calibration)
    cold = export(projecting, "model", tmp_path / "cold.pt")
    report = export(warm, "model", tmp_path / "warm.pt")
    with exported_file(tmp_path / "cold.pt") as one, exported_file(tmp_path / "warm.pt") as other:
        a, b = (each.logits(projecting.images) for each in (one, other))
    np.testing.assert_allclose(a / 2.5, b, atol=0.01 * np.ptp(b))
    assert report.max_logit_difference == pytest.approx(cold.max_logit_difference / 2.5, rel=0.3)
    assert read_card(tmp_path / "warm.pt").head_sha256 == projecting.head.sha256


def test_a_phone_trains_on_the_projected_features(projecting, trained, tmp_path):
    export(projecting, "device", tmp_path / "device.pt")
    with quantized_engine("qnnpack"), accepted_deprecations():
        model = torch.jit.load(tmp_path / "device.pt")
        z = model.features(torch.from_numpy(trained.images.copy()))
        logits = model(torch.from_numpy(trained.images.copy())).detach().numpy()
    np.testing.assert_array_equal(z.numpy(), projecting.features[: len(trained.images)])
    np.testing.assert_allclose(logits, projecting.logits, atol=1e-3)


def test_without_the_unprojected_features_nothing_is_folded(projecting):
    with pytest.raises(ExportError, match="no unprojected ones beside them"):
        dataclasses.replace(projecting, pooled=None).for_prediction()


def test_folding_bears_gains_of_any_size():
    rng = np.random.default_rng(0)
    from tests.common.test_projection import random_projection

    projection = random_projection(rng, 30, 5, extreme=False)
    affine = Affine(
        (10 ** rng.uniform(-4, 4, 30)).astype(np.float32),
        rng.uniform(0, 255, 30).astype(np.float32),
    )
    head = Head(rng.normal(size=(3, 5)).astype(np.float32), np.ones(3, np.float32))
    q = rng.integers(0, 256, (8, 30)).astype(np.uint8)
    one = folded(head, projection, affine)
    x = (q - affine.center.astype(np.float64)) * affine.gain
    sums = projection.sums(q) * projection.multiplier.astype(np.float64)
    seen = (sums + 128 - projection.affine.center) * projection.affine.gain
    expected = seen @ head.weight.T.astype(np.float64) + head.bias
    got = x @ one.weight.T.astype(np.float64) + one.bias
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
