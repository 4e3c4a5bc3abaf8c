"""How a run's clients made their updates small: codec and projection, as a comparison names them.

Both belong to the strategy's row in a table, not to its setting: a person chooses them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from server.strategies import STRATEGIES

__all__ = [
    "PACKING_KEYS",
    "codec_label",
    "compared_keys",
    "packed",
    "packing_columns",
    "projection_label",
]

_CODEC, _PROJECTION = "codec.up", "backbone.projection"
PACKING_KEYS = (_CODEC, _PROJECTION)
_UNCHOSEN = ("none", "own")


def codec_label(values: Mapping[str, Any]) -> str:
    """Name of the codec of what clients send; "own" if a user's strategy chooses it."""
    return values[_CODEC] or ("none" if values["strategy.name"] in STRATEGIES else "own")


def projection_label(values: Mapping[str, Any]) -> str:
    """What the features are projected to: "off", "auto" or the number of directions."""
    return str(values[_PROJECTION])


def compared_keys(packings: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Which of the two keys are compared, given all rows' codecs and projections.

    Nobody compares codecs who chose none, though a user's strategy may have one of its own.

    >>> compared_keys([("none", "off"), ("drive", "off"), ("own", "off")])
    ('codec.up',)
    """
    codecs, projections = ({*column} for column in zip(*packings, strict=True))
    is_compared = (len(codecs) > 1 and bool(codecs - {*_UNCHOSEN}), len(projections) > 1)
    return tuple(key for key, is_it in zip(PACKING_KEYS, is_compared, strict=True) if is_it)


def packed(label: str, values: Mapping[str, Any], keys: Collection[str]) -> str:
    """A strategy's label with what is compared behind it.

    >>> values = {"codec.up": "drive", "backbone.projection": 255, "strategy.name": "fedavg"}
    >>> packed("fedavg", values, PACKING_KEYS)
    'fedavg · drive · 255'
    """
    words = zip(PACKING_KEYS, (codec_label(values), projection_label(values)), strict=True)
    return " · ".join([label, *(word for key, word in words if key in keys)])


def packing_columns(codec: str, projection: str, *, compared: bool) -> dict[str, str]:
    """Columns of tables for programs; none where neither is compared."""
    return {"codec": codec, "projection": projection} if compared else {}
