"""The audit of a run: what two adversaries read out of it, tried with its own code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.config import Config
from common.errors import ConfigError
from common.experiment import client_shares, experiment_dataset
from common.progress import stage
from simulations.probe.audit.attack import LONE, Attack, Reading, takers
from simulations.probe.audit.canary import find_canary
from simulations.probe.audit.membership import Membership
from simulations.probe.audit.scenes import Refused, Scene, scenes_of
from simulations.run import open_run

__all__ = ["DRAWS", "Audit", "Finding", "audit"]

DRAWS = 2000
"""Draws of the noise of all rounds in the test of membership."""


@dataclass(frozen=True)
class Finding:
    """What was found in one scene.

    Attributes:
        projected: whether features are projected.
        private: whether there is privacy.
        is_own: whether this is how the run is.
        refused: why there is no such run; empty: there is.
        directions: number of features that training sees.
        server: what the server reads, which sees each update.
        others: what whoever knows all other clients reads out of the heads; None: not tried.
        guess: what another image of the same class, or any label, would give.
        lone_classes: classes of which the client has one image, and whose features its statistics
            hold exactly; None: it sent no statistics.
        membership: how well the canary is found; None: without noise it is certain.
        epsilon: claimed of the run; None without privacy.
        delta: of that.
    """

    projected: bool
    private: bool
    is_own: bool = False
    refused: str = ""
    directions: int = 0
    server: Reading | None = None
    others: Reading | None = None
    guess: Reading | None = None
    lone_classes: int | None = None
    membership: Membership | None = None
    epsilon: float | None = None
    delta: float | None = None


@dataclass(frozen=True)
class Audit:
    """An audit of a run.

    Attributes:
        run: its folder.
        strategy: its strategy.
        client: id of the client whose images were looked for.
        images: that it has.
        clients: how many there are.
        lone_images: how many images were tried as a client's only one.
        with_lone_class: how many clients have a class with one image.
        findings: without a projection and with one, each without privacy and with it.
    """

    run: str
    strategy: str
    client: int
    images: int
    clients: int
    lone_images: int
    with_lone_class: int
    findings: tuple[Finding, ...]


def audit(path: Path, client: int | None = None, draws: int = DRAWS) -> Audit:
    """Try to read a run's clients out of what they send, and out of what is released.

    Args:
        path: folder of a simulated run.
        client: id of the client whose images are looked for; None: the one with the fewest.
        draws: of the noise, in the test of membership.

    Raises:
        RunError: the run cannot be audited, says why.
        ConfigError: no client with training images has that id.
    """
    config, scenes = open_run(path), scenes_of(path)
    target = _target(config, client)
    labels = experiment_dataset(config).labels
    shares, ids = client_shares(config), takers(config)
    lone = sum(1 in np.bincount(labels[shares[i].train]).tolist() for i in ids)
    findings = []
    for number, scene in enumerate(scenes, 1):
        with stage(f"audit {number}/{len(scenes)}"):
            findings.append(_finding(scene, target, draws))
    return Audit(
        run=str(path),
        strategy=config.strategy.name,
        client=target,
        images=len(shares[target].train),
        clients=len(ids),
        lone_images=min(LONE, len(ids)),
        with_lone_class=lone,
        findings=tuple(findings),
    )


def _target(config: Config, client: int | None) -> int:
    shares, ids = client_shares(config), takers(config)
    if client is None:
        return min(ids, key=lambda i: (len(shares[i].train), i))
    if client not in ids:
        raise ConfigError([f"--client {client}: expected the id of a client with training images"])
    return client


def _finding(scene: Scene | Refused, target: int, draws: int) -> Finding:
    if isinstance(scene, Refused):
        return Finding(scene.projected, scene.private, refused=scene.why)
    attack = Attack(scene, target)
    privacy, decided = scene.config.privacy, scene.decided
    membership = None
    if decided:
        membership = find_canary(decided, privacy.mechanism, draws, privacy.delta)
    return Finding(
        projected=scene.projected,
        private=decided is not None,
        is_own=scene.is_own,
        directions=scene.features.num_features,
        server=attack.by_server(),
        others=attack.by_others(),
        guess=attack.by_guess(),
        lone_classes=attack.lone_classes(),
        membership=membership,
        epsilon=privacy.epsilon if decided else None,
        delta=privacy.delta if decided else None,
    )
