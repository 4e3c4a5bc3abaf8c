"""How a run's clients packed what they sent, as a comparison names it.

That is a codec, a projection and a privacy budget. All belong to the strategy's row in a table, not
to its setting: a person chooses them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from common.config.privacy import rule_keys
from server.strategies import STRATEGIES

__all__ = [
    "EPSILON",
    "PACKING_KEYS",
    "SIZE_KEYS",
    "PackingLabels",
    "beyond_rule",
    "codec_label",
    "compared_keys",
    "packed",
    "packing_columns",
    "packing_labels",
    "without_rule",
]

_CODEC, _PROJECTION, EPSILON = "codec.up", "backbone.projection", "privacy.epsilon"
_RATE = "train.lr"
SIZE_KEYS = (_CODEC, _PROJECTION)
"""What makes updates small."""
PACKING_KEYS = (*SIZE_KEYS, EPSILON)
_UNCHOSEN = ("none", "own")


class PackingLabels(NamedTuple):
    """What a run has for ``PACKING_KEYS``.

    Attributes:
        codec: of what clients send, by its name.
        projection: "off", "auto" or the number of directions.
        epsilon: the budget; "inf" without privacy.
    """

    codec: str
    projection: str
    epsilon: str

    @property
    def features(self) -> tuple[str, str]:
        """What decides features: a projection, or a budget by whose rule there is one."""
        return self.projection, self.epsilon


def codec_label(values: Mapping[str, Any]) -> str:
    """Name of the codec of what clients send; "own" if a user's strategy chooses it."""
    return values[_CODEC] or ("none" if values["strategy.name"] in STRATEGIES else "own")


def packing_labels(values: Mapping[str, Any]) -> PackingLabels:
    """Those of a run's configuration."""
    epsilon = repr(float(values[EPSILON])).removesuffix(".0")
    return PackingLabels(codec_label(values), str(values[_PROJECTION]), epsilon)


def compared_keys(packings: Iterable[tuple[str, str, str]]) -> tuple[str, ...]:
    """Which of the keys are compared, given all rows' codecs, projections and budgets.

    Nobody compares codecs who chose none, though a user's strategy may have one of its own. Nor
    does anybody compare projections that come with the budgets, by privacy's rule.

    >>> compared_keys([("none", "off", "inf"), ("drive", "off", "inf"), ("own", "off", "inf")])
    ('codec.up',)
    >>> compared_keys([("none", "off", "inf"), ("none", "auto", "4")])
    ('privacy.epsilon',)
    """
    rows = {PackingLabels(*row) for row in packings}
    codecs, budgets = {row.codec for row in rows}, {row.epsilon for row in rows}
    projections = [{row.projection for row in rows if row.epsilon == one} for one in budgets]
    is_compared = (
        len(codecs) > 1 and bool(codecs - {*_UNCHOSEN}),
        max(map(len, projections), default=0) > 1,
        len(budgets) > 1,
    )
    return tuple(key for key, is_it in zip(PACKING_KEYS, is_compared, strict=True) if is_it)


def packed(label: str, values: Mapping[str, Any], keys: Collection[str]) -> str:
    """A strategy's label with what is compared behind it.

    >>> values = {"codec.up": "drive", "backbone.projection": 255, "strategy.name": "fedavg"}
    >>> packed("fedavg", values | {"privacy.epsilon": 4.0}, PACKING_KEYS)
    'fedavg · drive · 255 · epsilon 4'
    """
    codec, projection, epsilon = packing_labels(values)
    words = zip(PACKING_KEYS, (codec, projection, f"epsilon {epsilon}"), strict=True)
    return " · ".join([label, *(word for key, word in words if key in keys)])


def beyond_rule(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a private run has beside privacy's rule, and its rate; of others all but [privacy]."""
    if not math.isfinite(values[EPSILON]):
        return {k: v for k, v in values.items() if k == EPSILON or not k.startswith("privacy.")}
    ruled = {k: v for k, v in rule_keys(values["privacy.mechanism"]).items() if k != _RATE}
    ruled["privacy.mechanism"] = "one-shot"  # closed forms have no other
    return {k: v for k, v in values.items() if k not in ruled or ruled[k] != v}


def without_rule(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Rows without the rule's keys, where any is private: what differs by the rule needs no word.

    Args:
        rows: configurations of runs.
    """
    if not any(math.isfinite(row[EPSILON]) for row in rows):
        return rows
    ruled = {*rule_keys("everyone"), "privacy.mechanism"}
    return [{k: v for k, v in row.items() if k not in ruled} for row in rows]


def packing_columns(labels: PackingLabels, keys: Collection[str]) -> dict[str, str]:
    """Columns of tables for programs.

    Args:
        labels: of a row.
        keys: what is compared among all rows, see ``compared_keys``.
    """
    size = bool({*keys} & {*SIZE_KEYS})
    columns = {"codec": labels.codec, "projection": labels.projection} if size else {}
    return columns | ({"epsilon": labels.epsilon} if EPSILON in keys else {})
