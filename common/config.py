"""One TOML file describes one experiment. Parsed and checked here, once, at the edge.

Keys are kebab-case in TOML and snake_case in Python. Every key has a default, a type and a
range; all problems of a file are reported together, an unknown key with the nearest known one.
"""

from __future__ import annotations

import datetime
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    Field,
    PlainValidator,
    model_validator,
)

from common.backbone.architectures import ARCHITECTURES, architecture
from common.errors import ConfigError
from common.readback import checksum
from common.toml_model import Section, read_toml, validated
from common.types import LocalTraining

__all__ = [
    "PARTITION_KEYS",
    "AttackConfig",
    "AvailabilityConfig",
    "BackboneConfig",
    "BaselineConfig",
    "Config",
    "DataConfig",
    "PartitionConfig",
    "RoundConfig",
    "StrategyConfig",
    "TrainConfig",
    "changed",
    "describe_keys",
    "load_config",
    "parse_overrides",
]

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
_Colour = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0, le=1)]
_Colours = tuple[float, float, float]
# TOML has lists, which are no tuples to a strict model.
Colours = Annotated[tuple[_Colour, _Colour, _Colour], Field(strict=False)]
Deviations = Annotated[tuple[_Deviation, _Deviation, _Deviation], Field(strict=False)]


def _backbone_name(value: str) -> str:
    if value not in ARCHITECTURES:
        raise ValueError(f"must be one of {', '.join(ARCHITECTURES)}")
    return value


BackboneName = Annotated[str, AfterValidator(_backbone_name)]


def _update_norm(value: object) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and 0 <= (number := float(value)) < math.inf:  # type: ignore[arg-type]
        return number
    raise ValueError('must be "auto", or a finite number from 0 on')


UpdateNorm = Annotated[float | Literal["auto"], PlainValidator(_update_norm)]


def _number_or_share(value: object) -> int | float:
    """A whole number of clients, or a share of them; 1.0 might be meant as either."""
    if type(value) is int and value >= 0:
        return value
    if type(value) is float and 0 < value < 1:
        return value
    raise ValueError(
        "must be a whole number of clients, 0 for every one, or a share of them between 0 and 1"
    )


NumberOrShare = Annotated[int | float, PlainValidator(_number_or_share)]

PARTITION_KEYS = {
    "dirichlet": "alpha",
    "pathological": "classes-per-client",
    "shard": "shards-per-client",
    "natural": "column",
}
"""The key in [partition] that a scheme has to itself."""

_USUAL_SCALES = {"sign-flip": 5.0, "alie": 1.5, "ipm": 2.0, "gaussian": 0.1, "inflate": 10.0}


class DataConfig(Section):
    """[data]: where images come from."""

    source: str = Field("mnist5k", min_length=1)
    """mnist5k, digits, a torchvision data set's name, folder:PATH (one sub-folder a class),
    folder-by-client:PATH (one folder a client, one sub-folder a class in each),
    csv:PATH (a table of file names and labels beside the images) or hf:NAME."""
    root: str = ""
    """Folder of torchvision data sets; empty: the data folder in the cache."""
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
        return self.source.startswith(("csv:", "hf:"))


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


class BackboneConfig(Section):
    """[backbone]: the frozen network."""

    arch: BackboneName = Field("mobilenet_v2", description=f"One of {', '.join(ARCHITECTURES)}.")
    weights: str = Field("imagenet", min_length=1)
    """imagenet, random, file:PATH or the name of a torchvision weights enum."""
    input_size: Annotated[int, Field(ge=32, le=1024)] = 96
    """Height and width in pixels."""
    mean: Colours | None = None
    """Of red, green and blue in [0, 1], as the weights were trained; unset: as the architecture's
    own weights were. TensorFlow's are often 0.5."""
    std: Deviations | None = None
    """Likewise; the network gets (pixel / 255 - mean) / std."""
    engine: Literal["qnnpack", "x86", "onednn", "fbgemm"] = "qnnpack"
    """qnnpack computes the same bits as a phone."""
    distill_steps: Count = 40
    """Steps of quantization-aware distillation; 0: post-training quantization."""
    feature_scaling: Literal["none", "center", "standardize"] = "center"
    """How trainers see features; folded into the head at export."""

    def normalization(self, arch: str = "") -> tuple[_Colours, _Colours]:
        """Mean and standard deviation; where none are set, those of an architecture.

        Args:
            arch: of which; empty: the configured one.
        """
        row = architecture(arch or self.arch)
        return self.mean or row.mean, self.std or row.std


class StrategyConfig(Section):
    """[strategy]: how the server aggregates."""

    name: str = Field("fedavg", min_length=1)
    """One of fedhead's own, or an import path: module:function for one of yours, module:Class
    for one of Flower's."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The strategy's own settings, see fedhead strategies."""
    init_from: str = ""
    """Run folder whose head is the first one, and whose backbone is this run's; rows are matched by
    the names of classes, new ones start at zero."""
    init: Literal["zeros", "fed3r"] = "zeros"
    """The first head; fed3r takes a first round in which every client sends its statistics."""
    init_temperature: Annotated[float, Field(gt=0)] = 10.0
    """The first head is this times the ridge head of fed3r, so that its softmax is sure."""
    init_lambda: Annotated[float, Field(gt=0)] = 10.0
    """Penalty of that ridge head."""
    precondition: Literal["none", "gram"] = "none"
    """gram: clients' gradients are multiplied by the inverse of all clients' Gram matrix."""
    precondition_lambda: Annotated[float, Field(gt=0)] = 100.0
    """What is added to that Gram matrix before it is inverted."""


class TrainConfig(Section):
    """[train]: rounds, and what a client does in one."""

    rounds: Positive = 50
    """Rounds of federated training."""
    clients_per_round: NumberOrShare = 0
    """How many are asked; below 1 a share of all clients, rounded up; 0: every client."""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate of the clients' SGD."""
    local_epochs: Positive = 1
    """Passes over its examples that a client makes in a round."""
    batch_size: Positive = 10
    """Examples a step."""
    momentum: Fraction = 0.0
    """Heavy-ball momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty."""

    def asked(self, num_clients: int) -> int:
        """How many of so many clients a round asks; 0: every one, however many come.

        >>> TrainConfig.model_validate({"clients-per-round": 0.1}).asked(55)
        6
        """
        number = self.clients_per_round
        return number if isinstance(number, int) else math.ceil(number * num_clients - 1e-9)

    def local(self) -> LocalTraining:
        """The part that a client needs."""
        return LocalTraining(
            lr=self.lr,
            local_epochs=self.local_epochs,
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


class RoundConfig(Section):
    """[round]: when a round closes and what is kept of it."""

    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """Real seconds that nodes have to answer; for simulated ones see [availability]."""
    over_selection: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Share of clients asked beyond train.clients-per-round; a round closes once that many updates
    are valid, and who is slower is late."""
    quorum: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the clients that a round wants whose updates must be valid, else the head stays."""
    max_update_norm: UpdateNorm = 0.0
    """An update of a larger L2 norm is refused; "auto": one over 10 times the median of the round's
    and of the run's first. 0: "auto" on a deployment's devices, in a simulation no bound."""
    max_examples_per_client: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Pictures that a client uses at most, evenly spread, training and test part together; a device
    that claims more is refused. 0: 1,000 on a deployment's devices, in a simulation no bound."""
    keep_checkpoints: Positive = 3
    """How many rounds' checkpoints stay."""


class AvailabilityConfig(Section):
    """[availability]: which simulated phones answer, and when; seconds here are simulated."""

    dropout_rate: Fraction = 0.0
    """Share of a round's clients that never answer."""
    straggler_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all clients that are slow, the same ones in every round."""
    straggler_factor: Annotated[float, Field(ge=1)] = 5.0
    """How many times as long a slow client takes."""
    example_seconds: Annotated[float, Field(gt=0)] = 0.01
    """What an ordinary client takes for one example in one epoch."""
    deadline_seconds: Annotated[float, Field(ge=0)] = 0.0
    """A round closes after this time; 0: never."""
    close_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A round closes once this share of its clients has answered."""


class AttackConfig(Section):
    """[attack]: simulated clients that try to spoil the model."""

    kind: Literal[
        "none", "sign-flip", "alie", "ipm", "gaussian", "nan", "inflate", "label-flip"
    ] = "none"
    """What they do. They send their delta times -scale; the honest ones' mean plus scale standard
    deviations; that mean times -scale; noise of this deviation; NaN; a number of examples scale
    times as large; or they train on labels K - 1 - y."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of all clients that are malicious, rounded down; the same ones in every round."""
    scale: Annotated[float, Field(ge=0)] = 0.0
    """0: the usual one, sign-flip 5, alie 1.5, ipm 2, gaussian 0.1, inflate 10."""

    @property
    def strength(self) -> float:
        """The scale that applies."""
        return self.scale or _USUAL_SCALES.get(self.kind, 0.0)

    @property
    def changes_updates(self) -> bool:
        """Whether malicious clients send something else than what they computed."""
        return self.kind not in ("none", "label-flip")

    def count(self, num_clients: int) -> int:
        """How many of so many clients are malicious."""
        return 0 if self.kind == "none" else math.floor(self.fraction * num_clients + 1e-9)

    def problem(self, num_clients: int) -> str:
        """What cannot be meant; empty if nothing."""
        if self.scale and self.kind not in _USUAL_SCALES:
            return f"attack.scale={self.scale:g} means nothing to attack.kind={self.kind!r}"
        if self.kind == "inflate" and not self.scale.is_integer():
            return f"attack.scale={self.scale:g} must be a whole number: examples are counted"
        if self.kind != "none" and not self.count(num_clients):
            return f"attack.fraction={self.fraction:g} of {num_clients} clients is nobody"
        return ""


class BaselineConfig(Section):
    """[baseline]: what the same features give without federation."""

    epochs: Count = 30
    """Epochs of the centralized head, same optimizer; 0: skip both baselines."""
    lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate of the centralized head; 0: train.lr."""
    ridge_lambda: Annotated[float, Field(gt=0)] = 10.0
    """Penalty of the ridge head."""


class SimulationConfig(Section):
    """[simulation]: the engines on this machine, in-process and Flower's."""

    nodes: Positive = 1
    """Virtual nodes that host the clients; a stock Flower strategy has one for each client."""
    trainer: Literal["cohort", "reference"] = "cohort"
    """All of a node's clients at once, or one by one in plain torch: the same to rounding."""
    cohort_memory: Annotated[ByteSize, Field(ge=0)] = ByteSize(2_000_000_000)
    """What a node's Gram matrices may take between rounds, for example "4GB"."""


class Config(Section):
    """One experiment."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Names the run folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of everything that is drawn."""
    out: str = ""
    """Run folder; empty: runs/<name> in the working folder."""
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    backbone: BackboneConfig = BackboneConfig()
    strategy: StrategyConfig = StrategyConfig()
    train: TrainConfig = TrainConfig()
    round: RoundConfig = RoundConfig()
    baseline: BaselineConfig = BaselineConfig()
    simulation: SimulationConfig = SimulationConfig()
    availability: AvailabilityConfig = AvailabilityConfig()
    attack: AttackConfig = AttackConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.train.clients_per_round > self.partition.num_clients and (
            self.partition.scheme != "natural"
        ):
            raise ValueError(
                f"train.clients-per-round={self.train.clients_per_round} is more than "
                f"partition.num-clients={self.partition.num_clients}"
            )
        if self.round.over_selection and not self.train.clients_per_round:
            raise ValueError(
                "round.over-selection needs train.clients-per-round: nobody is beyond every client"
            )
        for key in ("label-column", "image-column"):
            if getattr(self.data, key.replace("-", "_")) and not self.data.has_columns:
                raise ValueError(
                    f"data.{key} is for csv: and hf:, "
                    f"data.source={self.data.source!r} has no columns"
                )
        if problem := self.attack.problem(self.partition.num_clients):
            raise ValueError(problem)
        return self

    @property
    def data_seed(self) -> int:
        """The seed of data set and backbone, which runs with different seeds may share."""
        return self.seed if self.data.seed < 0 else self.data.seed

    def to_toml(self) -> str:
        """The whole configuration, defaults included, but for what is unset.

        The last line, a comment, holds a checksum of those before it: a value that is changed by
        accident does not look like one that was written.
        """
        text = tomli_w.dumps(self.model_dump(by_alias=True, exclude_none=True))
        return f"{text}# checksum: {checksum(text.encode()).decode()}\n"


def describe_keys() -> list[tuple[str, str, str]]:
    """Every key as ``section.key``, with its default as TOML and what it means."""
    rows: list[tuple[str, str, str]] = []

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            key = prefix + name.replace("_", "-")
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                walk(annotation, f"{key}.")
                continue
            default = field.get_default(call_default_factory=True)
            if default is None:
                text = "unset"
            else:
                text = tomli_w.dumps({"x": default}).partition(" = ")[2].strip() or "{}"
            if get_origin(annotation) is Literal:
                choices = " | ".join(get_args(annotation))
                rows.append((key, text, f"{choices}. {field.description or ''}".strip()))
            else:
                rows.append((key, text, field.description or ""))

    walk(Config, "")
    return rows


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """Turn ``section.key=value`` items into a nested mapping.

    Where a key takes text, the text is the value (in quotes or not); elsewhere it is TOML.

    >>> parse_overrides(["train.lr=0.1", "data.source=digits", "name=2024-01-05"])
    {'train': {'lr': 0.1}, 'data': {'source': 'digits'}, 'name': '2024-01-05'}

    Raises:
        ConfigError: with all items that are not of this form.
    """
    tree: dict[str, Any] = {}
    problems = []
    for item in items:
        key, separator, text = item.partition("=")
        path = key.strip().split(".")
        if not separator or not all(path):
            problems.append(f"'{item}' is not of the form section.key=value")
            continue
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                problems.append(f"'{item}' goes below a key that has a value of its own")
                break
        else:
            node[path[-1]] = _parsed(path, text.strip())
    if problems:
        raise ConfigError(problems, "overrides")
    return tree


def _parsed(path: Sequence[str], text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    # No key takes a date, and a strategy's argument that is not finite can only be a word.
    is_word = isinstance(value, datetime.date | datetime.time) or (
        path[:2] == ["strategy", "args"] and isinstance(value, float) and not math.isfinite(value)
    )
    return text if is_word or (_takes_text(path) and not isinstance(value, str)) else value


def _takes_text(path: Sequence[str]) -> bool:
    """Whether a key is there and takes nothing but text."""
    annotation: Any = Config
    for part in path:
        fields = getattr(annotation, "model_fields", {})
        name = part.replace("-", "_")
        if name not in fields:
            return False
        annotation = fields[name].annotation
    return annotation is str or get_origin(annotation) is Literal


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both and old is not None else value
    return merged


def load_config(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read an experiment file (none: all defaults) and apply overrides.

    Raises:
        ConfigError: the file is missing or not TOML, or with all problems of its content.
    """
    where = str(path) if path else "configuration"
    content = read_toml(path) if path else {}
    return validated(Config, _merge(content, overrides or {}), where)


def changed(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The same configuration with other values, kebab-case keys as in a file.

    Raises:
        ConfigError: with all problems.
    """
    return validated(Config, _merge(config.model_dump(by_alias=True), overrides), "")
