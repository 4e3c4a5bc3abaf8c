"""One TOML file describes one experiment. Parsed and checked here, once, at the edge.

Keys are kebab-case in TOML and snake_case in Python. Every key has a default, a type and a
range. All problems of a file are reported together. An unknown key is reported with the nearest
known one.
"""

from common.config.backbone import BackboneConfig
from common.config.data import PARTITION_KEYS, DataConfig, PartitionConfig
from common.config.experiment import Config
from common.config.loading import (
    changed,
    describe_keys,
    load_config,
    overrides_of,
    parse_overrides,
)
from common.config.privacy import NO_PRIVACY, PrivacyConfig
from common.config.simulated import AttackConfig, AvailabilityConfig, SimulationConfig
from common.config.tracking import TrackingConfig
from common.config.training import BaselineConfig, RoundConfig, StrategyConfig, TrainConfig

__all__ = [
    "NO_PRIVACY",
    "PARTITION_KEYS",
    "AttackConfig",
    "AvailabilityConfig",
    "BackboneConfig",
    "BaselineConfig",
    "Config",
    "DataConfig",
    "PartitionConfig",
    "PrivacyConfig",
    "RoundConfig",
    "SimulationConfig",
    "StrategyConfig",
    "TrackingConfig",
    "TrainConfig",
    "changed",
    "describe_keys",
    "load_config",
    "overrides_of",
    "parse_overrides",
]
