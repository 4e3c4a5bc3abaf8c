"""A plan of a private run for a terminal of 80 columns, and for other programs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from common.privacy.words import NEIGHBOURS, figure
from server.round.private import Decided
from simulations.probe.private_plan import Outlook, PrivatePlan

__all__ = ["plan_json", "plan_tables"]


def plan_tables(plan: PrivatePlan) -> Iterator[RenderableType]:
    """The terms, the noise, accuracy by budget, and what the simulation cannot know."""
    table = Table(title="A private run", show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in _terms(plan).items():
        table.add_row(name, words)
    yield table
    yield _budgets(plan)
    for line in _remarks(plan):
        yield Padding(Text(line), (0, 0, 0, 2))


def _terms(plan: PrivatePlan) -> dict[str, str]:
    one = plan.wanted
    terms = {
        "budget": f"epsilon {figure(plan.asked)}, delta {plan.delta:g}, {NEIGHBOURS}",
        "clients": f"{plan.clients:,}, typically with {plan.examples:.3g} images each",
        "rounds": f"{plan.rounds:,} of FedAvg, mechanism {plan.mechanism}",
        "directions": f"{one.directions:,} features of an image are trained on",
    }
    if one.decided:
        decided, sigma = one.decided, mean_noise(one.decided)
        terms |= {
            "noise, in clips": f"{decided.noise:.4g} on the sum of a round's updates",
            "clip": f"{decided.clip * decided.norm:.4g} on features of norm 1",
            "noise of a mean": f"{sigma:.3g} in each weight, of {decided.divisor:,.0f} clients",
            "step": f"{decided.step:,.0f} times the mean",
        }
    spread = f"± {100 * plan.margin:.1f} by chance of {plan.tests:,} test images"
    return {**terms, "accuracy, simulated": f"{100 * one.accuracy:.1f} % {spread}"}


def mean_noise(decided: Decided) -> float:
    """Standard deviation of the noise in a weight of a round's mean update, unit features."""
    return decided.noise * decided.clip * decided.norm / decided.divisor


def _budgets(plan: PrivatePlan) -> Table:
    table = Table(title=f"Accuracy by budget, simulated on {plan.source}", title_justify="left")
    for name in ("epsilon", "accuracy", "lowest to highest noise", "noise, in clips", "directions"):
        table.add_column(name, justify="right")
    for one in plan.outlooks:
        low, high = min(one.accuracies), max(one.accuracies)
        table.add_row(
            "none" if math.isinf(one.epsilon) else figure(one.epsilon),
            f"{100 * one.accuracy:.1f} %",
            f"{100 * low:.1f} to {100 * high:.1f}" if one.decided else "-",
            f"{one.decided.noise:.4g}" if one.decided else "-",
            f"{one.directions:,}",
            style="bold" if one.epsilon == plan.asked else "",
        )
    return table


def _remarks(plan: PrivatePlan) -> Iterator[str]:
    """What these figures rest on."""
    yield "none: ridge regression of the same images in one place, without privacy."
    if plan.simulated < plan.clients:
        each = plan.clients / plan.simulated
        yield (
            f"The {plan.images:,} images make {plan.simulated:,} clients: each stands for "
            f"{each:,.1f} of the {plan.clients:,}, with the noise for {plan.clients:,}. What more "
            "images would teach is not in these figures."
        )
    else:
        yield f"The {plan.images:,} images are dealt out to the {plan.clients:,} clients."
    yield "Your images' labels were used without noise: these figures are for you, not to publish."


def plan_json(plan: PrivatePlan) -> dict[str, Any]:
    """All figures as plain values; an infinite epsilon is null."""
    figures = {**asdict(plan), "outlooks": [_outlook(one) for one in plan.outlooks]}
    return {**figures, "accuracy": plan.wanted.accuracy, "margin": plan.margin}


def _outlook(one: Outlook) -> dict[str, Any]:
    return {
        "epsilon": one.epsilon if math.isfinite(one.epsilon) else None,
        "accuracy": one.accuracy,
        "accuracies": list(one.accuracies),
        "directions": one.directions,
        "decided": one.decided and asdict(one.decided),
        "mean_noise": one.decided and mean_noise(one.decided),
    }
