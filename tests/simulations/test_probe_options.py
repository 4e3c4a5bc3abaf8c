"""The choice among backbones, and which images a probe tests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config import BackboneConfig, load_config, parse_overrides
from common.errors import ConfigError
from common.experiment import experiment_dataset
from fedhead.cli.probe import _kinds, _sizes
from simulations.probe.gain import paired_gain
from simulations.probe.images import held_out_predictions, probe_images
from simulations.probe.options import Option, _multiplications, recommended, toml_lines

Fedhead = Callable[..., tuple[int, str, str]]


def option(size: int, wrong: int, n: int = 1000) -> Option:
    """An option that gets the first ``wrong`` of n images wrong."""
    settings = BackboneConfig.model_validate({"input-size": size})
    return Option(settings, np.arange(n) >= wrong, size**2, float(size), 1000, 2000, 100)


def test_a_gain_is_paired_so_that_equal_answers_cancel_out() -> None:
    before, after = np.arange(1000) >= 300, np.arange(1000) >= 280
    gain = paired_gain(before, after)
    assert gain.value == pytest.approx(0.02)
    assert gain.margin == pytest.approx(1.96 * (0.02 * 0.98 / 1000) ** 0.5)
    assert gain.is_sure
    assert not paired_gain(after, before).is_sure


def test_the_cheapest_choice_that_is_not_clearly_worse_is_recommended() -> None:
    assert recommended([option(96, 200), option(160, 100)]).settings.input_size == 160
    assert recommended([option(160, 200), option(96, 204)]).settings.input_size == 96


def test_the_recommended_lines_are_an_experiment(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(toml_lines(option(160, 0), "digits", 1797))
    config = load_config(file)
    assert (config.data.source, config.backbone) == ("digits", option(160, 0).settings)


def test_a_test_part_of_the_source_tests_and_calibration_images_do_not_train(
    tmp_path: Path,
) -> None:
    for part, count in (("train", 30), ("test", 7)):
        for name in ("a", "b"):
            for i in range(count):
                path = tmp_path / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8), 7 * i + 3, np.uint8)).save(path)
    settings = [f"data.source=folder:{tmp_path}", "data.calibration-examples=8"]
    images = probe_images(load_config(None, parse_overrides(settings)), 1000)
    assert np.array_equal(images.tested, images.dataset.test)
    assert len(images.tested) == 14
    assert len(images.train) == 52
    # One feature that is the label: heads of the training part answer for the test part.
    x = [
        images.dataset.labels[part][:, None].astype(np.float32)
        for part in (images.train, images.test)
    ]
    answers = held_out_predictions(images, x[0], x[1])
    assert np.array_equal(answers, images.dataset.labels[images.test])


def test_layers_that_no_feature_needs_are_not_counted() -> None:
    def counted(features: str) -> int:
        return _multiplications(BackboneConfig.model_validate({"features": features}))

    # MobileNetV2's last convolution makes 1,280 channels of 320, at 3 x 3 positions for 96 pixels.
    assert counted("gap") - counted("compact") == 9 * 320 * 1280
    assert counted("gap+mid") == counted("gap")


def test_kinds_of_features_are_those_asked_for_or_the_usual_ones_and_the_configured() -> None:
    assert _kinds("compact, gap", "gap") == ("gap", "compact")
    assert _kinds("", "gap") == _kinds("", "compact") == ("gap", "compact")
    assert _kinds("", (3, 5)) == ("gap", "compact", (3, 5))
    with pytest.raises(ConfigError, match="--features last: expected some of gap, compact"):
        _kinds("gap,last", "gap")


def test_sizes_are_those_asked_for_or_the_usual_ones_and_the_configured() -> None:
    assert _sizes("160, 64", 224) == (64, 160)
    assert _sizes("", 224) == ()
    assert _sizes(None, 96) == (96, 160)
    assert _sizes(None, 128) == (96, 128, 160)


def test_random_weights_are_not_fine_tuned_and_that_is_said_at_once(
    fedhead: Fedhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long_work(*_: object) -> None:
        raise AssertionError("the images are read")

    monkeypatch.setattr("simulations.probe.images.probe_images", long_work)
    code, _, err = fedhead(
        "probe", "digits", "--set", "backbone.weights=random", "--fine-tune", "--sizes", ""
    )
    assert code == 1
    assert "only trained weights can be fine-tuned" in err


def test_many_small_classes_can_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = experiment_dataset(load_config(None, parse_overrides(["data.source=digits"])))
    labels = np.repeat(np.arange(500), 10)
    classes = tuple(f"class {k}" for k in range(500))
    dataset = dataclasses.replace(dataset, labels=labels, classes=classes)
    monkeypatch.setattr("simulations.probe.images.experiment_dataset", lambda _: dataset)
    images = probe_images(load_config(None), 5000).fewer(2000)
    folds = np.zeros((500, 5), np.int64)
    np.add.at(folds, (images.labels, images.folds), 1)
    assert (folds == 1).all()


@pytest.mark.parametrize("sizes", ["96,large", "20", "2000"])
def test_a_size_that_no_backbone_takes_is_named(fedhead: Fedhead, sizes: str) -> None:
    code, _, err = fedhead("probe", "digits", "--sizes", sizes)
    assert code == 1
    assert f"--sizes {sizes.split(',')[-1]}: expected pixels from 32 to 1024" in err
