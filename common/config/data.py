"""Sections on images: where they come from, and which client owns which."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from common.config.numbers import Count, Fraction, Positive
from common.data_sources import kind_of
from common.toml_model import Section

__all__ = ["PARTITION_KEYS", "DataConfig", "PartitionConfig"]

PARTITION_KEYS = {
    "dirichlet": "alpha",
    "pathological": "classes-per-client",
    "shard": "shards-per-client",
    "natural": "column",
}
"""The key of [partition] that only this scheme uses."""


class DataConfig(Section):
    """[data]: where images come from."""

    source: str = Field("mnist5k", min_length=1)
    """mnist5k, digits, clipart, elpv, a torchvision data set's name,
    folder:PATH (one sub-folder per class),
    folder-by-client:PATH (one folder per client, in it one sub-folder per class),
    csv:PATH (a table of file names and labels beside the images), hf:NAME (a Hugging Face data
    set), or module:function (your own function; it returns common.datasets.Examples)."""
    root: str = ""
    """Folder of torchvision data sets; empty: the data folder in the cache. If it is set, a
    relative PATH starts there. For module:function, the module's folder; empty: the experiment
    file's folder or the working folder, whichever has the module."""
    download: bool = False
    """Let torchvision download what is missing."""
    strict: bool = False
    """Whether a broken image, or a table's row without image or label, is an error. Otherwise it
    is skipped with a warning."""
    label_column: str = ""
    """Column of the classes, for csv: and hf:; empty: one called label, class, target, ..."""
    image_column: str = ""
    """Column of the images or their file names, for csv: and hf:; empty: one called image, file,
    id, ..."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the images that the server tests on, if the source has no test part of its own."""
    calibration_examples: Annotated[int, Field(ge=8)] = 256
    """Most training images that the server keeps, without labels, to calibrate the quantization;
    never more than 15 % of the training part (16 of a small one) and half of each class."""
    validation_fraction: Fraction = 0.0
    """Share of the training images to choose settings by. They take the test set's place; 0: the
    test set stays."""
    seed: Annotated[int, Field(ge=-1, lt=2**31)] = -1
    """Seed of the split, the calibration images and the backbone; -1: the run's seed."""
    label_noise: Fraction = 0.0
    """Share of each simulated client's training labels that name a wrong class."""

    @property
    def has_columns(self) -> bool:
        """Whether the source is a table, whose columns can be named."""
        kind = kind_of(self.source)
        return kind is not None and kind.has_columns


class PartitionConfig(Section):
    """[partition]: which simulated client owns which image."""

    scheme: Literal["iid", "dirichlet", "pathological", "shard", "natural"] = "iid"
    num_clients: Positive = 50
    """Number of clients. The natural partition needs at least as many values with enough
    examples; of more, it draws this many."""
    alpha: Annotated[float, Field(gt=0)] = 0.3
    """Concentration of the Dirichlet partition; the smaller, the more the clients differ."""
    classes_per_client: Positive = 2
    """Classes of each client in the pathological partition."""
    shards_per_client: Positive = 2
    """Shards of each client in the shard partition."""
    column: str = "client"
    """Column of the natural partition, for example a user id; folder-by-client gives "client"."""
    min_examples: Count = 2
    """Least number of examples of a client, its test part included."""
    test_fraction: Fraction = 0.1
    """Share of its examples that a client keeps to evaluate on."""
