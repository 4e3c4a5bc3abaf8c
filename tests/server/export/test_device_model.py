"""What a phone trains with: the same steps, sums and refusals in every interpreter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.jit.mobile import _get_model_bytecode_version, _load_for_lite_interpreter

from client.client_round import ClientRound
from client.local import batch_orders, client_update
from client.memory import ClientMemory
from client.sgd import train_head
from common.backbone._deprecations import accepted_deprecations
from common.backbone.engine import quantized_engine
from common.errors import ExportError
from common.messages import TrainRequest
from common.privacy.integers import OFFSET, check_clipped, clipped, is_within, with_offset
from common.seeding import batch_order, batch_seed
from common.statistics import device_statistics, feature_statistics
from common.types import WHOLE, ClientPlan, FeatureSet, Head, LocalTraining
from server.export.card import Card, card_path
from server.export.device_arrays import visiting_order
from server.export.device_model import DeviceModel
from server.export.exporters import export
from server.export.runtime_cards import ExportReport
from server.export.trained import TrainedModel

Call = Callable[..., Any]
Files = Mapping[str, ExportReport]
INTERPRETERS = ("device", "lite")


def load(files: Files, target: str, engine: str = "qnnpack") -> Call:
    """Calls a file's methods by name, with the engine that it was loaded for."""
    path = str(files[target].path)
    with quantized_engine(engine), accepted_deprecations():
        lite = _load_for_lite_interpreter(path) if target == "lite" else None
        module = None if lite else torch.jit.load(path)

    def call(name: str, *args: Any) -> Any:
        with quantized_engine(engine), accepted_deprecations():
            return lite.run_method(name, *args) if lite else getattr(module, name)(*args)

    return call


@pytest.fixture(params=INTERPRETERS)
def phone(request: pytest.FixtureRequest, device_files: Files) -> Call:
    """A phone that has just started."""
    return load(device_files, request.param)


def examples(trained: TrainedModel) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(trained.features.copy()), torch.from_numpy(trained.labels.copy())


def as_features(trained: TrainedModel) -> FeatureSet:
    backbone = trained.backbone
    return FeatureSet(trained.features, trained.labels, backbone.affine, backbone.fingerprint)


def zero_head(trained: TrainedModel) -> tuple[Tensor, Tensor, str]:
    head = Head.zeros(trained.head.num_classes, trained.head.num_features)
    return torch.from_numpy(head.weight), torch.from_numpy(head.bias), trained.backbone.fingerprint


# The same steps


@given(
    n=st.integers(1, 200),
    seed=st.integers(0, 2**64 - 1),
    round_number=st.integers(1, 1000),
    client=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 100),
)
def test_batches_come_in_the_order_of_the_simulation(n, seed, round_number, client, epoch):
    names = {"seed": seed, "round_number": round_number, "client": client}
    order = visiting_order(n, batch_seed(**names), epoch)
    np.testing.assert_array_equal(order.numpy(), batch_order(n, **names, epoch=epoch))


def test_fifty_steps_give_the_head_of_the_reference_in_every_interpreter(trained, device_files):
    names = {"seed": 3, "round_number": 7, "client": 11}
    training = LocalTraining(lr=0.05, local_epochs=5, batch_size=6)
    features = as_features(trained)
    reference = train_head(
        torch.from_numpy(features.x),
        torch.from_numpy(features.labels),
        torch.from_numpy(trained.head.matrix),
        training,
        batch_orders(len(features), training, **names),
    )
    assert reference.steps == 50
    assert reference.delta.abs().max() > 0.01
    for target in INTERPRETERS:
        phone = load(device_files, target)
        q, labels = examples(trained)
        assert phone("loss", q, labels) == pytest.approx(reference.loss_before, abs=1e-6)
        losses = phone("train_epochs", q, labels, 0.05, 5, 6, batch_seed(**names))
        assert losses.shape == (5,)
        assert losses[0] > losses[-1] > 0
        assert phone("loss", q, labels) == pytest.approx(reference.loss_after, abs=1e-6)
        delta = phone("head_delta")
        torch.testing.assert_close(delta, reference.delta, rtol=0, atol=1e-6)
        weight, bias = phone("get_head")
        torch.testing.assert_close(
            torch.cat([weight, bias[:, None]], 1) - torch.from_numpy(trained.head.matrix),
            delta,
            rtol=0,
            atol=1e-6,
        )


def test_an_epoch_is_its_steps_one_by_one(trained, phone):
    q, labels = examples(trained)
    seed = batch_seed(seed=0, round_number=1, client=0)
    phone("set_head", *zero_head(trained))
    losses = phone("train_epochs", q, labels, 0.1, 1, 25, seed)
    together = phone("head_delta")
    phone("set_head", *zero_head(trained))
    batches = torch.split(visiting_order(len(q), seed, 0), 25)
    steps = [phone("train_step", q[batch], labels[batch], 0.1) for batch in batches]
    assert torch.equal(phone("head_delta"), together)
    weighted = np.average(steps, weights=[len(batch) for batch in batches])
    assert losses[0].item() == pytest.approx(weighted, rel=1e-6)
    assert steps[0] == pytest.approx(np.log(10), rel=1e-6)


def test_features_are_the_training_sides_and_logits_the_trained_heads(trained, phone):
    images = torch.from_numpy(trained.images.copy())
    np.testing.assert_array_equal(phone("features", images).numpy(), trained.features)
    np.testing.assert_allclose(phone("forward", images).numpy(), trained.logits, atol=1e-4)
    assert phone("fingerprint") == trained.backbone.fingerprint


def test_a_new_head_is_where_the_next_delta_starts(trained, phone):
    q, labels = examples(trained)
    weight, bias = torch.randn(10, 1280), torch.randn(10)
    phone("set_head", weight, bias, trained.backbone.fingerprint)
    assert not phone("head_delta").any()
    phone("train_step", q, labels, 0.1)
    after = torch.cat([phone("get_head")[0], phone("get_head")[1][:, None]], 1)
    before = torch.cat([weight, bias[:, None]], 1)
    assert torch.equal(phone("head_delta"), after - before)


@settings(deadline=None, max_examples=10)
@given(n=st.integers(1, 700), seed=st.integers(0, 99))
def test_statistics_are_the_simulations_to_the_last_integer(trained, device_files, n, seed):
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 256, (n, 1280), np.uint8)
    labels = rng.integers(0, 10, n)
    expected = feature_statistics(
        FeatureSet(q, labels, trained.backbone.affine, trained.backbone.fingerprint), 10
    )
    for target in INTERPRETERS:
        phone = load(device_files, target)
        found = phone("statistics", torch.from_numpy(q), torch.from_numpy(labels))
        got = device_statistics(*(tensor.numpy() for tensor in found))
        assert (got.gram.dtype, got.moments.dtype) == (expected.gram.dtype, expected.moments.dtype)
        np.testing.assert_array_equal(got.gram, expected.gram)
        np.testing.assert_array_equal(got.moments, expected.moments)


# Private rounds


def scales() -> st.SearchStrategy[float]:
    return st.sampled_from([0.0, 1e-44, 1e-30, 1e-3, 1.0, 1e20, 1e37])


@settings(deadline=None, max_examples=30)
@given(scale=scales(), clip=st.floats(1e-30, 1e30), zeros=st.floats(0, 1), seed=st.integers(0, 99))
def test_an_update_is_clipped_to_numpys_integers(device_files, scale, clip, zeros, seed):
    rng = np.random.default_rng(seed)
    delta = (rng.normal(size=(10, 1281)) * scale).astype(np.float32)
    delta[rng.random(delta.shape) < zeros] = 0
    for target in INTERPRETERS:
        integers, within = load(device_files, target)("clipped", torch.from_numpy(delta), clip)
        assert (integers.dtype, integers.shape, within.shape) == (torch.int64, (10, 1281), (1,))
        np.testing.assert_array_equal(integers.numpy(), with_offset(clipped(delta, clip)))
        assert bool(within) == is_within(delta, clip)


@pytest.mark.parametrize("clip", [1e-3, 0.03, 10.0])
@pytest.mark.parametrize(("epochs", "batch_size"), [(1, WHOLE), (2, 7)])
def test_a_private_update_is_the_clients_and_the_head_stays(
    trained, device_files, tmp_path, clip, epochs, batch_size
):
    names = {"seed": 3, "round_number": 7, "client": 11}
    plan = ClientPlan(
        fields=("clipped_delta", "within_clip"), weighting="uniform", clip=clip, unit_norm=5.0
    )
    request = TrainRequest(
        trained.head, plan, LocalTraining(1.0, epochs, batch_size), (11,), 7, "r", 3, "f" * 64,
        "individual",
    )  # fmt: skip
    client_round = ClientRound(request, ClientMemory(tmp_path))
    fields = client_update(client_round, 11, as_features(trained)).fields
    expected = fields["clipped_delta"].astype(np.int64)
    found = []
    for target in INTERPRETERS:
        phone = load(device_files, target)
        q, labels = examples(trained)
        phone("train_step", q, labels, 0.1)  # of the local head nothing may come in
        head = phone("get_head")
        integers, within = phone(
            "private_update", q, labels, 1.0, epochs, batch_size, batch_seed(**names), 5.0, clip
        )
        assert all(map(torch.equal, phone("get_head"), head))
        # Only the order of sums in the products differs.
        np.testing.assert_allclose(integers.numpy(), expected, atol=3)
        assert within.tolist() == fields["within_clip"].tolist() == [clip > 1]
        check_clipped(integers.numpy().astype(np.uint32))
        found.append(integers)
    assert torch.equal(*found)
    assert np.abs(expected - OFFSET).max() > 100


# What it refuses


def images_of(change: Call) -> Call:
    return lambda t: (change(torch.from_numpy(t.images.copy())),)


def examples_of(change: Call, *rest: Any) -> Call:
    return lambda t: (*change(*examples(t)), *rest)


def head_of(change: Call) -> Call:
    return lambda t: change(*zero_head(t))


REFUSED: dict[str, tuple[str, Call, str]] = {
    "float images": ("features", images_of(Tensor.float), "images are float32, expected uint8"),
    "no image": ("features", images_of(lambda x: x[:0]), "the batch holds no image"),
    "small images": ("forward", images_of(lambda x: x[..., 1:]), "expected (n, 3, 32, 32)"),
    "float features": (
        "train_step", examples_of(lambda q, y: (q.float(), y), 0.1), "features are float32"),
    "narrow features": (
        "loss", examples_of(lambda q, y: (q[:, 1:], y)), "[60, 1279], expected (n, 1280)"),
    "no example": (
        "train_step", examples_of(lambda q, y: (q[:0], y[:0]), 0.1), "holds no example"),
    "a label too large": (
        "train_epochs", examples_of(lambda q, y: (q, y + 1), 0.1, 1, 10, 0),
        "labels lie in [1, 10], expected [0, 9]"),
    "a label below zero": (
        "statistics", examples_of(lambda q, y: (q, y - 1)), "labels lie in [-1, 8], expected"),
    "int32 labels": (
        "train_step", examples_of(lambda q, y: (q, y.int()), 0.1), "labels are int32"),
    "fewer labels": (
        "train_step", examples_of(lambda q, y: (q, y[1:]), 0.1), "[59], expected (60,)"),
    "lr of zero": ("train_step", examples_of(lambda q, y: (q, y), 0.0), "lr is 0"),
    "lr of NaN": ("train_step", examples_of(lambda q, y: (q, y), float("nan")), "lr is nan"),
    "lr far too large": (
        "train_epochs", examples_of(lambda q, y: (q, y), 1e38, 9, 10, 0),
        "the trained head is not finite"),
    "no epoch": ("train_epochs", examples_of(lambda q, y: (q, y), 0.1, 0, 10, 0), "epochs is 0"),
    "empty batches": (
        "train_epochs", examples_of(lambda q, y: (q, y), 0.1, 1, 0, 0), "batch_size 0"),
    "clip of zero": (
        "private_update", examples_of(lambda q, y: (q, y), 0.1, 1, 10, 0, 1.0, 0.0), "clip is 0"),
    "infinite clip": (
        "clipped", lambda t: (torch.zeros(10, 1281), float("inf")),
        "clip is inf, expected a finite number above 0"),
    "norm of NaN": (
        "private_update", examples_of(lambda q, y: (q, y), 0.1, 1, 10, 0, float("nan"), 1.0),
        "unit_norm is nan"),
    "no private epoch": (
        "private_update", examples_of(lambda q, y: (q, y), 0.1, 0, 10, 0, 1.0, 1.0),
        "epochs is 0"),
    "update of NaN": (
        "clipped", lambda t: (torch.full([10, 1281], float("nan")), 1.0),
        "the update is not finite"),
    "narrow update": (
        "clipped", lambda t: (torch.zeros(10, 1280), 1.0), "[10, 1280], expected [10, 1281]"),
    "foreign fingerprint": (
        "set_head", head_of(lambda w, b, f: (w, b, "0" * 64)),
        "the head is of backbone 000000000000, expected"),
    "head of NaN": (
        "set_head", head_of(lambda w, b, f: (w * torch.nan, b, f)), "weight is not finite"),
    "infinite bias": (
        "set_head", head_of(lambda w, b, f: (w, b + torch.inf, f)), "bias is not finite"),
    "head of doubles": (
        "set_head", head_of(lambda w, b, f: (w.double(), b, f)), "weight is float64"),
    "head of fewer classes": (
        "set_head", head_of(lambda w, b, f: (w[1:], b, f)), "[9, 1280], expected [10, 1280]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_why_and_leaves_the_head_as_it_was(trained, phone, case):
    method, arguments, message = REFUSED[case]
    q, labels = examples(trained)
    phone("train_step", q, labels, 0.1)
    head, delta = phone("get_head"), phone("head_delta")
    with pytest.raises(torch.jit.Error) as caught:
        phone(method, *arguments(trained))
    assert message in str(caught.value)
    assert all(map(torch.equal, phone("get_head"), head))
    assert torch.equal(phone("head_delta"), delta)
    assert delta.any()


@pytest.mark.parametrize("target", INTERPRETERS)
def test_features_of_another_engine_are_refused_and_the_head_stays(trained, device_files, target):
    engines = torch.backends.quantized.supported_engines
    # Torch's default on x86. The engine onednn rounds nearly all of this backbone as qnnpack does.
    other = next(engine for engine in ("x86", "fbgemm", "onednn") if engine in engines)
    phone = load(device_files, target, engine=other)
    images = torch.from_numpy(trained.images.copy())
    with quantized_engine(other):
        before = phone("get_head")
        with pytest.raises(torch.jit.Error, match="set torch's quantized engine to qnnpack before"):
            phone("features", images)
        assert all(map(torch.equal, phone("get_head"), before))
        assert phone("forward", images).shape == (60, 10)


def test_a_backbone_for_another_engine_makes_no_device_file(trained, monkeypatch):
    spec = dataclasses.replace(trained.backbone.spec, engine="x86")
    monkeypatch.setattr(trained.backbone, "spec", spec)
    with pytest.raises(
        ExportError, match="for the quantized engine x86, and a phone computes with qnnpack"
    ):
        DeviceModel(trained.backbone, trained.head)


@pytest.mark.parametrize("target", INTERPRETERS)
def test_a_file_cut_off_anywhere_does_not_load(device_files, tmp_path, target):
    data = device_files[target].path.read_bytes()
    for size in (0, 1, 1000, len(data) // 2, len(data) - 1):
        path = tmp_path / "cut"
        path.write_bytes(data[:size])
        with pytest.raises(RuntimeError), accepted_deprecations():
            _load_for_lite_interpreter(str(path)) if target == "lite" else torch.jit.load(str(path))


# The lite file for older runtimes


@pytest.mark.slow
def test_a_backported_file_says_its_version_and_trains_alike(trained, device_files, tmp_path):
    report = export(trained, "lite", tmp_path / "old.ptl", bytecode=7)
    card = Card.model_validate_json((tmp_path / "old.ptl.json").read_text())
    assert card.bytecode_version == _get_model_bytecode_version(str(report.path)) == 7
    assert {"aten::log_softmax.int", "quantized::conv2d_relu.new"} <= set(card.operators)
    q, labels = examples(trained)
    deltas = []
    for files in (device_files, {"lite": report}):
        phone = load(files, "lite")
        phone("train_epochs", q, labels, 0.05, 2, 7, 5)
        deltas.append(phone("head_delta"))
    assert torch.equal(*deltas)


@pytest.mark.parametrize("version", [3, 99])
def test_a_bytecode_that_this_torch_cannot_write_is_refused(trained, tmp_path, version):
    with pytest.raises(ExportError, match=f"version {version} cannot be written by torch .* 4 to"):
        export(trained, "lite", tmp_path / "old.ptl", bytecode=version)
    assert list(tmp_path.iterdir()) == []


def test_the_card_lists_methods_as_a_caller_sees_them(device_files):
    card = Card.model_validate_json(card_path(device_files["lite"].path).read_text())
    assert card.methods["train_epochs"] == (
        "(Tensor features, Tensor labels, float lr, int epochs, int batch_size, int seed) -> Tensor"
    )
    assert card.methods["get_head"] == "() -> Tuple[Tensor, Tensor]"
    assert set(card.methods) == {
        "forward", "features", "train_step", "train_epochs", "loss", "get_head", "set_head",
        "set_terms", "head_delta", "statistics", "fingerprint", "private_update", "clipped",
    }  # fmt: skip


@pytest.mark.parametrize("target", INTERPRETERS)
def test_mobilenet_v2_takes_at_most_2_7_megabytes(device_files, target):
    path = device_files[target].path
    assert path.stat().st_size == device_files[target].model_bytes <= 2_700_000
