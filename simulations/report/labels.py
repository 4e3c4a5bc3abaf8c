"""Short names for settings and strategies, from nothing but their configurations.

Configurations are flat here: a value for each dotted key, see :func:`common.keys.flat`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from common.config import PARTITION_KEYS, Config
from common.keys import flat
from server.strategies import STRATEGIES, build_strategy, trains_by_gradients
from simulations.report.packing import PACKING_KEYS, codec_label
from simulations.report.runs import Run

__all__ = [
    "NOT_COMPARED",
    "compared_values",
    "differing",
    "distinct",
    "hyperparameters",
    "is_setting",
    "number_or_share",
    "partition_label",
    "setting_label",
    "strategy_label",
    "text",
]

Values = Mapping[str, Any]

_DEFAULTS = flat(Config().model_dump(by_alias=True))
_UNSET = "default"
# What tells no two runs of a comparison apart.
NOT_COMPARED = ("seed", "out", "name")
# What belongs to a strategy; all other keys make the setting.
_OF_THE_STRATEGY = (
    "strategy.", "train.", "round.", "simulation.", "codec.", "privacy.", *PACKING_KEYS,
)  # fmt: skip
_OF_THE_SETTING = ("train.clients-per-round", "train.clients")
_IN_STRATEGY_LABEL = ("strategy.name", "strategy.init", "strategy.precondition")
# Where a user's module lies is no setting of the strategy.
_FOLDERS = ("strategy.root", "train.loss-root")
_PARTITION = {"partition.scheme", *(f"partition.{key}" for key in PARTITION_KEYS.values())}
_AT_REST = {"availability": "full availability", "attack": "no attack"}


def text(value: Any) -> str:
    """A value as a person would write it; of a path only the last name."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    kind, colon, rest = str(value).rpartition(":")
    return f"{kind}{colon}{rest.rstrip('/').rpartition('/')[2]}"


def compared_values(run: Run) -> Values:
    """A run's configuration as runs are compared: without what changes no figure of it.

    That is who was told of its rounds and, where devices took part, the partition. A codec that
    the strategy chose itself has its name.
    """
    values = {key: v for key, v in run.values.items() if not key.startswith("tracking.")}
    values |= {"codec.up": codec_label(values)}
    if not run.devices:
        return values
    unused = {*_PARTITION, "partition.num-clients"}
    values = {key: value for key, value in values.items() if key not in unused}
    return {**values, "partition.scheme": "devices"}


def strategy_label(values: Values) -> str:
    """As ``fedhead compare`` names it, "fedavg+gram"; of an import path the last name."""
    label = str(values["strategy.name"]).rpartition(":")[2]
    variants = (values["strategy.init"], values["strategy.precondition"])
    return "+".join([label, *(name for name in variants if name not in ("zeros", "none"))])


def is_setting(key: str) -> bool:
    """Whether it is of the setting, which a strategy cannot choose: data, clients, attacks."""
    own = key.startswith(_OF_THE_STRATEGY) and key not in _OF_THE_SETTING
    return not own and key not in NOT_COMPARED


def hyperparameters(
    values: Values, compared: Sequence[Values] = (), swept: Collection[str] = ()
) -> str:
    """Learning rate, what else was set for strategy and training, was swept, or differs.

    A closed form trains nothing, so it has no [train]. The number of rounds is left out where all
    have the same.

    Args:
        values: of one strategy, without those of its setting.
        compared: of all strategies beside it.
        swept: keys that are always written.

    >>> a = {"strategy.name": "fedprox", "strategy.args.mu": 0.1, "train.lr": 0.05}
    >>> hyperparameters(a | {"train.local-epochs": 2})
    'lr=0.05 mu=0.1 local-epochs=2'
    """
    is_trained = _has_learning_rate(values["strategy.name"])
    shown = {*swept, *differing(compared)}
    packing = [key for key in PACKING_KEYS if key not in swept]  # it stands in the label
    first = ["train.lr"] * is_trained + [k for k in values if k.startswith("strategy.args.")]
    hidden = (*first, "train.lr", *_FOLDERS, *_IN_STRATEGY_LABEL, *packing)
    others = [
        key
        for key, value in values.items()
        if (key in shown or _is_set(key, value))
        and key not in hidden
        and (is_trained or not key.startswith("train.") or key == "train.rounds")
    ]
    names = _names([*first, *others])
    return " ".join(f"{name}={text(values[key])}" for key, name in names.items())


def _is_set(key: str, value: Any) -> bool:
    """Whether a key of the strategy or its training is away from its default."""
    is_own = key.startswith(("strategy.", "train.", "privacy.")) and key != "train.rounds"
    return is_own and value != _DEFAULTS.get(key)


def _has_learning_rate(strategy: str) -> bool:
    # A user's own is not imported for this: it may not be at hand where the report is made.
    return strategy not in STRATEGIES or trains_by_gradients(build_strategy(strategy))


def setting_label(values: Values, compared: Sequence[Values]) -> str:
    """What makes the setting differ from the others, or its partition if nothing does.

    Sections at their defaults say nothing, but where they are the difference ("no attack").
    """
    # A key that only some have comes with another, as a partition's number of clients does.
    apart = [key for key in differing(compared) if all(key in other for other in compared)]
    phrases = []
    if "data.source" in apart:
        phrases.append(text(values["data.source"]))
    if _PARTITION & set(apart) or not apart:
        phrases.append(partition_label(values))
    others = [key for key in apart if key not in _PARTITION and key != "data.source"]
    for section in dict.fromkeys(key.partition(".")[0] for key in others):
        keys = [key for key in others if key.startswith(f"{section}.")]
        if all(values.get(key) == _DEFAULTS.get(key) for key in keys) and section in _AT_REST:
            phrases.append(_AT_REST[section])
        else:
            phrases += [_phrase(key, values[key]) for key in keys if key in values]
    return ", ".join(phrases)


def distinct(labels: Sequence[str], configs: Sequence[Values]) -> list[str]:
    """Labels that differ: equal ones get the keys in which their configurations differ.

    >>> distinct(["fedavg", "fedavg"], [{"train.lr": 0.1}, {"train.lr": 1.0}])
    ['fedavg lr=0.1', 'fedavg lr=1']
    """
    counts = Counter(labels)
    result = []
    for label, values in zip(labels, configs, strict=True):
        if counts[label] > 1:
            same = [c for other, c in zip(labels, configs, strict=True) if other == label]
            names = _names([key for key in differing(same) if key not in _FOLDERS])
            pairs = [f"{name}={text(values.get(key, _UNSET))}" for key, name in names.items()]
            label = " ".join([label, *pairs])
        result.append(label)
    # Values that look alike when they are short, such as two folders of one name.
    seen = Counter[str]()
    for i, label in enumerate(result):
        seen[label] += 1
        if seen[label] > 1:
            result[i] = f"{label} ({seen[label]})"
    return result


def differing(configs: Sequence[Values]) -> list[str]:
    """Keys that not all have, or not with the same value, in order."""
    keys = dict.fromkeys(key for values in configs for key in values)
    missing = object()
    return [
        key
        for key in keys
        if any(values.get(key, missing) != configs[0].get(key, missing) for values in configs)
    ]


def _names(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each key, or all of it where two would be the same."""
    short = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(short.values())
    return {key: name if counts[name] == 1 else key for key, name in short.items()}


def partition_label(values: Values) -> str:
    """As ``fedhead compare`` names it."""
    scheme = values["partition.scheme"]
    key = PARTITION_KEYS.get(scheme)
    return f"{scheme}:{text(values[f'partition.{key}'])}" if key else scheme


def number_or_share(value: float) -> str:
    """As a person would write it.

    >>> number_or_share(10), number_or_share(0.1)
    ('10', '10 %')
    """
    return f"{100 * value:g} %" if isinstance(value, float) else str(value)


def _phrase(key: str, value: Any) -> str:
    if key == "partition.num-clients":
        return f"{value} clients"
    if key == "train.clients-per-round":
        return f"{number_or_share(value)} a round" if value else "all every round"
    if key == "train.clients":
        return f"clients {', '.join(map(str, value))} alone" if value else "all clients"
    return text(value) if isinstance(value, str) else f"{key.rpartition('.')[2]}={text(value)}"
