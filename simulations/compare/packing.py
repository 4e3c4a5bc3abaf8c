"""What a comparison sets beside strategies: a codec, a projection, a privacy budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from common.codecs import find_codec
from common.config import Config, changed
from common.config.privacy import is_private, rule_keys
from common.errors import ConfigError, ProtocolError
from common.keys import flat, nested
from common.privacy.rule import Mechanism

__all__ = [
    "Packing",
    "known_codec",
    "known_epsilon",
    "known_projection",
    "meant_for_privacy",
    "private_keys",
]

_DIGITS = 10


@dataclass(frozen=True)
class Packing:
    """One of the combinations that are compared.

    Attributes:
        codec: of what clients send, by its name; empty: the experiment's own.
        projection: "off", "auto" or a number of directions; empty: the experiment's own.
        epsilon: budget of a run's differential privacy, a number or "inf"; empty: the
            experiment's own.
    """

    codec: str = ""
    projection: str = ""
    epsilon: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """As named, without what is the experiment's own."""
        budget = f"epsilon {self.epsilon}" if self.epsilon else ""
        return tuple(filter(None, (self.codec, self.projection, budget)))

    @property
    def keys(self) -> Mapping[str, Any]:
        """What it sets in an experiment; see ``private_keys`` for what privacy's rule sets."""
        keys: dict[str, Any] = {}
        if self.codec:
            keys["codec"] = {"up": self.codec}
        if self.projection:
            keys["backbone"] = {"projection": _directions(self.projection)}
        if self.epsilon:
            keys["privacy"] = {"epsilon": float(self.epsilon)}
        return keys


def private_keys(
    base: Config, epsilon: str, *, has_gradients: bool, given: Collection[str]
) -> Mapping[str, Any]:
    """What a budget sets beside itself: a mechanism, and the keys that are the rule's.

    A closed form releases its statistics once. A strategy of many rounds has another mechanism,
    whatever the experiment's own strategy has.

    Args:
        base: the experiment.
        epsilon: as in ``Packing``.
        has_gradients: whether clients take steps.
        given: dotted keys that keep their values, because somebody set them for these runs.

    Returns:
        Values by section; none without privacy.
    """
    budget = float(epsilon) if epsilon else base.privacy.epsilon
    if not math.isfinite(budget):
        return {}
    own = base.privacy.mechanism
    mechanism: Mechanism = own if own != "one-shot" else "everyone"
    if not has_gradients:
        mechanism = "one-shot"
    if not epsilon and mechanism == own:
        return {}
    ruled = {key: value for key, value in rule_keys(mechanism).items() if key not in given}
    once = {"train.rounds": 1} if mechanism == "one-shot" else {}  # whatever others are given
    return nested({**ruled, **once, "privacy.mechanism": mechanism})


def meant_for_privacy(written: Mapping[str, Any], over: Mapping[str, Any]) -> frozenset[str]:
    """Dotted keys that privacy's rule must leave as they are.

    Args:
        written: an experiment as written, by section. All that stands in a private one is meant.
        over: what was set for these runs, by section.
    """
    return frozenset({*(flat(written) if is_private(written) else ()), *flat(over)})


def _directions(text: str) -> int | str:
    """A number as one; Python reads none of thousands of digits."""
    return int(text) if text.isdecimal() and len(text) < _DIGITS else text


def known_codec(name: str) -> str:
    """The name itself.

    Raises:
        ConfigError: there is no such codec; the error names the nearest.
    """
    try:
        find_codec(name)
    except ProtocolError as exc:
        raise ConfigError([f"--codecs: {exc}"]) from exc
    return name


def known_projection(base: Config, text: str) -> str:
    """The text itself, a number without leading zeros.

    Raises:
        ConfigError: it is no value of backbone.projection.
    """
    text = str(_directions(text))
    changed(base, Packing(projection=text).keys)
    return text


def known_epsilon(text: str) -> str:
    """The text itself, a number in its shortest form.

    >>> known_epsilon("4.0"), known_epsilon("inf")
    ('4', 'inf')

    Raises:
        ConfigError: it is neither a number above 0 nor inf.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise ConfigError([f"--epsilons {text!r} must be a number above 0, or inf for no privacy"])
    return repr(value).removesuffix(".0")
