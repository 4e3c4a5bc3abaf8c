"""The section on differential privacy, and what other sections are unless they are set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PlainValidator

from common.config.numbers import Auto, Positive, PositiveOrAuto
from common.keys import flat
from common.privacy.rule import Mechanism, rounds
from common.toml_model import Section

__all__ = ["NO_PRIVACY", "PrivacyConfig", "by_rule", "is_private", "rule_keys"]


# With less, noise would not fit the integers that are summed, and its ends would count: a normal
# draw of 53 bits ends at 8.5 standard deviations.
_LEAST_EPSILON, _LEAST_DELTA = 1e-6, 1e-12


def _epsilon(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= _LEAST_EPSILON:
        return float(value)
    raise ValueError(f"must be a number of {_LEAST_EPSILON:g} or more; inf is no privacy")


def _clip(value: object) -> float | Literal["auto", "adaptive"]:
    if value in ("auto", "adaptive"):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError('must be "auto", "adaptive" or a number above 0')


def _examples(value: object) -> object:
    if value == "auto" or (type(value) is int and value > 0):
        return value
    raise ValueError('must be "auto" or a whole number above 0')


class PrivacyConfig(Section):
    """[privacy]: differential privacy of what leaves the server."""

    epsilon: Annotated[float, PlainValidator(_epsilon)] = math.inf
    """The budget of the whole run: the smaller, the less the model tells of any client, and the
    more noise is added. inf: no privacy. Else what is not set of train.rounds, local-epochs,
    batch-size, backbone.projection and partition.test-fraction is as privacy's rule has it."""
    delta: Annotated[float, Field(ge=_LEAST_DELTA, lt=1)] = 1e-5
    """Probability with which the bound may fail; it must be below 1 by the number of clients."""
    unit: Literal["client"] = "client"
    """What is protected: all examples of a client together."""
    mechanism: Mechanism = "everyone"
    """everyone: each round asks every client; poisson: each client is asked with a secret coin's
    chance, train.clients-per-round of them on average; min-separation: a client is asked again only
    after a fixed number of rounds; one-shot: closed forms, from one release of statistics."""
    clip: Annotated[float | Literal["auto", "adaptive"], PlainValidator(_clip)] = "auto"
    """Largest norm of a client's update, on features of norm 1; longer updates are shortened.
    "auto": by a rule from typical-examples; "adaptive": it follows the clients' updates."""
    step: PositiveOrAuto = "auto"
    """Factor on the mean update with its noise. "auto": by a rule from clients and noise."""
    typical_examples: Annotated[Positive | Auto, BeforeValidator(_examples)] = "auto"
    """Typical number of a client's examples, which is public. "auto": the mean in a simulation
    whose noise comes from its seed, else 20."""
    noise: Literal["auto", "secret", "seed"] = "auto"
    """Where the noise comes from: a secret that the run draws, or the run's seed, which makes a
    simulation repeatable and protects nobody. "auto": the seed in simulations, else a secret."""

    @property
    def active(self) -> bool:
        """Whether the run is private."""
        return math.isfinite(self.epsilon)

    @property
    def hides_cohorts(self) -> bool:
        """Whether nobody may know which clients a round asks, or how many."""
        return self.active and self.mechanism == "poisson"


NO_PRIVACY = PrivacyConfig()


_RULE: Mapping[str, Mapping[str, Any]] = {
    "train": {"rounds": 10, "local-epochs": 1, "batch-size": 0},
    "backbone": {"projection": "auto"},
    "partition": {"test-fraction": 0.0},  # clients evaluate nothing, so all their images train
}


def by_rule(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """An experiment's keys, with the rule's where the experiment is private and does not say.

    Args:
        content: sections by name, with kebab-case keys; as they were written.
    """
    if not is_private(content):
        return content
    privacy = content["privacy"]
    chosen = dict(content)
    for section, values in _RULE.items():
        written = content.get(section, {})
        if isinstance(written, Mapping):
            mechanism = privacy.get("mechanism", "everyone")
            own = {"rounds": rounds(mechanism)} if mechanism in get_args(Mechanism) else {}
            fitting = {key: own.get(key, value) for key, value in values.items()}
            chosen[section] = {**fitting, **written}
    return chosen


def rule_keys(mechanism: Mechanism) -> dict[str, Any]:
    """All keys that are the rule's, dotted, with its values.

    An experiment that was written without privacy sets them for other reasons.

    >>> rule_keys("one-shot")
    {'train.rounds': 1, 'backbone.projection': 'auto', 'partition.test-fraction': 0.0, \
'train.clients-per-round': 0}
    """
    keys = flat(_RULE) | {"train.lr": "auto", "train.clients-per-round": 0}
    keys["train.rounds"] = rounds(mechanism)
    if mechanism == "one-shot":  # whose clients take no steps
        steps = ("train.lr", "train.local-epochs", "train.batch-size")
        keys = {key: value for key, value in keys.items() if key not in steps}
    if mechanism in ("poisson", "min-separation"):  # which are about some clients a round
        del keys["train.clients-per-round"]
    return keys


def is_private(content: Mapping[str, Any]) -> bool:
    """Whether an experiment, as it was written, has a budget."""
    privacy = content.get("privacy")
    epsilon = privacy.get("epsilon", math.inf) if isinstance(privacy, Mapping) else math.inf
    return isinstance(epsilon, int | float) and math.isfinite(epsilon)
