"""How a comparison's clients make updates small: a codec, and a projection of the features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.codecs import find_codec
from common.config import Config, changed
from common.errors import ConfigError, ProtocolError

__all__ = ["Packing", "known_codec", "known_projection"]

_DIGITS = 10


@dataclass(frozen=True)
class Packing:
    """One of the combinations that are compared.

    Attributes:
        codec: of what clients send, by its name; empty: the experiment's own.
        projection: "off", "auto" or a number of directions; empty: the experiment's own.
    """

    codec: str = ""
    projection: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """As named, without what is the experiment's own."""
        return tuple(filter(None, (self.codec, self.projection)))

    @property
    def keys(self) -> Mapping[str, Any]:
        """What it sets in an experiment."""
        keys: dict[str, Any] = {}
        if self.codec:
            keys["codec"] = {"up": self.codec}
        if self.projection:
            keys["backbone"] = {"projection": _directions(self.projection)}
        return keys


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
