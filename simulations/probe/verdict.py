"""The meaning of a probe's figures, in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulations.probe.crossval import FOLDS
from simulations.probe.measure import Probe

__all__ = ["Outcome", "Verdict", "judge"]

Outcome = Literal["suffices", "more examples", "does not suffice"]

_WITHIN_REACH = 10  # times today's examples; the fitted power law cannot be trusted further
_FITTED_POINTS = 4
# A curve counts training images only. Whoever collects images counts those that test too.
_IN_ALL = FOLDS / (FOLDS - 1)
_FOLD = f"Of {FOLDS} images, {FOLDS - 1} train and 1 tests."
# If features keep more than this share of the pixels' error, they are hardly better than pixels.
_NO_BETTER = 0.9
_BETTER_BY = 0.02


@dataclass(frozen=True)
class Verdict:
    """The answer of a probe.

    Attributes:
        outcome: whether training the head alone suffices.
        headline: the outcome as a sentence.
        reasons: reasons for it, each a sentence.
        advice: what to do next; empty if nothing.
    """

    outcome: Outcome
    headline: str
    reasons: tuple[str, ...]
    advice: str


def judge(probe: Probe, target: float) -> Verdict:
    """Decide whether the needed accuracy can be reached.

    Args:
        probe: the figures.
        target: the needed accuracy, in (0, 1).
    """
    low, high = probe.interval
    measured = f"{probe.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"
    wanted = f"{target:.1%} needed (--target)"
    if probe.accuracy >= target:
        unsure = [] if low >= target else ["The interval goes below it: test with more images."]
        headline = f"Training the head suffices: {measured}, {wanted}."
        return Verdict("suffices", headline, (*unsure, *_far(probe)), "")
    needed = examples_needed(probe, target)
    now = probe.curve[-1].examples
    unfit = probe.training_accuracy < target
    grows = probe.doubling.value > 0
    if needed is not None and needed <= _WITHIN_REACH * now and grows and not unfit:
        pace = (
            f"Still rising: at this rate it takes {_round_up(needed):,} training images per class. "
            f"{_FOLD} That makes {_round_up(needed * _IN_ALL):,} images per class in all."
        )
        pace = f"{_doubling(probe)} {pace}"
        return Verdict(
            "more examples",
            f"Training the head does not suffice yet: {measured}, {wanted}.",
            (pace, *_far(probe)),
            f"Collect more than today's {now * _IN_ALL:.0f} images per class ({now:.0f} of them "
            "train), then probe again.",
        )
    return Verdict(
        "does not suffice",
        f"Training the head alone does not suffice: {measured}, {wanted}.",
        (*_limits(probe, needed, unfit=unfit), *_far(probe)),
        "Fine-tune the backbone on similar public images before it is frozen: fedhead fine-tune "
        "IMAGES --out tuned.safetensors (probe --fine-tune tries it on these). Or try a larger "
        "backbone.input-size. Head-only training is known to fall behind full fine-tuning by "
        "up to 34 points on images far from ImageNet (TinyTL, arXiv 2007.11622).",
    )


def _limits(probe: Probe, needed: float | None, *, unfit: bool) -> list[str]:
    """Reasons why the head does not get better."""
    reasons = []
    if unfit:
        reasons.append(
            f"Heads reach {probe.training_accuracy:.1%} on their own training images: the "
            "features do not separate these classes."
        )
    reasons.append(_doubling(probe))
    if needed is None:
        reasons.append("The learning curve is flat, or the need is out of sight.")
    elif needed > probe.curve[-1].examples:
        reasons.append(
            f"At this rate it takes {_round_up(needed):,} training images per class, and today "
            f"there are {probe.curve[-1].examples:.0f}."
        )
    if probe.neighbours > probe.accuracy + _BETTER_BY:
        reasons.append(
            f"Nearest neighbours in the same features reach {probe.neighbours:.1%}: the features "
            "separate the classes, but a linear head cannot."
        )
    return reasons


def _doubling(probe: Probe) -> str:
    """What the last doubling of the training images gained."""
    if probe.doubling.is_sure:
        helps = "More images help"
    else:
        helps = f"More images {'may' if probe.doubling.value > 0 else 'hardly'} help"
    return f"{helps}: the last doubling of the training images gained {probe.doubling}."


def _far(probe: Probe) -> list[str]:
    """A reason if the pretrained features are hardly better than the pixels."""
    if 1 - probe.accuracy <= _NO_BETTER * (1 - probe.pixels):
        return []
    how = "better" if probe.pixels > probe.accuracy else "about as well"
    return [
        f"A linear head on the plain pixels does {how} ({probe.pixels:.1%}): these images seem far "
        "from ImageNet, so training more than the head should help (fedhead fine-tune)."
    ]


def examples_needed(probe: Probe, target: float) -> float | None:
    """Examples per class at which the error's power law meets the target; None: it never does.

    The law ``error = c m^-b`` is fitted to the curve's end, where it holds best (Hestness et
    al.: "Deep Learning Scaling is Predictable, Empirically", arXiv 1712.00409).
    """
    end = [point for point in probe.curve[-_FITTED_POINTS:] if point.accuracy < 1]
    if len(end) < 2:
        return None
    log_m = np.log([point.examples for point in end])
    log_error = np.log([1 - point.accuracy for point in end])
    if probe.has_own_test and 0 < probe.accuracy < 1:
        # The curve is cross-validated, and the test part may be harder than that.
        log_error += math.log(1 - probe.accuracy) - log_error[-1]
    slope, at_one = np.polyfit(log_m, log_error, 1)
    if slope >= 0:
        return None
    exponent = (math.log(1 - target) - at_one) / slope
    return math.exp(exponent) if exponent < math.log(1e9) else None


def _round_up(value: float) -> int:
    """Round up to two digits, as an extrapolation is not more precise."""
    unit = 10.0 ** max(math.floor(math.log10(max(value, 1))) - 1, 0)
    return math.ceil(value / unit) * int(unit)
