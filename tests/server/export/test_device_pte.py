"""device.pte in ExecuTorch's own runtime: the bits of training, the client's steps, exact sums."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import common.backbone.int8
from client.sgd import Terms, train_head
from common.backbone.directions import find_projection
from common.backbone.prepare import prepare_backbone
from common.backbone.recipe import Recipe
from common.errors import ExportError, RunError
from common.images import decode_array
from common.statistics import EXACT_ROWS
from common.types import Head, LocalTraining
from server.export.card import Card
from server.export.exported import exported
from server.export.exporters import export
from server.export.targets.pte_methods import ABILITIES, METHODS
from simulations.bench.speed.arm64 import default_folder, emulated_python
from tests.server.export.pte_problems import CASES, Problem, check_clipped, check_sums

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parent / "device_pte_probe.cpp"
LIBRARIES = ("", "_kernels_optimized", "_kernels_quantized", "_backend_xnnpack", "_threadpool")


@pytest.fixture(scope="module")
def model(make_trained):
    """The default network at its default size."""
    return make_trained("mobilenet_v2", "imagenet", 96, "compact")


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    pytest.importorskip("executorch")
    path = tmp_path_factory.mktemp("pte") / "device.pte"
    export(model, "device-pte", path)
    return path


def loaded(path):
    """Calls the methods of a file by their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says of itself that it is experimental
        import executorch.kernels.quantized  # noqa: F401  # what is not in the core runtime
        from executorch.runtime import Runtime

    program, methods = Runtime.get().load_program(path), {}
    assert program.method_names == METHODS.keys()

    def call(name, *inputs):
        if name not in methods:
            methods[name] = program.load_method(name)
        outputs = methods[name].execute(inputs)
        return [o.clone() if isinstance(o, torch.Tensor) else o for o in outputs]

    return call


@pytest.fixture(scope="module")
def call(file):
    return loaded(file)


@pytest.fixture(scope="module")
def thousand(model):
    """1,000 real images with their labels and the features that qnnpack computes of them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images[-1000:] * (255 / 16)).astype(np.uint8)
    images = np.stack([decode_array(image, 96) for image in pixels])
    q = np.concatenate([model.backbone.features(part) for part in np.split(images, 20)])
    return images, digits.target[-1000:].astype(np.int64), q


def test_features_of_a_thousand_images_are_qnnpacks_to_the_bit(call, thousand):
    images, _, q = thousand
    found = [call("features", image)[0] for image in torch.from_numpy(images).split(1)]
    assert np.array_equal(torch.cat(found).numpy(), q)


@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_are_those_of_the_client(model, call, name):
    method = "train_step_preconditioned" if name == "preconditioner" else "train_step"
    Problem(model, CASES[name]).check(lambda *inputs: call(method, *inputs))


@pytest.mark.parametrize("rows", [1, 7, EXACT_ROWS])
def test_sums_are_exact(model, call, thousand, rows):
    _, labels, q = thousand
    for features in (q[:rows], np.full_like(q[:rows], 255)):
        check_sums(lambda *x: call("gram", *x), features, labels[:rows], model.backbone.affine)


def test_more_rows_than_are_exact_are_refused(call, thousand):
    _, labels, q = thousand
    rows = EXACT_ROWS + 1
    with pytest.raises(RuntimeError, match="0x"):
        call("gram", torch.from_numpy(q[:rows]), torch.from_numpy(labels[:rows]))


def test_a_clipped_update_is_that_of_the_client(model, call):
    check_clipped(lambda *inputs: call("clipped", *inputs), model.head.matrix.shape)


def test_it_holds_what_a_phone_must_know(model, call):
    images, features = call("probe")
    assert torch.equal(call("features", images)[0], features)
    assert np.array_equal(model.backbone.features(images), features.numpy())
    assert np.array_equal(call("head")[0].numpy(), model.head.matrix)
    assert call("fingerprint") == [model.backbone.fingerprint]
    assert call("classes")[0].split("\n") == list(model.classes)
    assert call("abilities")[0].split(" ") == list(ABILITIES)
    numbers = [call(name) for name in ("input_size", "num_features", "num_classes", "most_rows")]
    assert numbers == [[96], [model.backbone.spec.num_features], [10], [256]]


def test_it_is_below_3_mb_and_its_card_says_what_it_takes(model, file):
    assert file.stat().st_size < 3_000_000
    card = Card.model_validate_json(file.with_name("device.pte.json").read_text())
    assert card.methods == METHODS
    assert card.file is not None
    assert card.file.features_equal
    assert card.input.startswith("uint8 (1, 3, 96, 96), RGB")
    assert card.self_check is not None
    assert card.self_check.argmax_agreement == 1


def test_the_lines_on_its_card_run(model, file, thousand, monkeypatch):
    monkeypatch.chdir(file.parent)
    card = json.loads(file.with_name("device.pte.json").read_text())
    names = {
        "image": torch.from_numpy(thousand[0][:1]),
        "labels": torch.from_numpy(thousand[1][:1]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec("\n".join(card["usage"]), names)
    assert names["matrix"].shape == model.head.matrix.shape
    assert not np.array_equal(names["matrix"].numpy(), model.head.matrix)


def test_it_predicts_as_other_files_do(model, file):
    with exported(file) as loaded_file:
        logits = loaded_file.logits(model.images)
    np.testing.assert_allclose(logits, model.logits[: len(logits)], rtol=1e-4, atol=1e-4)


def test_of_a_projected_backbone_it_gives_and_trains_on_projected_features(model, tmp_path):
    pytest.importorskip("executorch")
    projection = find_projection(model.features, model.backbone.affine, 24, 0)
    z = projection(model.features)
    backbone = model.backbone.projected(projection)
    head = Head(np.zeros((10, 24), np.float32), np.zeros(10, np.float32))
    projecting = dataclasses.replace(model, backbone=backbone, head=head, features=z)
    export(projecting, "device-pte", tmp_path / "device.pte")
    call = loaded(tmp_path / "device.pte")
    found = [call("features", torch.from_numpy(i[None].copy()))[0] for i in model.images]
    assert np.array_equal(torch.cat(found).numpy(), z[: len(model.images)])
    assert call("fingerprint") == [backbone.fingerprint]
    Problem(projecting, CASES["all"]).check(lambda *inputs: call("train_step", *inputs))


def test_a_backbone_whose_scales_do_not_agree_is_refused(model, tmp_path, monkeypatch):
    """As backbones from before, which old runs hold."""
    pytest.importorskip("executorch")
    monkeypatch.setattr(common.backbone.int8, "make_agree", lambda *_: None)
    recipe = Recipe("mobilenet_v2", "imagenet", 64, "qnnpack", 0, "standardize", 0, features="gap")
    images = np.ascontiguousarray(model.images[:, :, ::3, ::3].repeat(2, 2).repeat(2, 3))
    backbone = prepare_backbone(recipe, images)
    old = dataclasses.replace(
        model,
        backbone=backbone,
        head=Head.zeros(10, backbone.spec.num_features),
        images=images,
        features=backbone.features(images),
        labels=model.labels[: len(images)],
    )
    with pytest.raises(ExportError, match=r"other features .* for \d+ of \d+ images"):
        export(old, "device-pte", tmp_path / "device.pte")
    assert list(tmp_path.iterdir()) == []


# Without Python


def built(compiler: str, sdk: Path, folder: Path) -> Path:
    """The C++ program, compiled against the wheel's headers and libraries."""
    program = folder / "probe"
    subprocess.run(
        [
            compiler, "-std=c++20", "-O2", "-w", "-DC10_USING_CUSTOM_GENERATED_MACROS",
            f"-I{sdk / 'include'}",
            f"-I{sdk / 'include/executorch/runtime/core/portable_type/c10'}",
            str(SOURCE), "-o", str(program), f"-L{sdk / 'lib'}", "-Wl,--no-as-needed",
            *(f"-lexecutorch{name}" for name in LIBRARIES), f"-Wl,-rpath,{sdk / 'lib'}",
        ],
        check=True,
    )  # fmt: skip
    return program


def check_program(command, model, file, thousand, folder):
    """Features to the bit, 50 steps with momentum, decay and mu, and exact sums."""
    images, labels, q = thousand
    images.tofile(folder / "images")
    labels.tofile(folder / "labels")
    case = (0.01, 0.9, 1e-3, 0.1)
    words = [file, folder / "images", folder / "labels", folder / "out", 50, *case, 0]
    subprocess.run([*command, *map(str, words)], check=True, capture_output=True)
    raw = np.fromfile(folder / "out", np.uint8)
    assert np.array_equal(raw[: q.size].reshape(q.shape), q)
    numbers, width, rows = raw[q.size :].view(np.float32), q.shape[1] + 1, EXACT_ROWS
    matrix, gram, moments = np.split(numbers, np.cumsum([10 * width, width * width]))
    want = trained_on(model, q[:rows], labels[:rows], case)
    assert np.abs(want).max() > 1e-2
    assert np.abs(matrix.reshape(10, width) - want).max() <= 1e-6
    shapes = ((width, width), (10, width))
    sums = [torch.from_numpy(a.reshape(s)) for a, s in zip((gram, moments), shapes, strict=True)]
    check_sums(lambda *_: sums, q[:rows], labels[:rows], model.backbone.affine)


def trained_on(model, q, labels, case):
    lr, momentum, decay, mu = case
    x = torch.cat([torch.from_numpy(model.backbone.affine(q)), torch.ones(len(q), 1)], dim=1)
    training = LocalTraining(lr, 50, len(q), momentum, decay)
    start = torch.zeros(10, q.shape[1] + 1)
    orders = [np.arange(len(q))] * 50
    return train_head(x, torch.from_numpy(labels), start, training, orders, Terms(mu)).delta.numpy()


def test_a_program_without_python_gets_the_same(model, file, thousand, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    import executorch

    sdk = Path(next(iter(executorch.__path__)))
    program = built("g++", sdk, tmp_path)
    check_program([str(program)], model, file, thousand, tmp_path)


@pytest.fixture(scope="module")
def arm64(tmp_path_factory):
    """The C++ program for arm64 with the command that runs it, but for the processor's name."""
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("a compiler for arm64 is missing: apt-get install g++-aarch64-linux-gnu")
    folder = tmp_path_factory.mktemp("arm64")
    try:
        python = emulated_python(default_folder())
    except RunError as exc:
        pytest.skip(str(exc))
    wheel = f"executorch=={version('executorch')}"
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
            "--target", str(folder / "site"), "--platform", "manylinux_2_28_aarch64",
            "--only-binary=:all:", wheel,
        ],
        check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"{wheel} for arm64 cannot be fetched here")
    sdk = folder / "site" / "executorch"
    program = built("aarch64-linux-gnu-g++", sdk, folder)
    qemu, root = python[0], Path(python[python.index("-L") + 1])
    libraries = (root / "usr/lib/aarch64-linux-gnu", root / "usr/lib", sdk / "lib")
    path = ":".join(map(str, libraries))
    return program, [qemu, "-L", str(root), "-E", f"LD_LIBRARY_PATH={path}"]


@pytest.mark.timeout(2400)  # emulated, an image takes a third of a second
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_phones_processors_give_the_same(arm64, cpu, model, file, thousand, tmp_path):
    program, (qemu, *rest) = arm64
    check_program([qemu, "-cpu", cpu, *rest, str(program)], model, file, thousand, tmp_path)
