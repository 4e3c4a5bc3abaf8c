"""The probe: right about data that suit the backbone, about data that do not, and in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from common.config import BackboneConfig, load_config, parse_overrides
from common.errors import DataError
from simulations.probe import Probe, judge, probe_data, probe_images
from simulations.probe.gain import Gain
from simulations.probe.measure import CurvePoint
from simulations.probe.probe_tables import fine_tuning
from simulations.probe.tuned import Tuned
from simulations.probe.verdict import examples_needed

Fedhead = Callable[..., tuple[int, str, str]]

SMALL = ("backbone.input-size=64", "backbone.distill-steps=0", "data.calibration-examples=64")


def probe_like(accuracy: float, **figures: object) -> Probe:
    """Figures of 1,000 images of two classes, with the measured ones replaced."""
    right = round(500 * accuracy)
    values: dict[str, object] = {
        "source": "test",
        "backbone": None,
        "classes": ("cat", "dog"),
        "confusion": np.array([[right, 500 - right], [500 - right, right]]),
        "training_accuracy": 1.0,
        "curve": (CurvePoint(400.0, accuracy, accuracy, accuracy),),
        "doubling": Gain(0.0, 0.01),
        "penalty": 100.0,
        "neighbours": accuracy,
        "pixels": 0.5,
        "commonest": 0.5,
    }
    return Probe(**{**values, **figures})  # type: ignore[arg-type]


def curve(errors: dict[int, float]) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(float(m), 1 - e, 1 - e, 1 - e) for m, e in errors.items())


def test_enough_accuracy_suffices_and_a_close_call_says_so() -> None:
    sure = judge(probe_like(0.95), 0.9)
    assert (sure.outcome, sure.reasons, sure.advice) == ("suffices", (), "")
    close = judge(probe_like(0.91), 0.9)
    assert close.outcome == "suffices"
    assert "more images" in close.reasons[0]


def test_nobody_is_sent_for_more_images_where_the_last_doubling_gained_nothing() -> None:
    points = curve({m: 2 / m**0.5 for m in (50, 100, 200, 400)})
    unlucky = probe_like(0.9, doubling=Gain(-0.03, 0.1), curve=points)
    verdict = judge(unlucky, 0.95)
    assert verdict.outcome == "does not suffice"
    assert "More images hardly help" in verdict.reasons[0]


def test_a_rising_curve_asks_for_the_examples_its_power_law_needs() -> None:
    # error = 2 / sqrt(m): 0.1 at 400, 0.05 at 1,600
    gain = Gain(0.05, 0.01)
    points = curve({m: 2 / m**0.5 for m in (50, 100, 200, 400)})
    rising = probe_like(0.9, doubling=gain, curve=points)
    assert examples_needed(rising, 0.95) == pytest.approx(1600)
    verdict = judge(rising, 0.95)
    assert verdict.outcome == "more examples"
    assert "95.0% needed (--target)" in verdict.headline
    assert "1,600 training images per class" in verdict.reasons[0]
    assert "2,000 images per class in all" in verdict.reasons[0]  # a fifth of them tests
    assert "today's 500 images per class (400 of them train)" in verdict.advice
    assert judge(rising, 0.99).outcome == "does not suffice"  # 40,000 are out of reach


def test_a_flat_curve_and_a_head_that_cannot_even_fit_do_not_suffice() -> None:
    flat = probe_like(0.7, curve=curve(dict.fromkeys((50, 100, 200, 400), 0.3)))
    assert examples_needed(flat, 0.9) is None
    verdict = judge(flat, 0.9)
    assert verdict.outcome == "does not suffice"
    assert "hardly help" in verdict.reasons[0]
    assert "+0.0 points (95% interval -1.0 to +1.0)" in verdict.reasons[0]
    assert "flat" in verdict.reasons[1]
    assert "TinyTL" in verdict.advice
    unfit = probe_like(
        0.7, training_accuracy=0.75, curve=curve({m: 6 / m**0.5 for m in (100, 200, 400)})
    )
    assert judge(unfit, 0.9).outcome == "does not suffice"
    assert "75.0% on their own training images" in judge(unfit, 0.9).reasons[0]


def test_pixels_and_neighbours_that_do_better_are_named() -> None:
    reasons = " ".join(judge(probe_like(0.7, pixels=0.72, neighbours=0.8), 0.9).reasons)
    assert "plain pixels does better (72.0%)" in reasons
    assert "Nearest neighbours in the same features reach 80.0%" in reasons
    assert "pixels" not in " ".join(judge(probe_like(0.7, pixels=0.6), 0.9).reasons)


def test_fine_tuning_is_named_where_the_head_alone_does_not_do() -> None:
    verdict = judge(probe_like(0.7, pixels=0.8), 0.9)
    assert "fedhead fine-tune IMAGES --out tuned.safetensors" in verdict.advice
    assert "(fedhead fine-tune)" in verdict.reasons[-1]


def test_what_fine_tuning_gains_is_shown_with_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = np.arange(1000)
    tuned = Tuned(right >= 300, right >= 250, BackboneConfig(), num_train=2000, epochs=5)
    command = "fedhead fine-tune photos --out tuned.safetensors"
    Console(width=80).print(*fine_tuning(tuned, command), sep="\n")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    for words in ("70.0%", "5 epochs of 2,000 images", "75.0%", "gains +5.0 points", command):
        assert words in text


def test_mistakes_come_with_their_share_of_the_true_class() -> None:
    matrix = np.array([[90, 10], [1, 9]])
    assert probe_like(0.5, confusion=matrix).mistakes() == [
        ("cat", "dog", 10, 0.1),
        ("dog", "cat", 1, 0.1),
    ]


def shuffled_digits(folder: Path, count: int) -> Path:
    """Real digits whose 64 pixels are shuffled, all in the same way: far from any photograph."""
    pixels, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(64)
    for i in range(count):
        path = folder / str(labels[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = (pixels[i][order] * 255 / 16).astype(np.uint8).reshape(8, 8)
        Image.fromarray(gray).save(path)
    return folder


@pytest.mark.slow
def test_digits_suffice_and_the_same_digits_shuffled_look_far_from_imagenet(
    fedhead: Fedhead, tmp_path: Path
) -> None:
    settings = [part for item in SMALL for part in ("--set", item)]
    code, out, err = fedhead(
        "probe", "digits", "--examples", 500, "--target", 0.85, "--json", "--sizes", 64, *settings
    )
    assert code == 0, err
    near = json.loads(out)
    assert near["outcome"] == "suffices"
    assert near["examples"] == 500
    assert near["accuracy"] == np.trace(near["confusion"]) / 500
    assert near["curve"][-1]["accuracy"] == pytest.approx(near["accuracy"])
    assert near["curve"][0]["accuracy"] < near["accuracy"]

    tried = [(option["input_size"], option["features"]) for option in near["options"]]
    assert tried == [(64, "gap"), (64, "compact")]
    assert near["fine_tuning"] is None
    assert "input-size = 64" in near["recommended"]

    plot = tmp_path / "far.svg"
    folder = shuffled_digits(tmp_path / "far", 500)
    code, out, err = fedhead(
        "probe", folder, "--target", 0.93, "--out", plot, "--sizes", "64,96", *settings
    )
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    assert "does not suffice" in text
    assert "plain pixels does better" in text
    assert "far from ImageNet" in text
    assert plot.read_text().startswith("<?xml")


def test_a_folder_with_a_typo_is_answered_with_the_one_that_is_there(
    fedhead: Fedhead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    code, _, err = fedhead("probe", "photoss")
    assert code != 0
    assert "no folder or table photoss here" in err
    assert err.rstrip().endswith("nearest known: folder:photos")


@pytest.mark.slow
def test_probing_again_gives_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    config = load_config(None, parse_overrides(["data.source=digits", *SMALL]))
    first, again = (probe_data(config, probe_images(config, 200)) for _ in range(2))
    assert np.array_equal(first.confusion, again.confusion)
    assert first.curve == again.curve
    assert first.num_examples == 200
    assert first.confusion.sum(axis=1).min() >= 17  # every class keeps its share


def test_a_class_that_some_fold_would_lack_is_named(tmp_path: Path) -> None:
    for name, count in {"a": 9, "b": 4}.items():
        for i in range(count):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(path)
    config = load_config(None, {"data": {"source": f"folder:{tmp_path}"}})
    with pytest.raises(DataError, match="class 'b' has 4 images in the probe"):
        probe_images(config, 1000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("probe", "digits", "--set", "strategy.name=fedprox"), "strategy.name would be ignored"),
        (("probe", "digits", "--set", "data.label-noise=0.5"), "data.label-noise would be ignored"),
        (("probe", "digits", "--set", "data.source=mnist5k"), "data.source would be ignored here"),
        (("quantize-report", "--set", "backbone.engine=x86"), "backbone.engine would be ignored"),
        (("partition", "FILE", "--set", "train.lr=3"), "train.lr would be ignored: only data.*"),
        (
            ("probe", "digits", "--set", "data.sed=1"),
            "unknown key data.sed, did you mean data.seed?",
        ),
    ],
)
def test_keys_that_a_command_would_ignore_are_refused(
    fedhead: Fedhead, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "FILE").write_text("")
    code, _, err = fedhead(*words)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_table_is_probed_as_a_folder_is(fedhead: Fedhead, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("scan,breed\n")
    code, _, err = fedhead("probe", "labels.csv", "--set", "data.label-column=breed")
    assert code == 1
    assert "labels.csv: no rows below a header" in err
