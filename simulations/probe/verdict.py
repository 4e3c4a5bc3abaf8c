"""What a probe's figures mean, in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulations.probe.measure import Probe

__all__ = ["Outcome", "Verdict", "judge"]

Outcome = Literal["suffices", "more examples", "does not suffice"]

_WITHIN_REACH = 10  # times today's examples; a power law fitted to a decade holds no further
_FITTED_POINTS = 4
# Features that leave more than this share of the pixels' error carry little that pixels lack.
_NO_BETTER = 0.9
_BETTER_BY = 0.02


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        outcome: does training the head alone suffice?
        headline: the same as a sentence.
        reasons: what speaks for it, each a sentence.
        advice: what to do next, empty where nothing is to be done.
    """

    outcome: Outcome
    headline: str
    reasons: tuple[str, ...]
    advice: str


def judge(probe: Probe, target: float) -> Verdict:
    """Decide by the accuracy that is needed.

    Args:
        probe: the figures.
        target: accuracy in (0, 1).
    """
    low, high = probe.interval
    measured = f"{probe.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"
    if probe.accuracy >= target:
        unsure = [] if low >= target else ["The interval reaches below: more images would tell."]
        headline = f"Training the head suffices: {measured}, {target:.1%} needed."
        return Verdict("suffices", headline, (*unsure, *_far(probe)), "")
    needed = examples_needed(probe, target)
    now = probe.curve[-1].examples
    unfit = probe.training_accuracy < target
    if needed is not None and needed <= _WITHIN_REACH * now and not unfit:
        pace = f"Still rising: at this pace {_round_up(needed):,} examples a class would do."
        return Verdict(
            "more examples",
            f"Training the head does not suffice yet: {measured}, {target:.1%} needed.",
            (pace, *_far(probe)),
            f"Collect more than today's {now:.0f} a class, then probe again.",
        )
    return Verdict(
        "does not suffice",
        f"Training the head alone does not suffice: {measured}, {target:.1%} needed.",
        (*_limits(probe, needed, unfit=unfit), *_far(probe)),
        "Fine-tune the backbone on similar images before it is frozen, or try a larger "
        "backbone.input-size. Head-only training is known to fall behind full fine-tuning by "
        "up to 34 points on images far from ImageNet (TinyTL, arXiv 2007.11622).",
    )


def _limits(probe: Probe, needed: float | None, *, unfit: bool) -> list[str]:
    """What holds the head back."""
    reasons = []
    if unfit:
        reasons.append(
            f"Heads reach {probe.training_accuracy:.1%} on their own training examples: the "
            "features lack what tells these classes apart."
        )
    if needed is None:
        reasons.append("More examples do not help: the learning curve is flat.")
    else:
        reasons.append(
            f"More examples hardly help: at this pace it takes {_round_up(needed):,} a class."
        )
    if probe.neighbours > probe.accuracy + _BETTER_BY:
        reasons.append(
            f"Nearest neighbours in the same features reach {probe.neighbours:.1%}: the classes "
            "are there, but no planes separate them."
        )
    return reasons


def _far(probe: Probe) -> list[str]:
    """Whether the pretrained features say more than the pixels."""
    if 1 - probe.accuracy <= _NO_BETTER * (1 - probe.pixels):
        return []
    how = "better" if probe.pixels > probe.accuracy else "about as well"
    return [
        f"A linear head on the bare pixels does {how} ({probe.pixels:.1%}): these images look "
        "far from ImageNet, and training more than the head would pay."
    ]


def examples_needed(probe: Probe, target: float) -> float | None:
    """Examples a class at which the error's power law meets the target; None if it never does.

    The law ``error = c m^-b`` is fitted to the curve's end, where it holds best (Hestness et
    al.: "Deep Learning Scaling is Predictable, Empirically", arXiv 1712.00409).
    """
    end = [point for point in probe.curve[-_FITTED_POINTS:] if point.accuracy < 1]
    if len(end) < 2:
        return None
    log_m = np.log([point.examples for point in end])
    log_error = np.log([1 - point.accuracy for point in end])
    slope, at_one = np.polyfit(log_m, log_error, 1)
    if slope >= 0:
        return None
    exponent = (math.log(1 - target) - at_one) / slope
    return math.exp(exponent) if exponent < math.log(1e9) else None


def _round_up(value: float) -> int:
    """To two digits: an extrapolation knows no more."""
    unit = 10.0 ** max(math.floor(math.log10(max(value, 1))) - 1, 0)
    return math.ceil(value / unit) * int(unit)
