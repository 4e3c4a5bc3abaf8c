"""Fine-tuning: what it trains on, what it writes, that it repeats itself, and that it helps."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import simulations.fine_tune.training as training
from common.backbone.int8 import Normalization
from common.backbone.module import Tapped
from common.backbone.networks import float_network
from common.backbone.weights import load_weights
from common.config import BackboneConfig, Config, load_config, parse_overrides
from common.datasets import Dataset
from common.errors import BackboneError
from common.experiment import experiment_dataset
from common.ridge import auto_ridge
from common.types import IntArray
from simulations.fine_tune.fine_tune import FineTuned, fine_tune
from simulations.fine_tune.first_head import Examples, features_of, first_head
from simulations.fine_tune.plan import Plan, command_for
from simulations.probe.tuned import probe_tuned

pytestmark = pytest.mark.wide

Fedhead = Callable[..., tuple[int, str, str]]

THRICE = Plan(epochs=3, lr=1e-4, seed=0)


def make_photos(folder: Path) -> Path:
    """Noise in two classes, one of them darker; the split is the program's own."""
    rng = np.random.default_rng(0)
    for name, brightest in (("dark", 120), ("light", 256)):
        for i in range(40):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, brightest, (8, 8, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def configured(source: object, *items: str) -> Config:
    pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")
    settings = [f"data.source={source}", "backbone.input-size=32", *items]
    return load_config(None, parse_overrides(settings))


@dataclass(frozen=True)
class Made:
    """A file, and what was seen while it was made."""

    config: Config
    tuned: FineTuned
    read: frozenset[int]
    lines: tuple[str, ...]
    losses: tuple[float, ...]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("fine-tuned")
    config = configured(
        f"folder:{make_photos(folder / 'photos')}",
        "backbone.mean=[0.5, 0.5, 0.5]",
        "backbone.features=gap",
    )
    read: set[int] = set()
    images, lines = Dataset.images, []

    def note(self: Dataset, index: IntArray, size: int) -> object:
        read.update(index.tolist())
        return images(self, index, size)

    losses: list[float] = []
    cross_entropy = torch.nn.functional.cross_entropy

    def note_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = cross_entropy(logits, labels)
        losses.append(loss.item())
        return loss

    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("fedhead")
    level = logger.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "images", note)
        patch.setattr(torch.nn.functional, "cross_entropy", note_loss)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        tuned = fine_tune(config, THRICE, folder / "new" / "tuned.safetensors")
        logger.removeHandler(handler)
        logger.setLevel(level)
    return Made(config, tuned, frozenset(read), tuple(lines), tuple(losses))


def test_a_file_says_where_its_weights_come_from(made: Made) -> None:
    with safe_open(made.tuned.path, "pt") as file:
        said = json.loads(file.metadata()["fedhead"])
    assert said == json.loads(json.dumps(made.tuned.provenance))
    assert said["images"] == 64  # a fifth of 80 tests
    assert (said["arch"], said["input-size"], said["epochs"]) == ("mobilenet_v2", 32, 3)
    assert said["features"] == "gap"
    assert said["mean"] == [0.5, 0.5, 0.5]
    assert "licence" in said


def test_all_weights_are_trained_but_the_statistics_stay(made: Made) -> None:
    before = load_weights("mobilenet_v2", "imagenet").state
    after = load_weights("mobilenet_v2", f"file:{made.tuned.path}").state
    assert before is not None
    assert after is not None
    for name, value in before.items():
        kept = "running" in name or name.endswith("num_batches_tracked")
        assert torch.equal(after[name], value) == kept, name


def test_an_experiment_takes_the_lines_that_are_printed(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(made.tuned.toml_lines)
    backbone = load_config(file).backbone
    assert backbone.weights == f"file:{made.tuned.path}"
    assert (backbone.features, backbone.mean) == ("gap", (0.5, 0.5, 0.5))


def test_no_test_image_is_ever_read(made: Made) -> None:
    dataset = experiment_dataset(made.config)
    assert made.read == set(dataset.train.tolist())
    assert len(dataset.test) == 16


def test_the_time_that_it_needs_is_told_first(made: Made) -> None:
    assert "64 training images; 16 test images are left out" in made.lines[0]
    (told,) = (line for line in made.lines if ": about " in line)
    assert told.startswith("fine-tuning mobilenet_v2 on 64 images, 3 epochs: about ")


def test_each_epoch_tells_the_mean_loss_of_its_steps(made: Made) -> None:
    told = [line for line in made.lines if "loss" in line]
    means = np.reshape(made.losses, (3, -1)).mean(axis=1)
    assert told == [
        f"epoch {epoch} of 3: mean training loss {mean:.3g}" for epoch, mean in enumerate(means, 1)
    ]


def test_the_same_arguments_give_the_same_bytes(made: Made, tmp_path: Path) -> None:
    torch.rand(1)  # the global generator moves on between two runs
    fine_tune(made.config, THRICE, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == made.tuned.path.read_bytes()


def test_the_first_head_answers_as_the_ridge_head_of_all_features_does(photos: Path) -> None:
    config = configured(f"folder:{photos}")
    dataset = experiment_dataset(config)
    normalization = Normalization(*config.backbone.normalization())
    examples = Examples(dataset, dataset.train, 32, normalization)
    state = load_weights("mobilenet_v2", "imagenet").state
    assert state is not None
    tapped = Tapped(float_network("mobilenet_v2", state), [6, 10])
    head = first_head(tapped, examples)
    with torch.no_grad():
        x = features_of(tapped, examples.batch(np.arange(len(examples)))[0])
        logits = head(x).numpy()
    blocks = np.split(x.double().numpy(), [32], axis=1)
    z = [(block - block.mean(0)) / block.var(0).mean() ** 0.5 for block in blocks]
    design = np.column_stack([*z, np.ones(len(x))])
    wanted = np.eye(2)[dataset.labels[dataset.train]]
    ridge = auto_ridge(design.T @ design, wanted.T @ design, len(x)).matrix
    answers = design @ ridge.T
    # The same but for one factor, the temperature.
    factor = np.ptp(logits) / np.ptp(answers)
    np.testing.assert_allclose(logits, factor * answers, atol=1e-3 * np.abs(logits).max())


@pytest.mark.slow
def test_another_seed_gives_other_weights(made: Made, tmp_path: Path) -> None:
    fine_tune(made.config, replace(THRICE, seed=1), tmp_path / "other")
    other = load_weights("mobilenet_v2", f"file:{tmp_path / 'other'}").state
    first = load_weights("mobilenet_v2", f"file:{made.tuned.path}").state
    assert other is not None
    assert first is not None
    assert not torch.allclose(other["0.0.weight"], first["0.0.weight"], rtol=1e-5, atol=1e-7)


def test_an_existing_file_stays_as_it_is(fedhead: Fedhead, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    out.write_text("mine")
    code, printed, err = fedhead("fine-tune", "photos", "--out", out)
    assert (code, printed) == (1, "")
    assert f"{out} exists already" in err
    assert len(err.splitlines()) == 1
    assert out.read_text() == "mine"


def test_fewer_images_than_a_batch_are_refused(
    fedhead: Fedhead, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned.safetensors"
    code, printed, err = fedhead(
        "fine-tune", "photos", "--out", out, "--set", "data.test-fraction=0.7"
    )
    assert (code, printed) == (1, "")
    assert "24 training images, expected at least 32, one batch" in err
    assert not out.exists()


def test_an_interruption_leaves_nothing_behind(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "first_head", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(configured(f"folder:{photos}"), THRICE, tmp_path / "new" / "tuned")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_loss_that_is_no_number_ends_with_advice(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = nn.Threshold(1e9, float("nan"))  # all logits are NaN
    monkeypatch.setattr(training, "first_head", lambda *_: broken)
    with pytest.raises(BackboneError, match="no finite loss in step 0; lower --lr"):
        fine_tune(configured(f"folder:{photos}"), THRICE, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photoss"], "no folder or table photoss here"),
        (["photos", "--weights", "random"], "only trained weights can be fine-tuned"),
        (["photos", "--weights", "file:none.pt"], "weights file none.pt does not exist"),
        (["photos", "--arch", "resnet18"], "must be one of mobilenet_v2"),
        (
            ["photos", "--set", "backbone.arch=x"],
            "backbone.arch would be ignored here: give --arch",
        ),
        (["photos", "--set", "train.lr=1"], "train.lr would be ignored"),
    ],
)
def test_wrong_arguments_are_one_clear_line(
    fedhead: Fedhead, photos: Path, words: list[str], message: str
) -> None:
    code, _, err = fedhead("fine-tune", *words, "--out", "tuned.safetensors")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("fedhead: ")
    assert message in last
    assert not Path("tuned.safetensors").exists()


def test_the_command_has_the_options_that_are_not_the_default() -> None:
    keys = {"input-size": 160, "features": [3, 5], "mean": [0.5, 0.5, 0.5], "distill-steps": 0}
    settings = BackboneConfig.model_validate(keys)
    assert command_for("my photos", settings, ["data.seed=1", "backbone.distill-steps=0"]) == (
        "fedhead fine-tune 'my photos' --size 160 --set 'backbone.mean=[0.5, 0.5, 0.5]' "
        "--set 'backbone.features=[3, 5]' --set data.seed=1 --out tuned.safetensors"
    )


@pytest.mark.slow
def test_heads_on_a_fine_tuned_backbone_are_better(fedhead: Fedhead, tmp_path: Path) -> None:
    settings = [
        "backbone.input-size=64", "backbone.features=gap", "backbone.distill-steps=0",
        "data.test-fraction=0.5",
    ]  # fmt: skip
    config = configured("digits", *settings)
    found = probe_tuned(config, Plan(epochs=3, lr=3e-4, seed=0), 600)
    assert found.num_train == 600
    assert found.gain.is_sure, found.gain

    code, out, err = fedhead(
        "fine-tune", "digits", "--out", "tuned.safetensors", "--epochs", 1, "--size", 64,
        "--set", "data.test-fraction=0.5", "--json",
    )  # fmt: skip
    assert code == 0, err
    made = json.loads(out)
    assert 890 < made["images"] < 905
    sets = [part for item in settings for part in ("--set", item)]
    code, out, err = fedhead(
        "probe", "digits", "--examples", 300, "--sizes", "", "--json", *sets,
        "--set", f"backbone.weights=file:{made['file']}",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["weights"].startswith("file:tuned.safetensors@")
