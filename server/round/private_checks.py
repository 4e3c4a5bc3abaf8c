"""Refuses what does not go together with privacy: each with the reason and what to do instead."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from common.config import Config
from common.errors import ConfigError, MissingExtraError
from common.privacy import accounting
from common.privacy.words import figure
from common.types import ClientPlan
from server.round.stock import is_stock
from server.strategies.private import ONE_SHOT, private_reason
from server.strategy import Strategy

__all__ = ["check_noise", "check_population", "check_private", "check_private_stock"]


def check_private_stock(config: Config) -> None:
    """Refuse privacy around a strategy of Flower's.

    Raises:
        ConfigError: the run is private, and its strategy is one.
    """
    if config.privacy.active and is_stock(config.strategy.name):
        raise ConfigError(
            [
                "privacy.epsilon needs one of fedhead's strategies: Flower's read each client's "
                'update themselves; strategy.name="fedavg" goes with it'
            ]
        )


def check_private(config: Config, own: Strategy[Any], plan: ClientPlan) -> None:
    """Refuse all that would break a private run's guarantee, or that it makes meaningless.

    Args:
        config: the configuration; nothing is checked unless it is private.
        own: the strategy.
        plan: of its first round.

    Raises:
        ConfigError: all problems together.
        MissingExtraError: a package for the accounting is missing.
    """
    if not config.privacy.active:
        return
    problems = [*_of_strategy(config, own, plan), *_of_cohort(config), *_of_updates(config, plan)]
    if problems:
        raise ConfigError(problems)
    if config.privacy.mechanism == "poisson" and find_spec("dp_accounting") is None:
        what = 'privacy.mechanism="poisson"'
        raise MissingExtraError("dp-accounting", "privacy", f"the accounting of {what}")


def _of_strategy(config: Config, own: Strategy[Any], plan: ClientPlan) -> Iterator[str]:
    """What the strategy reads beside sums."""
    one_shot, settings = config.privacy.mechanism == "one-shot", config.strategy
    known = " and ".join(ONE_SHOT)
    if one_shot and own.name not in ONE_SHOT:
        yield (
            f'privacy.mechanism="one-shot" releases statistics once, for {known}; {own.name} '
            + ('goes with "everyone"' if plan.kind == "sgd" else "has no such release")
        )
    elif plan.kind != "sgd" and not one_shot:
        yield f"{own.name} needs the statistics of clients" + (
            ', which privacy releases once: set privacy.mechanism="one-shot"'
            if own.name in ONE_SHOT
            else f': with privacy only {known} have them, by privacy.mechanism="one-shot"'
        )
    elif not one_shot and (reason := private_reason(own, plan)):
        yield (
            f"{own.name} does not go with privacy: {reason}; fedavg, fedprox, fedavgm, fedadam, "
            "fedadagrad and fedyogi do"
        )
    if one_shot and config.train.rounds != 1:
        yield (
            f"train.rounds={config.train.rounds}, but one-shot privacy has one round: "
            "each client's statistics count once"
        )
    if one_shot and config.privacy.clip == "adaptive":
        yield 'privacy.clip="adaptive" follows updates over many rounds, and one-shot has one'
    if settings.init == "fed3r":
        yield (
            'strategy.init="fed3r" has every client send its statistics, and no budget is left for '
            'training; strategy.init="zeros" goes with privacy'
        )
    if settings.precondition != "none":
        yield (
            f'strategy.precondition="{settings.precondition}" needs the Gram matrix of all '
            "clients, which with noise makes heads worse; a projection, which privacy has by "
            "itself, does the same from the server's own images"
        )


def _of_cohort(config: Config) -> Iterator[str]:
    """How clients come to take part."""
    mechanism, asked = config.privacy.mechanism, config.train.clients_per_round
    sampled = mechanism in ("poisson", "min-separation")
    if sampled and not asked:
        yield (
            f'privacy.mechanism="{mechanism}" needs train.clients-per-round, the number of '
            'clients that a round is to have; "everyone" asks all of them'
        )
    if not sampled and asked:
        yield _fixed_size(config)
    if sampled and config.round.over_selection:
        yield (
            f'round.over-selection does not go with privacy.mechanism="{mechanism}": that the '
            "slow ones do not count would depend on the others; more train.clients-per-round ask "
            "more clients"
        )
    if config.privacy.hides_cohorts and config.codec.down not in ("", "none"):
        yield (
            f'codec.down="{config.codec.down}" sends changes since what a client has, and so '
            'shows whom earlier rounds asked, which privacy.mechanism="poisson" must hide; '
            'codec.down="none" does not'
        )


def _fixed_size(config: Config) -> str:
    """Why a cohort of a fixed size is refused, with what it would cost."""
    train, privacy = config.train, config.privacy
    clients = config.partition.num_clients
    if config.partition.scheme != "natural" and train.asked(clients) == clients:
        return (
            f"train.clients-per-round={train.clients_per_round:g} is every client: with privacy "
            "that is train.clients-per-round=0"
        )
    words = (
        f"train.clients-per-round={train.clients_per_round:g} draws cohorts of a fixed size, which "
        "hide a client far less than coins of its own would"
    )
    if (cost := _cost_of_fixed_size(config)) is not None:
        words += (
            f": with the noise that makes epsilon {privacy.epsilon:g} of coins it is {figure(cost)}"
        )
    hint = '"poisson" tosses coins, "min-separation" takes turns'
    return f"{words}; privacy.mechanism={hint}, and train.clients-per-round=0 asks everyone"


def _cost_of_fixed_size(config: Config) -> float | None:
    """Epsilon of fixed cohorts at the noise of coins; None: nothing here can tell."""
    clients, privacy, rounds = config.partition.num_clients, config.privacy, config.train.rounds
    share = min(1.0, config.train.asked(clients) / clients)
    if config.partition.scheme == "natural" or privacy.mechanism != "everyone":
        return None
    try:
        z = accounting.poisson_multiplier(privacy.epsilon, privacy.delta, share, rounds)
        return accounting.fixed_size_epsilon(z, privacy.delta, share, rounds)
    except MissingExtraError:
        return None


def _of_updates(config: Config, plan: ClientPlan) -> Iterator[str]:
    """What would change or refuse updates after they are clipped."""
    up = config.codec.up or plan.uplink
    if up != "none":
        yield (
            f'codec.up="{up}" does not go with privacy: sums of clipped updates must be exact; '
            'codec.up="none", and a projection makes updates smaller'
        )
    if config.round.max_update_norm:
        yield (
            f"round.max-update-norm={config.round.max_update_norm!r} refuses whole updates, where "
            "privacy.clip shortens them: set that instead"
        )
    if config.attack.changes_updates:
        yield (
            f"{config.attack.named} changes updates after they are clipped, and reads those of "
            "others; label-flip goes with privacy, and backdoor without a scale"
        )


def check_noise(config: Config, *, simulated: bool) -> bool:
    """Whether the noise comes from the run's seed.

    Args:
        config: of the run, which is private.
        simulated: whether all clients are simulated.

    Raises:
        ConfigError: real clients would be protected by noise that anyone can take off.
    """
    noise = config.privacy.noise
    if noise == "seed" and not simulated:
        raise ConfigError(
            [
                'privacy.noise="seed" is for simulations: whoever knows the seed can take the '
                'noise off, and these clients are real; "auto" takes a secret'
            ]
        )
    return noise == "seed" or (noise == "auto" and simulated)


def check_population(config: Config, clients: int) -> None:
    """Refuse what the number of clients makes impossible or meaningless.

    Args:
        config: of the run, which is private.
        clients: their number.

    Raises:
        ConfigError: names the key.
    """
    if config.privacy.delta >= 1 / clients:
        raise ConfigError(
            [
                f"privacy.delta={config.privacy.delta:g}, expected below {1 / clients:.3g}, which "
                f"is 1 by the number of clients: else one of the {clients} may be given away whole"
            ]
        )
