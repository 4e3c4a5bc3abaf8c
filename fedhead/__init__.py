"""Federated learning of the head of a frozen int8 MobileNet: the front door.

Example::

    import fedhead

    run = fedhead.run("mnist5k", {"train.rounds": 20})
    run.metrics, run.predict("photos/"), run.plot()
    fedhead.compare("mnist5k", {"train.rounds": 20}, strategies=["fedavg", "fedprox"]).table

Nothing heavy is imported before it is needed: torch comes with the first run.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from common.errors import (
    BackboneError,
    ConfigError,
    DamagedError,
    DataError,
    DeclinedError,
    DeliveryError,
    ExportError,
    FedheadError,
    MissingExtraError,
    ProtocolError,
    ReplyError,
    RunError,
    SignatureError,
)
from fedhead.api.comparisons import Comparison, compare
from fedhead.api.runs import Run
from fedhead.api.starting import load_run, resume, run
from fedhead.api.tuning import Tuned, tune
from fedhead.environment import prepare_environment
from server.record.progress import StopRun

if TYPE_CHECKING:
    from common.datasets import Examples
    from common.types import ClientPlan, Head
    from server.strategy import Strategy

__all__ = [
    "BackboneError",
    "ClientPlan",
    "Comparison",
    "ConfigError",
    "DamagedError",
    "DataError",
    "DeclinedError",
    "DeliveryError",
    "Examples",
    "ExportError",
    "FedheadError",
    "Head",
    "MissingExtraError",
    "ProtocolError",
    "ReplyError",
    "Run",
    "RunError",
    "SignatureError",
    "StopRun",
    "Strategy",
    "Tuned",
    "__version__",
    "compare",
    "load_run",
    "resume",
    "run",
    "tune",
]

prepare_environment()  # before flwr, ray, gRPC or torch is imported

__version__ = version("fedhead")

_LATER = {
    "ClientPlan": "common.types",
    "Examples": "common.datasets",
    "Head": "common.types",
    "Strategy": "server.strategy",
}
"""Types for code of a user's own, with the module that each comes from: they import NumPy."""


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'fedhead' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return __all__
