"""All of an experiment's sections, and what must hold between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, model_validator

from common.config.backbone import BackboneConfig
from common.config.codec import CodecConfig
from common.config.data import DataConfig, PartitionConfig
from common.config.privacy import PrivacyConfig, by_rule
from common.config.simulated import AttackConfig, AvailabilityConfig, SimulationConfig
from common.config.tracking import TrackingConfig
from common.config.training import BaselineConfig, RoundConfig, StrategyConfig, TrainConfig
from common.readback import checksum
from common.toml_model import Section

__all__ = ["Config"]


class Config(Section):
    """One experiment."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run's folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything that is drawn at random."""
    out: str = ""
    """Run folder; empty: runs/<name> in the working folder."""
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    backbone: BackboneConfig = BackboneConfig()
    strategy: StrategyConfig = StrategyConfig()
    train: TrainConfig = TrainConfig()
    round: RoundConfig = RoundConfig()
    codec: CodecConfig = CodecConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    baseline: BaselineConfig = BaselineConfig()
    simulation: SimulationConfig = SimulationConfig()
    availability: AvailabilityConfig = AvailabilityConfig()
    attack: AttackConfig = AttackConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _by_rule(cls, content: Any) -> Any:
        return by_rule(content) if isinstance(content, Mapping) else content

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.train.clients_per_round > self.partition.num_clients and (
            self.partition.scheme != "natural"
        ):
            raise ValueError(
                f"train.clients-per-round={self.train.clients_per_round} is more than "
                f"partition.num-clients={self.partition.num_clients}"
            )
        # Of a natural partition only the data say how many clients there are.
        is_natural = self.partition.scheme == "natural"
        if problem := self.train.problem(None if is_natural else self.partition.num_clients):
            raise ValueError(problem)
        if self.round.over_selection and not self.train.clients_per_round:
            raise ValueError(
                "round.over-selection needs train.clients-per-round: without it every client is "
                "asked already"
            )
        for key in ("label-column", "image-column"):
            if getattr(self.data, key.replace("-", "_")) and not self.data.has_columns:
                raise ValueError(
                    f"data.{key} is for csv: and hf:, "
                    f"data.source={self.data.source!r} has no columns"
                )
        clients = len(self.train.clients) or self.partition.num_clients
        if problem := self.attack.problem(clients):
            raise ValueError(problem)
        return self

    @property
    def data_seed(self) -> int:
        """The seed of data set and backbone; runs with different seeds may share it."""
        return self.seed if self.data.seed < 0 else self.data.seed

    @property
    def trainer(self) -> Literal["cohort", "reference"]:
        """What trains simulated clients: where the cohort cannot, the reference does."""
        return "reference" if self.train.needs_reference else self.simulation.trainer

    def to_toml(self) -> str:
        """The whole configuration as TOML: defaults included, unset keys left out.

        The last line is a comment with a checksum of the lines before it. It shows when a value
        was changed by accident.
        """
        text = tomli_w.dumps(self.model_dump(by_alias=True, exclude_none=True))
        return f"{text}# checksum: {checksum(text.encode()).decode()}\n"
