"""A run as it is, and the same run without or with a projection, without or with privacy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from common.backbone.frozen import FrozenBackbone
from common.config import AttackConfig, Config, changed
from common.config.privacy import PrivacyConfig, rule_keys
from common.errors import ConfigError, RunError
from common.experiment import experiment_dataset, training_features
from common.keys import nested
from common.privacy.rule import Mechanism
from common.types import ClientPlan, FeatureSet, Head
from server.export.run_model import backbone_of_run, directions, prepare
from server.record.runfolder import RunFolder, read_run_json
from server.round.build import check_strategy, prepared_strategy
from server.round.first_head import last_head
from server.round.learning_rate import feature_norm, with_learning_rate
from server.round.private import Decided
from server.round.private_terms import decide, in_one_step, simulated_population
from server.round.stock import is_stock
from server.strategies import build_strategy
from server.strategies.averaging import fedavg
from server.strategies.private import ONE_SHOT
from server.strategy import RoundContext, Strategy
from simulations.run import open_run

__all__ = ["USUAL_EPSILON", "Refused", "Scene", "scenes_of"]

USUAL_EPSILON = 4.0
"""The budget that is tried where the run has none."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What clients are asked in a first round, and with which features.

    Attributes:
        is_own: whether this is how the run is.
        projected: whether features are projected.
        config: with a number as its learning rate.
        features: of the whole data set, with the labels that clients train on.
        strategy: the configured one, without privacy around it.
        head: from which clients start: the run's last one, or zeros where that one is of other
            features.
        context: of the first round.
        decided: noise, clip and step of a private run; None without privacy.
    """

    is_own: bool
    projected: bool
    config: Config
    features: FeatureSet
    strategy: Strategy[Any]
    head: Head
    context: RoundContext
    decided: Decided | None

    @property
    def plan(self) -> ClientPlan:
        """What the strategy itself asks of clients in a first round."""
        return self.strategy.plan(self.strategy.init(self.head), self.context)


@dataclass(frozen=True)
class Refused:
    """A scene that there cannot be.

    Attributes:
        projected: whether features are projected.
        private: whether there is privacy.
        why: the reason, as the program says it.
    """

    projected: bool
    private: bool
    why: str


def scenes_of(path: Path) -> list[Scene | Refused]:
    """Without a projection and with one, each of them without privacy and with it.

    Args:
        path: a simulated run's folder.

    Raises:
        RunError: there is no run with a head, its clients are real, or its strategy is Flower's.
    """
    config = open_run(path)
    if read_run_json(path).get("simulated") is False:
        raise RunError(
            f"{path}: an audit needs the clients' images, and this run's clients are devices, "
            "which have kept theirs; audit a simulation of it"
        )
    if is_stock(config.strategy.name):
        raise RunError(
            f"{path}: strategy.name={config.strategy.name!r} is Flower's, whose clients send whole "
            "heads; an audit needs one of fedhead's strategies"
        )
    head, own = last_head(path), backbone_of_run(path, config, experiment_dataset(config))
    with_projection = own if own.projection else _projected(config)
    return [
        _scene(path, config, backbone, private, head if backbone is own else None)
        for backbone in (own.base, with_projection)
        for private in (False, True)
    ]


def _projected(config: Config) -> FrozenBackbone:
    """The backbone with as many directions as privacy would choose."""
    chosen = {"backbone": {"projection": directions(_with_privacy(config))}}
    return prepare(changed(config, chosen), experiment_dataset(config))


def _with_privacy(config: Config) -> Config:
    """The same experiment, private by rule."""
    if config.privacy.active:
        return config
    mechanism: Mechanism = "one-shot" if config.strategy.name in ONE_SHOT else "everyone"
    return changed(
        config,
        nested(
            {
                **rule_keys(mechanism),
                "partition.test-fraction": config.partition.test_fraction,  # the same clients
                "privacy.epsilon": USUAL_EPSILON,
                "privacy.mechanism": mechanism,
                "codec.up": "none",
                "attack": AttackConfig().model_dump(by_alias=True),
            }
        ),
    )


def _without_privacy(config: Config) -> Config:
    return changed(config, {"privacy": PrivacyConfig().model_dump(by_alias=True)})


def _scene(
    path: Path, config: Config, backbone: FrozenBackbone, private: bool, head: Head | None
) -> Scene | Refused:
    """One of the four; with a head, of the run's own features."""
    projected, is_own = backbone.projection is not None, bool(head)
    is_own = is_own and config.privacy.active == private
    wanted = _with_privacy(config) if private else _without_privacy(config)
    try:
        check_strategy(wanted)
    except ConfigError as exc:
        return Refused(projected, private, "; ".join(exc.problems))
    features = training_features(config, backbone)
    decided = _decided(path if is_own else None, wanted, features)
    ready = _with_rate(wanted, features, decided)
    strategy = prepared_strategy(ready, build_strategy(ready.strategy.name, ready.strategy.args))
    if decided and ready.privacy.mechanism == "one-shot":
        # Its clients take one step from zeros, whatever closed form is made of it.
        strategy, head = fedavg(), None
    clients, _ = _population(ready)
    return Scene(
        is_own=is_own,
        projected=projected,
        config=ready,
        features=features,
        strategy=strategy,
        head=head or Head.zeros(experiment_dataset(config).num_classes, features.num_features),
        context=RoundContext(
            round_number=1,
            num_clients=clients,
            clients_per_round=ready.train.asked(clients) or clients,
            lr=ready.train.rate(1),
            affine=backbone.affine,
            zero_point=backbone.spec.zero_points,
            seed=ready.seed,
        ),
        decided=decided,
    )


def _decided(path: Path | None, config: Config, features: FeatureSet) -> Decided | None:
    """A private run's noise, clip and step: its own if it has a folder, else by the rule."""
    if not config.privacy.active:
        return None
    if path and (kept := read_run_json(path).get("privacy")):
        return TypeAdapter(Decided).validate_python(kept)
    return decide(config, *_population(config), feature_norm(config, features))


def _with_rate(config: Config, features: FeatureSet, decided: Decided | None) -> Config:
    """The configuration with the learning rate that a run of it would have."""
    if decided and config.privacy.mechanism == "one-shot":
        return in_one_step(config, decided.norm)
    with TemporaryDirectory() as folder:
        return with_learning_rate(config, RunFolder(Path(folder) / "run", config), features)


def _population(config: Config) -> tuple[int, float]:
    return simulated_population(config, may_look=config.privacy.noise != "secret")
