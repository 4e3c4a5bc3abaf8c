"""Before the first round: wait for the clients, and log what a simulation's clients have."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from flwr.serverapp import Grid

from common.config import AttackConfig, AvailabilityConfig, Config
from common.datasets import Dataset
from common.errors import ConfigError, RunError
from common.experiment import (
    calibration_positions,
    client_shares,
    held_out_positions,
    malicious_clients,
)
from common.local_loss import check_loss, find_loss
from common.messages import DescribeRequest
from common.unheld import unheld
from server.record.progress import Progress
from server.round.admission import Admission
from server.round.algorithm import quorum
from server.round.backbone_offer import Offer
from server.round.registry import Registry
from server.round.roster import Roster

__all__ = ["check_listed", "join", "make_registry", "wait_for"]

logger = logging.getLogger("fedhead")

_JOIN_SECONDS = 120.0
_SETUP_SECONDS = 600.0  # a node may first have to start and read its data
_MOST_NAMED = 20
_DEVICE_EXAMPLES = 1000  # see round.max-examples-per-client


def make_registry(
    grid: Grid,
    config: Config,
    run_id: str,
    dataset: Dataset,
    backbone: Offer,
    progress: Progress,
    roster: Roster | None = None,
) -> Registry:
    """The registry of a run's clients, before any has joined.

    Args:
        grid: to reach the nodes.
        config: the run's configuration.
        run_id: names the run in a node's state folder.
        dataset: the data that the server tests on.
        backbone: the backbone whose features the head takes.
        progress: receives the number of connected clients.
        roster: the deployment's devices; None: there is no deployment.
    """
    most = config.round.max_examples_per_client or (_DEVICE_EXAMPLES if roster else 0)
    request = DescribeRequest(
        run_id=run_id,
        classes=dataset.classes,
        test_fraction=config.partition.test_fraction,
        seed=config.seed,
        name=config.name,
        max_examples=most,
        private=config.privacy.active,
    )
    return Registry(
        grid,
        request,
        backbone,
        admission=Admission(
            roster,
            max_clients=config.partition.num_clients,
            max_examples=most,
            data=dataset.content_key,
            listed=config.train.clients,
            privacy=config.privacy,
        ),
        deadline_seconds=config.round.deadline_seconds,
        progress=progress,
    )


def check_listed(config: Config, roster: Roster | None, *, resumes: bool) -> None:
    """Refuse a list of clients that a deployment does not have.

    Args:
        config: the run's configuration.
        roster: the deployment's devices; None: there is no deployment.
        resumes: whether rounds are finished. Then devices may have been revoked since: one that is
            left will do.

    Raises:
        ConfigError: train.clients lists what is not a device of the deployment.
    """
    if roster is None:
        return
    names = {*roster.names}
    missing = [client for client in config.train.clients if client not in names]
    if not missing:
        return
    known = ", ".join(roster.names[:_MOST_NAMED]) or "none is registered"
    more = len(roster.names) - _MOST_NAMED
    known += f" and {more:,} more" if more > 0 else ""
    message = f"train.clients lists {missing[0]!r}, expected names of the devices here: {known}"
    if not resumes or len(missing) == len(config.train.clients):
        raise ConfigError([message])
    logger.warning("%s; the run continues without it", message)


def join(
    registry: Registry,
    config: Config,
    dataset: Dataset,
    *,
    devices: bool = False,
    resumes: bool = False,
) -> None:
    """Wait for the clients: all simulated ones, or as many real ones as a round needs.

    Args:
        registry: the run's registry.
        config: the run's configuration.
        dataset: what the server tests on.
        devices: whether clients are known to be real devices. A node of these may be dead without
            Flower knowing it.
        resumes: whether the run has finished rounds already.

    Raises:
        ConfigError: the configuration is for simulated clients, but these are real; or the user's
            own loss is not a loss.
        RunError: clients are missing, or did not join in time.
    """
    wanted = config.train.asked(registry.population)
    needed = quorum(config, wanted) if resumes else max(1, wanted)
    awaits_all = config.privacy.active and registry.deployed and not wanted
    if awaits_all:
        needed = quorum(config, registry.population)
    hint = partial(_needs, config, resumes=resumes)
    seconds = _join_seconds(registry, config)
    if devices:
        wait_for(registry, needed, hint, _JOIN_SECONDS, seconds)
    else:
        wait_for(registry, 1, seconds=seconds)
    if registry.simulated:
        _check_simulated(registry, config)
        if loss := find_loss(config.train.loss, config.train.loss_root):
            check_loss(loss, dataset.num_classes)
        _account(config, dataset)
    else:
        _refuse_simulation(config)
        wait_for(registry, needed, hint, seconds=seconds)
        if awaits_all:
            _await_all(registry, seconds)
        elif resumes and registry.deployed and not wanted:
            # All clients are wanted, so the run must not start with the first one alone.
            registry.gather(quorum(config, registry.population), seconds, _JOIN_SECONDS)
    _tell_share(config, registry.population)


def _join_seconds(registry: Registry, config: Config) -> float:
    """How long clients may take to join.

    Phones come by when they may, and first fetch the backbone: they get as long as a round does.
    """
    return max(_JOIN_SECONDS, config.round.deadline_seconds if registry.has_phones else 0.0)


def _await_all(registry: Registry, seconds: float) -> None:
    """Give all devices time to join: a private round costs as much with few of them as with all."""
    count = registry.population
    if not registry.gather(count, seconds):
        logger.warning(
            "%d of %d devices are there: the run begins without the others, with the noise and "
            "the cost of %d",
            registry.ready(), count, count,
        )  # fmt: skip


def wait_for(
    registry: Registry,
    count: int,
    hint: Callable[[int], str] = lambda _: "",
    answer_seconds: float = _SETUP_SECONDS,
    seconds: float | None = None,
) -> None:
    """Gather clients before the first round.

    Args:
        registry: the run's registry.
        count: number of clients, at least 1.
        hint: given how many are there, where ``count`` comes from; for the error.
        answer_seconds: time for the first nodes to say which clients they host.
        seconds: time for all to join; None: two minutes.

    Raises:
        RunError: they did not join in time.
    """
    started = time.monotonic()
    registry.refresh(answer_seconds)
    left = (_JOIN_SECONDS if seconds is None else seconds) - (time.monotonic() - started)
    if not registry.gather(count, left, _SETUP_SECONDS):
        here = len(registry.clients)
        raise RunError(
            f"{here} clients with training examples are there after "
            f"{time.monotonic() - started:.0f} s, {count} are needed{hint(here)}"
            f"{registry.complaints()}"
        )


def _needs(config: Config, here: int, *, resumes: bool) -> str:
    """The key that says how many clients are needed, and what takes those that are here.

    Empty if every client is asked: then one is enough to begin, but for a private run.
    """
    number = config.train.clients_per_round
    if not number and config.privacy.active:
        return (
            f" (round.quorum={config.round.quorum:g} of the devices that are registered: a "
            "private round costs as much with few)"
        )
    if not number:
        return ""
    key = f"train.clients-per-round={number:g}"
    if resumes:  # a run keeps its number of clients
        return f" (round.quorum={config.round.quorum:g} of {key})"
    fewer = f"; --set train.clients-per-round={here} takes fewer" if here else ""
    return f" ({key}{fewer})"


def _check_simulated(registry: Registry, config: Config) -> None:
    """Refuse missing clients: simulated nodes are all there from the start."""
    shares = client_shares(config)
    expected = {i for i in config.train.participants(len(shares)) if len(shares[i].train)}
    if missing := sorted(expected - set(registry.clients)):
        raise RunError(f"no node hosts the clients {missing[:10]}")


def _refuse_simulation(config: Config) -> None:
    simulated = {
        "[availability]": config.availability != AvailabilityConfig(),
        "[attack]": config.attack != AttackConfig(),
        "data.label-noise": config.data.label_noise > 0,
        f"train.loss={config.train.loss!r}": config.train.has_own_loss,
    }
    if wrong := [key for key, given in simulated.items() if given]:
        raise ConfigError([f"{key} is for simulated clients, but these are real" for key in wrong])


def _tell_share(config: Config, population: int) -> None:
    """Log how many clients a share of them is."""
    share = config.train.clients_per_round
    if isinstance(share, float):
        asked = config.train.asked(population)
        logger.info(
            "train.clients-per-round = %g: a round asks %d of %d clients", share, asked, population
        )


def _calibrating(config: Config) -> tuple[str, str]:
    """How many images calibrate, and why these are fewer than asked for."""
    found, asked = len(calibration_positions(config)), config.data.calibration_examples
    if found < asked:
        bounds = " (at most 15 % of the training images and half of each class)"
        return f"{found} of the {asked} asked for", bounds
    return f"{found}", ""


def _account(config: Config, dataset: Dataset) -> None:
    """Log how a simulation's images are divided."""
    everyone = client_shares(config)
    shares = [everyone[i] for i in config.train.participants(len(everyone))]
    train, test = (sum(len(getattr(s, part)) for s in shares) for part in ("train", "test"))
    images = "" if config.privacy.active else f"{len(dataset)} images: "
    logger.info(
        "%s%d to test with on the server, %s to calibrate with%s",
        images, len(held_out_positions(config)), *_calibrating(config),
    )  # fmt: skip
    if config.privacy.active:
        logger.info("%d clients; what they have is not told: the run is private", len(shares))
    else:
        logger.info("%d clients train on %d and keep %d to test with", len(shares), train, test)
    if left_out := len(everyone) - len(shares):
        logger.info("%d other clients are not in train.clients: left out", left_out)
    for line in () if config.privacy.active else unheld(config):
        logger.warning("%s", line)
    if malicious := malicious_clients(config):
        attack = config.attack
        how = f" with scale {attack.strength:g}" if attack.strength else ""
        how += f", target {dataset.classes[attack.target]}" if attack.kind == "backdoor" else ""
        logger.info("%d clients are malicious: %s%s", len(malicious), attack.kind, how)
