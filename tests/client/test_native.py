"""The C++ device: the same features, steps and federated round as Python's, from compiled code."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch.jit.mobile import _load_for_lite_interpreter

import server.app
from client.app import app as client_app
from client.local import batch_orders
from client.sgd import train_head
from common.backbone._deprecations import accepted_deprecations
from common.backbone.directions import find_projection
from common.backbone.engine import quantized_engine
from common.backbone.frozen import FrozenBackbone, load_by_fingerprint
from common.codecs import find_codec
from common.codecs.downlink import add_change, encode_change
from common.codecs.uplink import Uplink, encode_sum
from common.experiment import client_shares, experiment_dataset, experiment_features, run_config
from common.files import cache_root
from common.messages import ClientReport, TrainReply, TrainRequest, payload_bytes
from common.privacy.integers import OFFSET, check_clipped
from common.seeding import batch_seed
from common.statistics import device_statistics, feature_statistics
from common.types import ClientPlan, FeatureSet, Head, LocalTraining
from server.app import run_experiment
from server.export.exporters import export
from server.export.run_model import trained_model
from server.export.runtime_cards import ExportReport
from server.export.trained import TrainedModel
from simulations.engines.in_process import InProcessGrid
from simulations.run import read_summary

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parent.parent.parent / "client" / "native"
NAMES = {"seed": 3, "round_number": 7, "client": 11}
TRAINING = LocalTraining(lr=0.05, local_epochs=5, batch_size=6)
FLAGS = (
    "--lr", "0.05", "--epochs", "5", "--batch-size", "6",
    "--seed", "3", "--round", "7", "--client", "11",
)  # fmt: skip

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with CMake against the libtorch of the installed torch."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install cmake g++")
    build = tmp_path_factory.mktemp("native")
    prefix = f"-DCMAKE_PREFIX_PATH={Path(torch.__file__).parent}"
    for command in (["-S", SOURCE, "-B", build, prefix], ["--build", build]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "fedhead-device"


@pytest.fixture
def run(program: Path, device_files: Any) -> Run:
    def call(data: Path, *flags: object, model: Path | None = None) -> Any:
        command = [program, model or device_files["lite"].path, data, *flags]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True)

    return call


@pytest.fixture
def features_file(trained: Any, tmp_path: Path) -> Path:
    path = tmp_path / "features.safetensors"
    save_file({"features": trained.features, "labels": trained.labels}, path)
    return path


def write_images(folder: Path, images: Any, labels: Any) -> Path:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        image.tofile(folder / str(label) / f"{i:05}.rgb")
    return folder


def reference(trained: Any) -> torch.Tensor:
    """What ``client.sgd`` makes of the same examples, from the same head, in the same batches."""
    backbone = trained.backbone
    features = FeatureSet(trained.features, trained.labels, backbone.affine, backbone.fingerprint)
    result = train_head(
        torch.from_numpy(features.x),
        torch.from_numpy(features.labels),
        torch.from_numpy(trained.head.matrix),
        TRAINING,
        batch_orders(len(features), TRAINING, **NAMES),
    )
    assert result.steps == 50
    return result.delta


def test_fifty_steps_are_the_same_in_cpp_both_interpreters_and_the_reference(
    trained, device_files, run, features_file, tmp_path
):
    done = run(features_file, "--out", tmp_path / "delta.safetensors", *FLAGS)
    assert done.returncode == 0, done.stderr
    native = load_file(tmp_path / "delta.safetensors")["delta"]
    assert (native.dtype, native.shape) == (np.float32, (10, 1281))

    arguments = (
        torch.from_numpy(trained.features.copy()), torch.from_numpy(trained.labels.copy()),
        TRAINING.lr, TRAINING.local_epochs, TRAINING.batch_size, batch_seed(**NAMES),
    )  # fmt: skip
    with quantized_engine("qnnpack"), accepted_deprecations():
        full = torch.jit.load(str(device_files["device"].path))
        lite = _load_for_lite_interpreter(str(device_files["lite"].path))
    full.train_epochs(*arguments)
    lite.run_method("train_epochs", *arguments)
    expected = reference(trained)
    assert expected.abs().max() > 0.01
    for delta in (torch.from_numpy(native), full.head_delta(), lite.run_method("head_delta")):
        torch.testing.assert_close(delta, expected, rtol=0, atol=1e-6)


def test_raw_images_become_the_training_sides_features_and_the_same_delta(trained, run, tmp_path):
    images = write_images(tmp_path / "images", trained.images, trained.labels)
    features, delta = tmp_path / "features.safetensors", tmp_path / "delta.safetensors"
    done = run(images, "--features", features, "--out", delta, *FLAGS)
    assert done.returncode == 0, done.stderr
    found = load_file(features)
    np.testing.assert_array_equal(found["features"], trained.features)
    np.testing.assert_array_equal(found["labels"], trained.labels)
    native = torch.from_numpy(load_file(delta)["delta"])
    torch.testing.assert_close(native, reference(trained), rtol=0, atol=1e-6)
    assert run(features, "--out", tmp_path / "again", *FLAGS).stdout == done.stdout


def test_the_update_says_of_whom_and_how_well(trained, run, features_file, tmp_path):
    done = run(features_file, "--out", tmp_path / "delta.safetensors", *FLAGS)
    with safe_open(tmp_path / "delta.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["fingerprint"] == trained.backbone.fingerprint
    assert metadata["num-examples"] == "60"
    assert float(metadata["loss-before"]) > float(metadata["loss-after"]) > 0
    assert len(done.stdout.splitlines()) == TRAINING.local_epochs + 1


def test_an_exported_head_is_where_training_starts(trained, run, features_file, tmp_path):
    export(trained, "head", tmp_path / "head.safetensors")
    flags = ("--head", tmp_path / "head.safetensors", *FLAGS)
    assert run(features_file, "--out", tmp_path / "a", *flags).returncode == 0
    assert run(features_file, "--out", tmp_path / "b", *FLAGS).returncode == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def update_bytes(path: Path) -> bytes:
    return load_file(path)["delta"].tobytes()


@pytest.mark.parametrize("codec", ["none", "int8", "drive"])
def test_an_update_is_the_payload_that_a_python_client_sends(
    codec, trained, run, features_file, tmp_path
):
    assert run(features_file, "--out", tmp_path / "plain", *FLAGS).returncode == 0
    delta = load_file(tmp_path / "plain")["delta"]
    done = run(features_file, "--out", tmp_path / "update", "--codec", codec, *FLAGS)
    assert done.returncode == 0, done.stderr
    with safe_open(tmp_path / "update", framework="numpy") as file:
        assert file.metadata()["codec"] == codec
    payload = update_bytes(tmp_path / "update")
    uplink = uplink_of(codec, 1280)
    assert uplink.encode(NAMES["client"], {"delta": delta}) == {"delta": payload}
    decoded = uplink.decode(NAMES["client"], {"delta": payload})["delta"]
    assert np.corrcoef(decoded.ravel(), delta.ravel())[0, 1] > 0.75
    assert len(payload) == {"none": 51_240, "int8": 12_850, "drive": 2_600}[codec]


def uplink_of(codec: str, num_features: int) -> Uplink:
    plan = ClientPlan(fields=("delta",), uplink=codec)
    return Uplink(plan, 10, num_features, NAMES["seed"], NAMES["round_number"])


def write_changes(path: Path, head: Any, seed: int, codec: str) -> Any:
    """Changes of three rounds, one of which changes nothing; returns where they lead."""
    rounds, random = {}, np.random.default_rng(0)
    for number in (9, 10, 11):
        change = random.normal(size=head.shape).astype(np.float32) * np.float32(number != 10)
        payload = encode_change(head, head + change, find_codec(codec), seed, number)
        head = add_change(head, payload, find_codec(codec), seed, number)
        rounds[str(number)] = np.frombuffer(payload, np.uint8)
    save_file(rounds, path, {"codec": codec})
    return head


@pytest.mark.parametrize("codec", ["none", "int8", "drive"])
def test_a_heads_changes_lead_to_the_bits_of_the_head_that_the_server_means(
    codec, trained, run, features_file, tmp_path
):
    export(trained, "head", tmp_path / "head")
    expected = write_changes(tmp_path / "changes", trained.head.matrix, NAMES["seed"], codec)
    known = ("--head", tmp_path / "head", "--changes", tmp_path / "changes")
    kept = ("--keep-head", tmp_path / "kept")
    done = run(features_file, "--out", tmp_path / "update", *known, *kept, *FLAGS)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "kept")
    matrix = Head(found["weight"], found["bias"]).matrix
    np.testing.assert_array_equal(matrix.view(np.uint32), expected.view(np.uint32))
    # Training starts there, and the next round may.
    again = run(features_file, "--out", tmp_path / "b", "--head", tmp_path / "kept", *FLAGS)
    assert again.returncode == 0, again.stderr
    assert update_bytes(tmp_path / "update") == update_bytes(tmp_path / "b")


@pytest.mark.parametrize(("clip", "within"), [("0.03", 0), ("10", 1)])
def test_a_private_update_is_pythons_to_the_bit_and_tells_nothing_else(
    clip, within, trained, device_files, run, features_file, tmp_path
):
    flags = ("--out", tmp_path / "update", "--clip", clip, "--unit-norm", "5", *FLAGS)
    done = run(features_file, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the clipped update, without number of examples and losses\n"
    with safe_open(tmp_path / "update", framework="numpy") as file:
        figures = {k: v for k, v in file.metadata().items() if k != "fingerprint"}
        assert set(file.keys()) == {"clipped_delta", "within_clip"}
    blank = {"num-examples": "1", "loss-before": "0", "loss-after": "0", "codec": "none"}
    assert figures == blank
    found = load_file(tmp_path / "update")
    assert found["within_clip"].tolist() == [within]
    with quantized_engine("qnnpack"), accepted_deprecations():
        lite = _load_for_lite_interpreter(str(device_files["lite"].path))
        expected, _ = lite.run_method(
            "private_update", torch.from_numpy(trained.features.copy()),
            torch.from_numpy(trained.labels.copy()), TRAINING.lr, TRAINING.local_epochs,
            TRAINING.batch_size, batch_seed(**NAMES), 5.0, float(clip),
        )  # fmt: skip
    np.testing.assert_array_equal(found["clipped_delta"], expected.numpy())
    sent = found["clipped_delta"].astype(np.uint32)
    check_clipped(sent)
    assert np.abs(sent.astype(np.int64) - OFFSET).max() > 10


def truncated(path: Path) -> Path:
    cut = path.parent / "cut.ptl"
    cut.write_bytes(path.read_bytes()[:-1000])
    return cut


def foreign_head(path: Path) -> None:
    arrays = {"weight": np.zeros((10, 1280), np.float32), "bias": np.zeros(10, np.float32)}
    save_file(arrays, path, {"fingerprint": "0" * 64})


def test_refusals_are_one_line_and_leave_no_update(
    trained, device_files, run, features_file, tmp_path
):
    out = tmp_path / "delta"
    foreign_head(tmp_path / "foreign")
    q, labels = trained.features, trained.labels
    save_file({"features": q, "labels": labels + 1}, tmp_path / "labels")
    save_file({"features": q.astype(np.float32), "labels": labels}, tmp_path / "floats")
    save_file({"features": q[:0], "labels": labels[:0]}, tmp_path / "empty")
    (tmp_path / "cut").write_bytes(features_file.read_bytes()[:-1])
    export(trained, "head", tmp_path / "head")
    short = np.array([0, 91], np.uint32).view(np.uint8)  # a factor, and how many bytes follow
    short = np.concatenate([short, np.zeros(91, np.uint8)])
    save_file({"9": short}, tmp_path / "short", {"codec": "drive"})
    save_file({"9": np.zeros(99, np.uint8)}, tmp_path / "zip", {"codec": "zip"})
    save_file({"x": np.zeros(99, np.uint8)}, tmp_path / "unnamed", {"codec": "drive"})
    known = ("--out", out, "--head", tmp_path / "head", "--keep-head", out, "--changes")
    (tmp_path / "small" / "3").mkdir(parents=True)
    (tmp_path / "small" / "3" / "a.rgb").write_bytes(bytes(3 * 31 * 31))
    (tmp_path / "odd" / "3").mkdir(parents=True)
    (tmp_path / "odd" / "3" / "a.rgb").write_bytes(bytes(1000))
    cases = {
        "labels lie in [1, 10], expected [0, 9]": run(tmp_path / "labels", "--out", out),
        "features are float32, expected uint8": run(tmp_path / "floats", "--out", out),
        "the batch holds no example": run(tmp_path / "empty", "--out", out),
        "cut off": run(tmp_path / "cut", "--out", out),
        "expected (n, 3, 32, 32)": run(tmp_path / "small", "--out", out),
        "1000 bytes, expected a square": run(tmp_path / "odd", "--out", out),
        "the head is of backbone 000000000000": run(
            features_file, "--out", out, "--head", tmp_path / "foreign"
        ),
        "nowhere: cannot be read": run(tmp_path / "nowhere", "--out", out),
        "cut.ptl": run(features_file, "--out", out, model=truncated(device_files["lite"].path)),
        "lr is 0": run(features_file, "--out", out, "--lr", "0"),
        "--epochs is x, expected a number": run(features_file, "--out", out, "--epochs", "x"),
        "no such codec: eden, expected one of": run(features_file, "--out", out, "--codec", "eden"),
        "--changes needs --head": run(features_file, "--out", out, "--changes", "x"),
        "short: change 9 takes 91 bytes, expected 2600": run(
            features_file, *known, tmp_path / "short"
        ),
        "zip: no such codec: zip": run(features_file, *known, tmp_path / "zip"),
        "the round of a change is x": run(features_file, *known, tmp_path / "unnamed"),
        "no such option: --speed": run(features_file, "--out", out, "--speed", "1"),
        "--out is missing": run(features_file),
        "clip is -1": run(features_file, "--out", out, "--clip", "-1"),
        "clip is 0": run(features_file, "--out", out, "--clip", "0"),
        "--clip is x, expected a number": run(features_file, "--out", out, "--clip", "x"),
        "--unit-norm needs --clip": run(features_file, "--out", out, "--unit-norm", "5"),
        "--clip needs --codec none": run(
            features_file, "--out", out, "--clip", "1", "--codec", "drive"
        ),
    }
    for message, done in cases.items():
        assert done.returncode != 0, message
        first = done.stderr.splitlines()[0]
        assert first.startswith("fedhead-device: "), done.stderr
        assert message in first
        assert done.returncode == 2 or done.stderr.count("\n") == 1, done.stderr
        assert not out.exists(), message


# A projected backbone


@pytest.fixture(scope="session")
def projected(trained: TrainedModel) -> TrainedModel:
    """The same backbone, whose features are 63 directions, and a head of zeros."""
    base = trained.backbone
    backbone = base.projected(find_projection(trained.features, base.affine, 63, 0))
    return dataclasses.replace(
        trained,
        backbone=backbone,
        head=Head.zeros(10, 63),
        features=backbone.features(trained.images),
        pooled=trained.features,
    )


@pytest.mark.parametrize("codec", ["none", "drive"])
def test_a_projected_backbone_needs_nothing_of_the_program(codec, projected, run, tmp_path):
    model = export(projected, "lite", tmp_path / "device.ptl").path
    images = write_images(tmp_path / "images", projected.images, projected.labels)
    flags = ("--out", tmp_path / "plain", "--features", tmp_path / "features", *FLAGS)
    done = run(images, *flags, model=model)
    assert done.returncode == 0, done.stderr
    z = load_file(tmp_path / "features")["features"]
    np.testing.assert_array_equal(z, projected.features)
    assert (z.shape, len(np.unique(z)) > 50) == ((60, 63), True)
    delta = load_file(tmp_path / "plain")["delta"]
    expected = reference(projected)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(torch.from_numpy(delta), expected, rtol=0, atol=1e-6)

    done = run(
        tmp_path / "features", "--out", tmp_path / "update", "--codec", codec, *FLAGS, model=model
    )
    assert done.returncode == 0, done.stderr
    payload = update_bytes(tmp_path / "update")
    uplink = uplink_of(codec, 63)
    assert uplink.encode(NAMES["client"], {"delta": delta}) == {"delta": payload}
    assert len(payload) == {"none": 2560, "drive": 120}[codec]


def test_a_projected_backbones_statistics_are_the_simulations(projected, tmp_path):
    path = export(projected, "lite", tmp_path / "device.ptl").path
    with quantized_engine("qnnpack"), accepted_deprecations():
        lite = _load_for_lite_interpreter(str(path))
        z = lite.run_method("features", torch.from_numpy(projected.images.copy()))
        sums = lite.run_method("statistics", z, torch.from_numpy(projected.labels.copy()))
    found = device_statistics(*(tensor.numpy() for tensor in sums))
    backbone = projected.backbone
    features = FeatureSet(
        projected.features, projected.labels, backbone.affine, backbone.fingerprint
    )
    expected = feature_statistics(features, 10)
    np.testing.assert_array_equal(found.gram, expected.gram)
    np.testing.assert_array_equal(found.moments, expected.moments)


# A federated round


class _WithNativeClient:
    """The real ClientApp, but one node is a phone that runs the C++ program on its own images."""

    NODE = 2

    def __init__(self, program: Path, folder: Path, config: Any) -> None:
        self.program, self.folder, self.config = program, folder, config
        self.trained = 0

    def __call__(self, message: Message, context: Context) -> Message:
        is_native = context.node_config["partition-id"] == self.NODE
        if not is_native or message.metadata.message_type != "train":
            return client_app(message, context)
        return Message(self._reply(TrainRequest.read(message.content)).write(), reply_to=message)

    def _reply(self, request: TrainRequest) -> TrainReply:
        (client,) = request.clients
        backbone = load_by_fingerprint(request.fingerprint, cache_root())
        assert backbone is not None
        positions = client_shares(self.config)[client].train
        dataset = experiment_dataset(self.config)
        size = backbone.spec.input_size
        images = write_images(
            self.folder / "images", dataset.images(positions, size), dataset.labels[positions]
        )
        delta, head = self.folder / "delta", self.folder / "head"
        arrays = {"weight": request.head.weight, "bias": request.head.bias}
        save_file(arrays, head, {"fingerprint": request.fingerprint})
        training = request.training
        flags = {
            "--head": head, "--out": delta, "--lr": training.lr, "--epochs": training.local_epochs,
            "--batch-size": training.batch_size, "--seed": request.seed,
            "--round": request.round_number, "--client": client, "--codec": request.plan.uplink,
        }  # fmt: skip
        command = [self.program, self._model(backbone), images]
        command += [part for flag in flags.items() for part in flag]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        self.trained += 1
        return self._read(delta, client, request)

    def _model(self, backbone: FrozenBackbone) -> Path:
        path = self.folder / "device.ptl"
        test = experiment_features(self.config, backbone).select(
            experiment_dataset(self.config).test
        )
        head = Head.zeros(10, backbone.spec.num_features)
        export(trained_model(self.config, backbone, head, test), "lite", path)
        return path

    def _read(self, delta: Path, client: int, request: TrainRequest) -> TrainReply:
        with safe_open(delta, framework="numpy") as file:
            metadata, array = file.metadata(), file.get_tensor("delta")
        n = int(metadata["num-examples"])
        losses = (float(metadata[f"loss-{when}"]) for when in ("before", "after"))
        payloads = {"delta": array.tobytes()}
        assert request.reduce == "sum"
        if request.uplink.is_summed(1):  # a node sends the weighted sum of its clients
            payloads = encode_sum({"delta": (n * array.astype(np.float64)).astype(np.float32)})
        reply = TrainReply(
            metadata["fingerprint"],
            (ClientReport(client, n, *losses),),
            payloads={name: (payload,) for name, payload in payloads.items()},
        )
        assert payload_bytes(reply.write()) > array.nbytes
        return reply


def heads_of_a_round(
    program: Path, tiny: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> list[Any]:
    """Heads (10, 1281) of a round of five Python clients, and with the C++ program as one."""
    report = ExportReport("model", Path(), 0, "")
    monkeypatch.setattr(server.app, "export", lambda *_: report)
    options = (
        "partition.num-clients=5", "simulation.nodes=5", "train.rounds=1",
        "train.clients-per-round=0", "train.local-epochs=3", "strategy.name=fedavg",
        f"codec.up={codec}",
    )  # fmt: skip
    heads = []
    for name in ("python", "native"):
        run = tiny(*options, name=name)
        values = {"experiment": str(run / "config.toml"), "overrides": ""}
        config = run_config(values)
        native = _WithNativeClient(program, folder, config)
        app: Any = client_app if name == "python" else native
        run_experiment(InProcessGrid(app, 5, values), config)
        assert native.trained == (name == "native")
        assert read_summary(run)["valid_updates"] == 5
        kept = load_file(run / "head.safetensors")
        heads.append(Head(kept["weight"], kept["bias"]).matrix)
    return heads


def test_a_round_with_a_cpp_client_gives_the_head_of_five_python_clients(
    program, tiny, tmp_path, monkeypatch
):
    python, native = heads_of_a_round(program, tiny, tmp_path, monkeypatch, "none")
    assert np.abs(python).max() > 1e-3
    np.testing.assert_allclose(native, python, rtol=0, atol=1e-6)


def test_a_round_with_a_cpp_client_that_sends_one_bit_a_number_gives_the_same_head(
    program, tiny, tmp_path, monkeypatch
):
    python, native = heads_of_a_round(program, tiny, tmp_path, monkeypatch, "drive")
    # The deltas differ by their last bits. A rotated number that is nearly zero may change its
    # sign by that: each time, 0.4 % of the head. A wrong seed would be far more.
    assert np.linalg.norm(native - python) < 0.01 * np.linalg.norm(python)


def test_a_cpp_update_of_another_backbone_is_refused_by_the_server(
    program, tiny, tmp_path, monkeypatch, caplog
):
    report = ExportReport("model", Path(), 0, "")
    monkeypatch.setattr(server.app, "export", lambda *_: report)
    folder = tiny("simulation.nodes=8", "train.rounds=1", "train.clients-per-round=0")
    values = {"experiment": str(folder / "config.toml"), "overrides": ""}
    config = run_config(values)
    native = _WithNativeClient(program, tmp_path, config)
    read = native._read
    monkeypatch.setattr(
        native, "_read", lambda *args: dataclasses.replace(read(*args), fingerprint="f" * 64)
    )
    run_experiment(InProcessGrid(native, 8, values), config)  # type: ignore[arg-type]
    summary = read_summary(folder)
    assert (summary["valid_updates"], summary["rejected_updates"]) == (7, 1)
