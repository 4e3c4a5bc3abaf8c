"""All errors that fedhead raises on purpose, as one short tree.

::

    FedheadError
    ├── ConfigError        an experiment file or override; carries all problems at once
    ├── DataError          images, labels, partitions
    ├── BackboneError      weights, quantization, a saved backbone
    ├── ReplyError         an update that must not be aggregated
    ├── DeclinedError      a device does not train now, because of its owner's budget
    ├── ProtocolError      a message does not follow common/messages
    ├── RunError           a run, its folder or its checkpoint
    ├── DamagedError       a file of fedhead's was changed after it was written
    ├── ExportError        a model file could not be written or disagrees with the head
    ├── DeliveryError      a model could not be published, served or fetched
    ├── SignatureError     a model's or backbone's signature, or a signing key
    └── MissingExtraError  an optional package is not installed

The command line prints the message and exits with 1; a traceback means a bug.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BackboneError",
    "ConfigError",
    "DamagedError",
    "DataError",
    "DeclinedError",
    "DeliveryError",
    "ExportError",
    "FedheadError",
    "MissingExtraError",
    "ProtocolError",
    "ReplyError",
    "RunError",
    "SignatureError",
]


class FedheadError(Exception):
    """Base of all errors that a user can cause and fix; the message is one clear line."""


class ConfigError(FedheadError):
    """One or more problems in a configuration, reported together."""

    def __init__(self, problems: Sequence[str], where: str = "") -> None:
        self.problems, self.where = tuple(problems), where
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        prefix = f"{where}: " if where else ""
        super().__init__(f"{prefix}{count}: {'; '.join(self.problems)}")


class DataError(FedheadError):
    """Images, labels or a partition that cannot be used."""


class BackboneError(FedheadError):
    """Weights that do not fit, or a saved backbone that is damaged or foreign."""


class ReplyError(FedheadError):
    """An update that must not be aggregated."""


class DeclinedError(FedheadError):
    """A device that does not train now."""


class ProtocolError(FedheadError):
    """A message that lacks a record or key, or holds the wrong type."""


class RunError(FedheadError):
    """A run that cannot start, continue or be read."""


class DamagedError(FedheadError):
    """A file of fedhead's that was changed after it was written."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} is damaged ({reason})")


class ExportError(FedheadError):
    """An exported model that could not be written or failed its own check."""


class DeliveryError(FedheadError):
    """A model that could not be published, served or fetched."""


class SignatureError(FedheadError):
    """A model or backbone that is not signed as it must be, or a key that cannot be used."""


class MissingExtraError(FedheadError):
    """An optional dependency is not installed; names the command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'fedhead[{extra}]'")
