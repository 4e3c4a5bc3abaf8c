"""What a private run does unless it is told: rounds, clip, step and directions, by public numbers.

Nothing here looks at a client's data, which would cost budget. The rule has been fitted on features
of unit norm, on which an update is the mean gradient of a client's examples. Its step makes the
noise of each weight of the final head about as large as the weights of good heads are, whatever the
budget and the number of clients. On three data sets twice the step cost at most .9 points of
accuracy, and was 1.6 better with 50 clients; half of it cost up to 1.4, and 3 with 50 clients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Mechanism", "Served", "cancelled", "clip", "directions", "rounds", "served", "step"]

Mechanism = Literal["everyone", "poisson", "min-separation", "one-shot"]
"""How clients come to take part in a round."""

# Updates have a norm of about 1 by the root of the number of examples. A fourth of that makes
# nearly all of them equally long: three times too many or too few examples cost at most .5 points.
_CLIP = 0.25
# Beyond, it is not the noise that bounds how far steps may go.
_MOST_SIGNAL = 3000.0
# Up to which signal how many directions are best. Each direction has the same noise.
_FEWER = ((200.0, 32), (400.0, 64))
# Everyone: 5 to 40 differ by about a point. Coins for a fifth of the clients: 10 rounds have more
# noise, and were .3 to 5 points less accurate than 50.
_ROUNDS: Mapping[Mechanism, int] = {
    "everyone": 10, "poisson": 50, "min-separation": 20, "one-shot": 1,
}  # fmt: skip
# So many rounds' steps a mean over earlier gradients falls behind, in runs of so few rounds.
_BEHIND = 5.0
_TAU = 1e-3  # of fedadam, fedyogi and fedadagrad, unless it is set
_MOMENTUM = 0.9  # likewise of fedavgm, fedadam and fedyogi


def rounds(mechanism: Mechanism) -> int:
    """The number of rounds T.

    >>> rounds("everyone")
    10
    """
    return _ROUNDS[mechanism]


def clip(examples: float) -> float:
    """The norm C to which updates are shortened, on features of unit norm.

    Args:
        examples: a client's typical number of examples, at least 1.

    >>> clip(25)
    0.05
    """
    return _CLIP / math.sqrt(examples)


def step(divisor: float, multiplier: float, clip: float, rounds: int) -> float:
    """The factor s on the noisy mean of updates: ``w <- w + s (sum + noise) / divisor``.

    It is ``n / (sigma C T)`` if everyone takes part, with sigma the noise of all rounds together.

    Args:
        divisor: the configured number of clients n, or where not all take part in a round, the
            expected number.
        multiplier: z, the standard deviation of a sum's noise in units of the clip, divided by
            ``cancelled`` where later noise takes a part of it off again.
        clip: C, on features of unit norm.
        rounds: T.

    >>> round(step(500, 2.0, 0.05, 4))
    2500
    """
    signal = divisor * math.sqrt(rounds) / multiplier
    return min(signal, _MOST_SIGNAL) / (clip * rounds)


def cancelled(coefficients: Sequence[float], rounds: int) -> float:
    """How much smaller correlated noise makes a run's noise than independent noise as large is.

    That of the final head, the mean of the heads of the last half of the rounds.

    Args:
        coefficients: c_0, c_1, ... of ``factorization``, at least one.
        rounds: T.

    >>> cancelled([1.0], 10)
    1.0
    """
    if len(coefficients) == 1:  # independent noise, in however many rounds
        return float(coefficients[0])
    heads = np.tri(rounds)[rounds // 2 :].mean(axis=0)  # how much of each round they hold
    powers = (c * np.eye(rounds, k=-k) for k, c in enumerate(coefficients[:rounds]))
    drawn = np.linalg.solve(sum(powers, np.zeros((rounds, rounds))).T, heads)
    return float(np.linalg.norm(heads) / np.linalg.norm(drawn))


def directions(clients: float, sigma: float) -> int | Literal["auto"]:
    """How many directions of the calibration images' features training sees.

    Args:
        clients: n, their configured number.
        sigma: the noise of all rounds together, in units of the clip.

    Returns:
        32 or 64 where the noise is large; else "auto", as many as ``backbone.projection`` then has.

    >>> directions(500, 1.08), directions(50, 1.08)
    ('auto', 32)
    """
    return next((count for most, count in _FEWER if clients / sigma < most), "auto")


@dataclass(frozen=True)
class Served:
    """What a strategy needs in order to make heads as FedAvg does under the rule.

    Attributes:
        step: factor on the noisy mean that the strategy gets.
        args: values of those of its arguments that the rule sets.
    """

    step: float
    args: Mapping[str, float]


def served(
    strategy: str, args: Mapping[str, object], *, step: float, noise: float, rounds: int
) -> Served:
    """The step of a strategy, and its server's learning rate where that has a scale of its own.

    Momentum falls behind in few rounds, so that its step is larger than ``(1 - momentum) s``.
    Adaptive strategies divide by the root of ``v + tau``. They get a mean whose noise has a
    deviation of tau, so that both terms count, and no step of noise alone is as large as a step of
    signal. Then ``server-lr`` says how far they go.

    Args:
        strategy: its name; all that are not listed here are served as FedAvg.
        args: the arguments that were set; they stay.
        step: s, see the function of this name.
        noise: standard deviation of each entry of the mean update, before any step.
        rounds: T.

    >>> served("fedavgm", {}, step=100.0, noise=0.001, rounds=10).step
    50.0
    """
    if strategy == "fedavgm":
        return Served(step * _caught_up(_number(args, "momentum", _MOMENTUM), rounds), {})
    if strategy not in ("fedadam", "fedyogi", "fedadagrad"):
        return Served(step, {})
    adds_up = strategy == "fedadagrad"
    beta = _number(args, "beta1", 0.0 if adds_up else _MOMENTUM)
    # The root of v, plus tau, in units of tau: of fedadagrad after all rounds.
    divided = math.sqrt(rounds) + 1 if adds_up else 2.0
    rate = divided * noise * step * _caught_up(beta, rounds) / (1 - beta)
    own = {} if "server-lr" in args else {"server-lr": rate}
    return Served(_number(args, "tau", _TAU) / noise, own)


def _caught_up(momentum: float, rounds: int) -> float:
    """The factor on the step with momentum, in [1 - momentum, 1]."""
    return min(1.0, max(1 - momentum, _BEHIND / rounds)) if momentum else 1.0


def _number(args: Mapping[str, object], name: str, default: float) -> float:
    value = args.get(name, default)
    return float(value) if isinstance(value, int | float) else default
