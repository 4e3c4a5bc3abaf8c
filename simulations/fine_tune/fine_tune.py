"""From an experiment's images and backbone to a file of fine-tuned weights."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tomli_w

from common.backbone.int8 import Normalization
from common.backbone.networks import State
from common.backbone.spec import IMAGENET_MEAN, IMAGENET_STD
from common.backbone.weights import Weights, load_weights
from common.config import BackboneConfig, Config
from common.datasets import Dataset
from common.errors import BackboneError, DataError
from common.experiment import experiment_dataset
from common.files import write_atomic
from common.types import IntArray
from simulations.fine_tune.first_head import BATCH, Examples
from simulations.fine_tune.plan import Plan
from simulations.fine_tune.training import fine_tuned
from simulations.fine_tune.tuned_file import tuned_file

__all__ = ["FineTuned", "check_free", "fine_tune", "fine_tune_on", "trained_weights"]

_log = logging.getLogger("fedhead")


@dataclass(frozen=True)
class FineTuned:
    """A file of fine-tuned weights.

    Attributes:
        path: where it is.
        settings: [backbone] with these weights.
        provenance: what its metadata say.
    """

    path: Path
    settings: BackboneConfig
    provenance: dict[str, object]

    @property
    def toml_lines(self) -> str:
        """The lines of an experiment file that take the weights."""
        keys = {"arch", "weights", "input_size", "features", "mean", "std"}
        backbone = self.settings.model_dump(by_alias=True, exclude_none=True, include=keys)
        return tomli_w.dumps({"backbone": backbone}).rstrip()


def check_free(out: Path) -> None:
    """Refuse, before the long work, a path at which no new file can be written.

    Raises:
        BackboneError: something is there already.
        OSError: its folder cannot be made or written.
    """
    if out.exists():
        raise BackboneError(f"{out} exists already: name another file, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(13, "no permission to write here", str(out.parent))


def trained_weights(settings: BackboneConfig) -> tuple[Weights, State]:
    """The weights that a fine-tuning starts from, and their tensors.

    Raises:
        BackboneError: they are random, or cannot be used.
    """
    start = load_weights(settings.arch, settings.weights)
    if start.state is None:
        raise BackboneError(
            f"backbone.weights = {settings.weights!r}: only trained weights can be fine-tuned"
        )
    return start, start.state


def fine_tune(config: Config, plan: Plan, out: Path) -> FineTuned:
    """Fine-tune the configured backbone on the training part of the configured data.

    The part is the source's own, or else the one that runs of the same data use: what a run tests
    on is never trained on. The same arguments on the same machine give the same bytes.

    Args:
        config: an experiment's configuration; [data] and [backbone] count.
        plan: how to train.
        out: the file to write; it must not exist.

    Raises:
        BackboneError: the file exists, or the weights cannot be used.
        DataError: the data cannot be used, or are fewer than a batch.
    """
    check_free(out)
    dataset = experiment_dataset(config)
    train, test = f"{len(dataset.train):,}", f"{len(dataset.test):,}"
    _log.info("%s: %s training images; %s test images are left out", dataset.name, train, test)
    if len(dataset.train) < BATCH:
        raise DataError(
            f"{dataset.name}: {train} training images, expected at least {BATCH}, one batch"
        )
    return fine_tune_on(config, dataset, dataset.train, plan, out)


def fine_tune_on(
    config: Config, dataset: Dataset, positions: IntArray, plan: Plan, out: Path
) -> FineTuned:
    """The same on the images at some positions of a data set; an existing file is replaced."""
    settings = config.backbone
    start, state = trained_weights(settings)
    normalization = Normalization(*settings.normalization())
    examples = Examples(dataset, positions, settings.input_size, normalization)
    network = fine_tuned(settings.arch, state, settings.features, examples, plan)
    provenance = _provenance(config, dataset, len(positions), start, plan)
    write_atomic(out, tuned_file(network, provenance))
    weights = f"file:{out.resolve()}"
    return FineTuned(out, settings.model_copy(update={"weights": weights}), provenance)


def _provenance(
    config: Config, dataset: Dataset, count: int, start: Weights, plan: Plan
) -> dict[str, object]:
    settings = config.backbone
    mean, std = settings.normalization()
    found: dict[str, object] = {
        "fedhead": version("fedhead"),
        "arch": settings.arch,
        "weights": start.label,
        "licence": start.licence,
        "source": dataset.name,
        "content": dataset.content_key,
        "images": count,
        "classes": dataset.num_classes,
        "input-size": settings.input_size,
        "features": settings.features,
        "epochs": plan.epochs,
        "lr": plan.lr,
        "seed": plan.seed,
    }
    if (mean, std) != (IMAGENET_MEAN, IMAGENET_STD):
        found |= {"mean": mean, "std": std}
    return found
