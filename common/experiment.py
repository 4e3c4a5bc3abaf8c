"""From a configuration to data: what server and simulated clients must derive alike.

Data, shares and features are cached in the process, so that in-process server and clients share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.backbone.frozen import FrozenBackbone
from common.backdoor import Trigger, draw_trigger, poisoned
from common.cache import note_use
from common.calibration import calibration_part
from common.config import Config, DataConfig, PartitionConfig, load_config, parse_overrides
from common.datasets import Dataset, Reading, load_dataset
from common.datasets.split import stratified_split
from common.errors import ConfigError, DamagedError, DataError
from common.features import extract
from common.files import cache_root
from common.labels import relabelled
from common.local_loss import find_loss
from common.partition import Request, evenly, local_split, partition_clients
from common.readback import ArraysFile
from common.seeding import Purpose, smallest
from common.types import FeatureSet, IntArray

__all__ = [
    "ClientShare",
    "calibration_positions",
    "client_ids",
    "client_shares",
    "experiment_dataset",
    "experiment_features",
    "forget_data",
    "held_out_positions",
    "malicious_clients",
    "run_config",
    "run_trigger",
    "training_features",
]

_APP = Path(__file__).parent.parent
_PARTITION = ArraysFile("partition in the cache")


@dataclass(frozen=True, eq=False)
class ClientShare:
    """Positions in the data set that one simulated client owns.

    Attributes:
        train: int64, ascending.
        test: int64, ascending; the client's own test part, possibly empty.
    """

    train: IntArray
    test: IntArray


def run_config(values: Mapping[str, object]) -> Config:
    """The configuration that Flower's run config names: ``experiment`` and ``overrides``.

    That of a run folder goes on in this folder, wherever it lies by now.
    """
    experiment = str(values.get("experiment", ""))
    if not experiment:
        raise ConfigError(["experiment is empty, expected a TOML file"], "run config")
    path = Path(experiment)
    # A relative path is one inside the app bundle.
    path = path if path.is_absolute() else _APP / path
    overrides = str(values.get("overrides", ""))
    changed = path.stat().st_mtime_ns if path.exists() else 0
    config = _load(path, overrides, changed)
    if not config.out and (path.parent / "run.json").exists():
        return config.model_copy(update={"out": str(path.parent)})
    return config


@lru_cache(maxsize=8)
def _load(path: Path, overrides: str, _changed: int) -> Config:
    items = [item.strip() for item in overrides.split(";") if item.strip()]
    return load_config(path, parse_overrides(items))


def experiment_dataset(config: Config) -> Dataset:
    """The data set that [data] names."""
    data = config.data
    reading = Reading(
        root=Path(data.root).expanduser() if data.root else None,
        download=data.download,
        strict=data.strict,
        test_fraction=data.test_fraction,
        seed=config.data_seed,
        label_column=data.label_column,
        image_column=data.image_column,
    )
    return _dataset(data.source, reading)


@lru_cache(maxsize=2)
def _dataset(source: str, reading: Reading) -> Dataset:
    return load_dataset(source, reading)


def calibration_positions(config: Config) -> IntArray:
    """Training images that the server keeps, without labels, to quantize with."""
    dataset, most = experiment_dataset(config), config.data.calibration_examples
    return calibration_part(dataset.labels, dataset.train, most=most, seed=config.data_seed)


def held_out_positions(config: Config) -> IntArray:
    """What the server tests on: the test part, or the validation part where there is one."""
    dataset, fraction = experiment_dataset(config), config.data.validation_fraction
    if not fraction:
        return dataset.test
    rest = np.setdiff1d(dataset.train, calibration_positions(config))
    _, held_out = stratified_split(
        dataset.labels[rest], fraction, config.data_seed, Purpose.VALIDATION
    )
    return rest[held_out]


def client_shares(config: Config) -> tuple[ClientShare, ...]:
    """Who owns what, by client id.

    Raises:
        DataError: the partition cannot be made as configured.
    """
    data = config.data.model_copy(update={"label_noise": 0.0})  # the shares do not depend on it
    most = config.round.max_examples_per_client
    return _shares(data, config.partition, config.data_seed, config.seed, most)


def malicious_clients(config: Config) -> frozenset[int]:
    """The ids that [attack] makes malicious: of those that take part, the smallest draws."""
    if config.attack.kind == "none":
        return frozenset()  # real clients have no partition to count
    ids = np.array(config.train.participants(len(client_shares(config))))
    count = config.attack.count(len(ids))
    return frozenset(smallest(ids, count, config.seed, Purpose.MALICIOUS).tolist())


@lru_cache(maxsize=2)
def _shares(
    data: DataConfig, partition: PartitionConfig, data_seed: int, seed: int, most: int
) -> tuple[ClientShare, ...]:
    config = Config(data=data.model_copy(update={"seed": data_seed}))
    dataset = experiment_dataset(config)
    parts = _parts(config, partition, seed)
    if data.validation_fraction:  # taken from the same shares, so that settings fit them
        held_out = held_out_positions(config)
        parts = [np.setdiff1d(part, held_out) for part in parts]
    return tuple(
        ClientShare(
            *local_split(
                part[evenly(len(part), most)],
                dataset.labels,
                client=client,
                test_fraction=partition.test_fraction,
                seed=seed,
            )
        )
        for client, part in enumerate(parts)
    )


def _parts(config: Config, partition: PartitionConfig, seed: int) -> list[IntArray]:
    """Each client's positions, from the cache or drawn now."""
    dataset = experiment_dataset(config)
    positions = np.setdiff1d(dataset.train, calibration_positions(config))
    column, owners = None, ""
    if partition.scheme == "natural":
        column = client_ids(dataset, partition.column)
        positions = positions[[owner is not None for owner in column[positions].tolist()]]
        owners = repr(column[positions].tolist())
    request = Request(
        partition.scheme,
        partition.num_clients,
        partition.min_examples,
        partition.alpha,
        partition.classes_per_client,
        partition.shards_per_client,
    )
    digest = hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()
    key = f"{dataset.content_key}\n{digest}\n{partition}\n{seed}\n{owners}"
    return _cached_parts(
        hashlib.sha256(key.encode()).hexdigest(),
        lambda: partition_clients(dataset.labels, request, positions, seed=seed, column=column),
    )


def client_ids(dataset: Dataset, column: str) -> npt.NDArray[np.generic]:
    """Who owns each image, (n,), by a column of the data set; None: the row does not say.

    Raises:
        DataError: there is no such column; names those there are.
    """
    if column not in dataset.columns:
        known = ", ".join(dataset.columns) or "none"
        raise DataError(
            f"{dataset.name} has no column '{column}', the partition.column (known: {known})"
        )
    return dataset.columns[column]


def _cached_parts(key: str, draw: Callable[[], list[IntArray]]) -> list[IntArray]:
    """A partition from the cache: drawing one costs seconds of imports alone."""
    file = cache_root() / "partitions" / f"{key}.safetensors"
    try:
        flat = _PARTITION.read(file)
        note_use(file)
        return np.split(flat["positions"], flat["ends"][:-1])
    except (OSError, DamagedError):
        parts = draw()
    ends = np.cumsum([len(part) for part in parts])
    with suppress(OSError):  # a cache that cannot be written only costs time
        _PARTITION.write(file, {"positions": np.concatenate(parts), "ends": ends})
    return parts


def experiment_features(config: Config, backbone: FrozenBackbone) -> FeatureSet:
    """Features of the whole data set, in its order, from the cache or extracted now."""
    return _features(experiment_dataset(config), backbone)


def training_features(
    config: Config, backbone: FrozenBackbone, *, honest: bool = False
) -> FeatureSet:
    """The same features, not copied, with the labels that simulated clients train on.

    They differ from the true ones by label noise, and where a malicious client flips its own. With
    a backdoor, malicious clients' features differ, too, and all are copied. With ``honest`` nobody
    attacks. Examples of test parts are always the true ones.
    """
    features, attack = experiment_features(config, backbone), config.attack
    malicious = frozenset[int]() if honest else malicious_clients(config)
    flipping = malicious if attack.kind == "label-flip" else frozenset[int]()
    shares = client_shares(config)
    trigger = run_trigger(config, features)
    if config.data.label_noise or flipping:
        num_classes, noise = experiment_dataset(config).num_classes, config.data.label_noise
        features = relabelled(features, shares, num_classes, noise, flipping, config.seed)
    if trigger and malicious:
        features = poisoned(features, shares, malicious, trigger, attack.target, config.seed)
    return features


def run_trigger(config: Config, features: FeatureSet) -> Trigger | None:
    """The trigger of a run with a backdoor; None without one.

    Args:
        config: of the run.
        features: of the whole data set.
    """
    if config.attack.kind != "backdoor":
        return None
    return draw_trigger(features.q[calibration_positions(config)], config.seed)


def forget_data() -> None:
    """Read data, and a loss of the user's own, again when they are next asked for.

    For a process that lives longer than one run, such as a notebook's: files may have changed.
    """
    for cached in (_dataset, _shares, relabelled, poisoned, _features, find_loss):
        cached.cache_clear()


@lru_cache(maxsize=2)
def _features(dataset: Dataset, backbone: FrozenBackbone) -> FeatureSet:
    size = backbone.spec.input_size
    q = extract(
        backbone,
        lambda index: dataset.images(index, size),
        len(dataset),
        content_key=dataset.images_key,
        cache=cache_root(),
    )
    return FeatureSet(q, dataset.labels, backbone.affine, backbone.fingerprint)
