"""[codec]: which strategies and rounds a codec is for, and the one step that int8-shared needs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from common.codecs import Codec, find_codec
from common.codecs.int8_shared import INT8_SHARED
from common.config.codec import CodecConfig
from common.errors import ConfigError, ProtocolError
from common.fields import FIELDS
from common.types import Affine, ClientPlan, UpdateBatch
from server.strategy import Strategy, mean

__all__ = ["SHARED", "check_codecs", "encoded", "first_step", "next_step", "tolerated"]

SHARED = INT8_SHARED.name
"""The codec whose step all clients of a round share."""

_ON_SUMS = ("none", "int8", "drive", "eden", SHARED)
# Numbers with a step of their own row are close to what was sent. One or two bits are not, and a
# shared step is for sums that nobody reads.
_ON_SINGLE_UPDATES = ("none", "int8")
_ON_STATISTICS = ("none", "gram-int8")
_KINDS = {"f": "the results of training", "u": "statistics"}

# A step is this part of the mean update's root mean square. Clients differ, so that their own
# updates are some times larger than their mean, and most numbers are below 16 steps.
_STEPS = 2
_EXPONENTS = 90  # what a plan's step may have lies between 1e-30 and 1e30


def tolerated(strategy: Strategy[Any], plan: ClientPlan) -> tuple[str, ...]:
    """Names of fedhead's codecs that suit a strategy: those that it names, or by rule.

    Args:
        strategy: the strategy.
        plan: of its first round.
    """
    if strategy.codecs is not None:
        return strategy.codecs
    if plan.kind == "statistics":
        return _ON_STATISTICS
    # Unbiased noise averages out in a sum, but not in what compares or orders single updates.
    if strategy.reduce == "individual":
        return _ON_SINGLE_UPDATES
    several = len(_float_fields(plan)) > 1  # of different scales, which need steps of their own
    return tuple(name for name in _ON_SUMS if not (several and name == SHARED))


def check_codecs(codec: CodecConfig, own: Strategy[Any], plan: ClientPlan) -> None:
    """Refuse unknown codecs, and those that do not suit a strategy.

    A codec of the user's own is known once its module, which is the strategy's, is imported.

    Args:
        codec: the section.
        own: the strategy.
        plan: of its first round.

    Raises:
        ConfigError: names the key, the reason and what would do.
    """
    problems = {"up": _up_problem(codec.up, own, plan), "down": _down_problem(codec.down)}
    if told := [f"codec.{key}={getattr(codec, key)!r}: {p}" for key, p in problems.items() if p]:
        raise ConfigError(told)


def _up_problem(up: str, own: Strategy[Any], plan: ClientPlan) -> str:
    try:
        codec, name = find_codec(up or "none"), up.partition(":")[0]
    except ProtocolError as exc:
        return str(exc)
    if not up or name in (allowed := tolerated(own, plan)):
        return ""
    if not _carries(codec, plan):
        sent = _KINDS["u" if plan.kind == "statistics" else "f"]
        why = f"it is for {' and '.join(_KINDS[kind] for kind in codec.carries)}, and clients of "
        why += f"{own.name} send {sent}"
    elif name not in {*_ON_SUMS, *_ON_STATISTICS}:
        return ""  # one of the user's own, who knows what it does to a strategy
    elif own.reduce == "individual" and name == SHARED:
        why = f"it is for sums of updates that nobody reads, and {own.name} reads each of them"
    elif own.reduce == "individual":
        why = f"{own.name} compares single updates, and its noise is as large as one of them"
    elif name == SHARED and len(_float_fields(plan)) > 1:
        why = f"it has one step for all numbers, and {own.name} sends {', '.join(plan.fields)}"
    else:
        why = own.codecs_why or f"{own.name} does not tolerate its noise"
    return f"{why}; {own.name} goes with {', '.join(allowed)}"


def _down_problem(down: str) -> str:
    try:
        codec = find_codec(down or "none")
    except ProtocolError as exc:
        return str(exc)
    if codec.adds_up:
        return "it is for sums of what many clients send; int8 is for one array"
    return "" if "f" in codec.carries else f"it is for {_KINDS['u']}, and clients are sent a head"


def _carries(codec: Codec, plan: ClientPlan) -> bool:
    """Whether the codec is for anything that clients send by this plan."""
    fields = [FIELDS[name] for name in plan.fields if name in FIELDS]
    return any(field.kind in codec.carries and not field.exact for field in fields)


def encoded(plan: ClientPlan, up: str, step: float) -> ClientPlan:
    """A round's plan with the configured codec, unless the codec is for other rounds.

    Args:
        plan: as the strategy makes it.
        up: codec.up; empty: the strategy's own.
        step: of int8-shared.
    """
    if not up or not _carries(find_codec(up), plan):
        return plan
    return dataclasses.replace(plan, uplink=f"{SHARED}:{step!r}" if up == SHARED else up)


def first_step(lr: float, affine: Affine) -> float:
    """The step of int8-shared before anything is known of updates.

    A step of SGD with one example adds whole multiples of ``lr * gain``, times the probability's
    error: what a level of a feature is to the head.
    """
    return _power_of_two(lr * _root_mean_square(affine.gain))


def next_step(plan: ClientPlan, updates: UpdateBatch) -> float:
    """The step of int8-shared for the round after this one; 0 if all updates are zeros.

    It is public: whoever knows no more than the clients' sum knows it.
    """
    sizes = [_root_mean_square(mean(updates, name)) for name in _float_fields(plan)]
    return _power_of_two(min((size / _STEPS for size in sizes if size), default=0.0))


def _float_fields(plan: ClientPlan) -> list[str]:
    """The fields that a codec of floats encodes."""
    known = [name for name in plan.fields if name in FIELDS]
    return [name for name in known if FIELDS[name].kind == "f" and not FIELDS[name].exact]


def _root_mean_square(array: np.ndarray[Any, np.dtype[np.floating]]) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def _power_of_two(step: float) -> float:
    """The largest one that is not above the step, so that engines that round differently agree."""
    exponent = min(max(math.frexp(step)[1], -_EXPONENTS), _EXPONENTS)
    return math.ldexp(0.5, exponent) if step else 0.0
