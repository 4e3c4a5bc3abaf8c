"""Files of a backbone whose features are those of inner blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.backbone._deprecations import accepted_deprecations
from common.backbone.engine import quantized_engine
from server.export.exporters import FILES, export
from server.export.targets.executorch import StandardModel

pytestmark = pytest.mark.wide

SLOW = {"lite", "onnx", "executorch", "device-pte"}


@pytest.fixture(scope="module", params=["compact", "gap+mid"])
def tapped(request, make_trained):
    return make_trained("mobilenet_v2", "random", 32, request.param)


@pytest.mark.parametrize(
    "target",
    [pytest.param(t, marks=pytest.mark.slow) if t in SLOW else t for t in FILES],
)
def test_every_target_computes_the_trained_logits(tapped, target, tmp_path):
    """The export itself compares them; TorchScript's must agree bit for bit."""
    report = export(tapped, target, tmp_path / FILES[target])
    assert report.path.stat().st_size > 0


def test_a_model_without_the_layers_that_it_does_not_need_is_smaller(
    make_trained, trained, tmp_path
):
    compact = make_trained("mobilenet_v2", "random", 32, "compact")
    for name, model in (("gap", trained), ("compact", compact)):
        export(model, "model", tmp_path / f"{name}.pt")
    sizes = {name: (tmp_path / f"{name}.pt").stat().st_size for name in ("gap", "compact")}
    assert sizes["compact"] < sizes["gap"] - 300_000  # of 410,000 weights, some compressed


def test_standard_operators_give_each_blocks_features(tapped):
    images = torch.from_numpy(tapped.images[:16].copy())
    with torch.no_grad():
        got = StandardModel(tapped.backbone, None).eval()(images).numpy()
    assert got.shape == (16, tapped.backbone.spec.num_features)
    ends = np.cumsum([tap.num_features for tap in tapped.backbone.spec.taps])[:-1]
    parts = (np.split(values, ends, 1) for values in (got, tapped.features[:16]))
    # Ties are rounded either way on the path through the network, and a random one amplifies that;
    # features of another block would differ by more than their own spread.
    shares = [np.abs(one - other).mean() / other.std() for one, other in zip(*parts, strict=True)]
    assert shares[0] < 0.05
    assert max(shares) < 0.5


def test_a_device_trains_on_them(tapped, tmp_path):
    export(tapped, "device", tmp_path / "device.pt")
    with quantized_engine("qnnpack"), accepted_deprecations():
        device = torch.jit.load(tmp_path / "device.pt")
        q = device.features(torch.from_numpy(tapped.images.copy()))
        assert np.array_equal(q.numpy(), tapped.features)
        labels = torch.from_numpy(tapped.labels.copy())
        before = device.loss(q, labels)
        device.train_epochs(q, labels, 1e-3, 2, 10, 0)
        assert device.loss(q, labels) < before
