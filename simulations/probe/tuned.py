"""What fine-tuning the whole backbone gives beside the frozen one, on images of the test part."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.config import BackboneConfig, Config
from common.experiment import calibration_positions, experiment_dataset
from server.export.run_model import prepare
from simulations.fine_tune.fine_tune import fine_tune_on
from simulations.fine_tune.plan import Plan
from simulations.probe.gain import Gain, paired_gain
from simulations.probe.images import ProbeImages, head_features, held_out_predictions

__all__ = ["Tuned", "probe_tuned"]

_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tuned:
    """Heads on the int8 features of the frozen and of the fine-tuned backbone.

    Attributes:
        frozen: bool (n,), which test images the head on the frozen backbone gets right.
        tuned: the same of the head on the fine-tuned one.
        settings: [backbone] of the frozen one.
        num_train: how many images trained backbone and heads.
        epochs: passes over them.
    """

    frozen: _Flags
    tuned: _Flags
    settings: BackboneConfig
    num_train: int
    epochs: int

    @property
    def gain(self) -> Gain:
        """What fine-tuning gained."""
        return paired_gain(self.frozen, self.tuned)


def probe_tuned(config: Config, plan: Plan, examples: int) -> Tuned:
    """Fine-tune on images of the training part, and compare on images of the test part.

    Both backbones are quantized as in a run, on the same images, and both heads are ridge heads
    on their int8 features: that is what a run with these weights starts from, and it does better
    than the head that the backbone was trained with.

    Args:
        config: an experiment's configuration; [data] and [backbone] count.
        plan: how to train.
        examples: number of images to train on and to test on, see ``ProbeImages.fewer``.
    """
    dataset = experiment_dataset(config)
    train = np.setdiff1d(dataset.train, calibration_positions(config))
    images = ProbeImages(dataset, train, dataset.test, config.data_seed).fewer(examples)
    frozen = _right(config, images)
    with tempfile.TemporaryDirectory() as folder:
        made = fine_tune_on(config, dataset, images.train, plan, Path(folder) / "weights")
        tuned = _right(config.model_copy(update={"backbone": made.settings}), images)
    return Tuned(frozen, tuned, config.backbone, len(images.train), plan.epochs)


def _right(config: Config, images: ProbeImages) -> _Flags:
    """Which test images a ridge head on the configured backbone's features gets right."""
    backbone = prepare(config, images.dataset)
    train, test = (head_features(images, part, backbone) for part in (images.train, images.test))
    answers = held_out_predictions(images, train, test)
    right: _Flags = answers == images.dataset.labels[images.test]
    return right
