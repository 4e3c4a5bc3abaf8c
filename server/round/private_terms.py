"""Decides on a run's noise, clip and step before its first round, from what is public."""

from __future__ import annotations

import dataclasses
import logging
import math

from pydantic import TypeAdapter

from common.config import Config, changed
from common.experiment import client_shares
from common.privacy import rule
from common.privacy.accounting import poisson_multiplier
from common.privacy.factorization import coefficients, sensitivity
from common.privacy.gaussian import gaussian_sigma
from common.privacy.integers import RESOLUTION
from common.privacy.rule import Served
from common.types import FeatureSet
from server.record.privacy import check_releases
from server.record.runfolder import RunFolder
from server.round.learning_rate import calibration_features, feature_norm, unit_rate
from server.round.private import Decided, Guard
from server.round.private_checks import check_noise, check_population
from server.round.registry import Registry
from server.strategies.one_shot import Known, second_moment

__all__ = ["DEVICE_EXAMPLES", "decide", "guarded", "in_one_step", "simulated_population"]

logger = logging.getLogger("fedhead")

DEVICE_EXAMPLES = 20  # what a device typically has, where nothing is known of them


def guarded(
    config: Config, folder: RunFolder, features: FeatureSet, registry: Registry
) -> tuple[Config, Guard | None]:
    """A run's configuration, and its privacy, decided now or when it began; None: it has none.

    Clients make what a one-shot release needs by one step on all their examples, whatever [train]
    says of steps.

    Args:
        config: of the run.
        folder: the run folder, which keeps what is decided.
        features: of the whole data set; those of the calibration images say how long features are.
        registry: the clients.

    Raises:
        ConfigError: the budget does not suit the clients.
        RunError: a finished round's release is not in the ledger any more.
        DamagedError: the ledger was changed.
    """
    if not config.privacy.active:
        return config, None
    check_releases(folder.path, config.privacy.delta)
    if source := config.strategy.init_from:
        logger.warning("the budget does not count what training has cost %s", source)
    simulated = check_noise(config, simulated=registry.simulated)
    if kept := folder.privacy():
        decided = TypeAdapter(Decided).validate_python(kept)
    else:
        clients, examples = _population(config, registry, simulated=simulated)
        check_population(config, clients)
        _warn_of_few(config, clients)
        decided = decide(config, clients, examples, feature_norm(config, features))
        folder.bind_privacy(dataclasses.asdict(decided))
    known = None
    if config.privacy.mechanism == "one-shot":
        known = Known(
            second_moment(calibration_features(config, features).x[:, :-1]),
            decided.norm,
            decided.clients * decided.examples,
            decided.noise / decided.clients,
        )
        config = in_one_step(config, decided.norm)
    return config, Guard(config, decided, folder.path, simulated=simulated, known=known)


def _warn_of_few(config: Config, clients: int) -> None:
    """Say where the noise may cover what clients teach, as the rule reckons from their number."""
    epsilon = config.privacy.epsilon
    sigma = gaussian_sigma(epsilon, config.privacy.delta)
    if rule.directions(clients, sigma) == rule.directions(0, sigma):  # as few as there ever are
        logger.warning(
            "%d clients are few for epsilon %g: the noise may cover what they teach; "
            "fedhead privacy plan tells how much",
            clients, epsilon,
        )  # fmt: skip


def _population(config: Config, registry: Registry, *, simulated: bool) -> tuple[int, float]:
    """The number of clients, and how many examples one typically has."""
    given = config.privacy.typical_examples
    if registry.simulated:
        return simulated_population(config, may_look=simulated)
    return registry.population, DEVICE_EXAMPLES if given == "auto" else given


def simulated_population(config: Config, *, may_look: bool) -> tuple[int, float]:
    """The number of simulated clients that take part, and how many examples one typically has.

    Args:
        config: of the run.
        may_look: whether it may be their mean, unless it is given. The mean is the clients' own:
            only noise that protects nobody allows it.
    """
    shares, given = client_shares(config), config.privacy.typical_examples
    ids = config.train.participants(len(shares))
    if given != "auto":
        return len(ids), given
    if not may_look:
        return len(ids), DEVICE_EXAMPLES
    return len(ids), max(1.0, sum(len(shares[i].train) for i in ids) / len(ids))


def in_one_step(config: Config, norm: float) -> Config:
    """The configuration in which clients make what a one-shot release needs of them.

    Args:
        config: of the run.
        norm: of features in training, r.
    """
    return changed(config, {"train": {"lr": unit_rate(norm), "local-epochs": 1, "batch-size": 0}})


def decide(config: Config, clients: int, examples: float, norm: float) -> Decided:
    """The noise of a run's releases, its clip and its step.

    Args:
        config: of the run, which is private.
        clients: their configured number, n.
        examples: a client's typical number of them, m.
        norm: of features in training, r.

    Raises:
        MissingExtraError: the mechanism needs a package for its accounting.
    """
    privacy, rounds = config.privacy, config.train.rounds
    sigma = gaussian_sigma(privacy.epsilon, privacy.delta)
    asked = config.train.asked(clients) or clients
    rate, c, divisor = 1.0, coefficients(1), float(clients)
    multiplier = sigma * math.sqrt(rounds)
    if privacy.mechanism == "poisson":
        rate, divisor = asked / clients, float(asked)
        multiplier = poisson_multiplier(privacy.epsilon, privacy.delta, rate, rounds)
    elif privacy.mechanism == "min-separation":
        c = coefficients(clients // asked)
        divisor = clients / len(c)
        multiplier = sigma * sensitivity(c, rounds)
    noise, vote = multiplier, 0
    if privacy.clip == "adaptive":
        noise, vote = _with_votes(multiplier, divisor)
    # A head's update is shorter where features are longer.
    clip = (privacy.clip if isinstance(privacy.clip, float) else rule.clip(examples)) / norm
    step = rule.step(divisor, noise / rule.cancelled(c, rounds), clip * norm, rounds)
    if privacy.mechanism == "one-shot":
        step = 1.0  # the closed form gives the head its scale
    served = Served(privacy.step, {}) if privacy.step != "auto" else rule.served(
        config.strategy.name, config.strategy.args,
        step=step, noise=noise * clip / divisor, rounds=rounds,
    )  # fmt: skip
    return Decided(
        clients=clients,
        examples=examples,
        rounds=rounds,
        norm=norm,
        multiplier=multiplier,
        noise=noise,
        clip=clip,
        step=served.step,
        divisor=divisor,
        server_lr=served.args.get("server-lr", 0.0),
        rate=rate,
        separation=len(c),
        vote=vote,
    )


def _with_votes(multiplier: float, clients: float) -> tuple[float, int]:
    """The noise of updates, and the size of a vote, that together cost what ``multiplier`` does.

    A vote of +-1 gets noise of deviation v: the budget is that of ``z^-2 = noise^-2 + v^-2``. Votes
    are whole numbers of such a size that their noise is as large as that of the updates.

    Andrew et al., arXiv 1905.03871, section 3.1: a standard deviation of a 20th of a round's
    clients, for votes of 0 and 1. Differs from the paper: never less than twice the multiplier,
    which would take too much from the updates.

    Args:
        multiplier: z, noise in units of the clip.
        clients: expected number in a round.
    """
    deviation = max(clients / 10, 4 * multiplier)
    noise = (multiplier**-2 - deviation**-2) ** -0.5
    return noise, math.floor(noise * RESOLUTION / deviation)
