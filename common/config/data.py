"""Sections on images: where they come from and who owns which."""

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
"""The key in [partition] that a scheme has to itself."""


class DataConfig(Section):
    """[data]: where images come from."""

    source: str = Field("mnist5k", min_length=1)
    """mnist5k, digits, a torchvision data set's name, folder:PATH (one sub-folder a class),
    folder-by-client:PATH (one folder a client, one sub-folder a class in each),
    csv:PATH (a table of file names and labels beside the images), hf:NAME, or module:function, a
    function of yours that returns common.datasets.Examples."""
    root: str = ""
    """Folder of torchvision data sets, empty: the data folder in the cache; below it lies a
    relative PATH; of module:function the module's folder, empty: the experiment file's or the
    working folder, whichever has it."""
    download: bool = False
    """Let torchvision download what is missing."""
    strict: bool = False
    """A broken image, or a row of a table without image or label, is an error instead of being
    skipped with a warning."""
    label_column: str = ""
    """Of csv: and hf:, the column of classes; empty: one called label, class, target, ..."""
    image_column: str = ""
    """Of csv: and hf:, the column of images or of their file names; empty: one called image, file,
    id, ..."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Server's test part, where the source has none of its own."""
    calibration_examples: Annotated[int, Field(ge=8)] = 256
    """Unlabelled images of the training part that the server keeps to quantize with, at most half
    of each class."""
    validation_fraction: Fraction = 0.0
    """Part of the training images that takes the test set's place, to choose settings by."""
    seed: Annotated[int, Field(ge=-1, lt=2**31)] = -1
    """Of the split, the calibration images and the backbone; -1: the run's seed."""
    label_noise: Fraction = 0.0
    """Share of each simulated client's training labels that are of another class than the true."""

    @property
    def has_columns(self) -> bool:
        """Whether the source is a table, whose columns can be named."""
        kind = kind_of(self.source)
        return kind is not None and kind.has_columns


class PartitionConfig(Section):
    """[partition]: who owns which image, in simulation."""

    scheme: Literal["iid", "dirichlet", "pathological", "shard", "natural"] = "iid"
    num_clients: Positive = 50
    """The natural partition needs as many values with enough examples, and draws from more."""
    alpha: Annotated[float, Field(gt=0)] = 0.3
    """Of the Dirichlet partition: the smaller, the more the clients differ."""
    classes_per_client: Positive = 2
    """Of the pathological partition."""
    shards_per_client: Positive = 2
    """Of the shard partition."""
    column: str = "client"
    """Column of the natural partition, for example a user id; folder-by-client gives "client"."""
    min_examples: Count = 2
    """What every client gets at least, before it keeps its test part."""
    test_fraction: Fraction = 0.1
    """Part of a client's examples that it keeps to evaluate on."""
