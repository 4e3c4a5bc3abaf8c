"""The owner's limits on a device's part in federated learning, from the node's configuration."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError, DeclinedError

__all__ = ["Budget", "device_budget"]

logger = logging.getLogger("fedhead")

_ALLOW_SECONDS = 30.0


@dataclass(frozen=True)
class Budget:
    """A device's limits; the defaults limit nothing.

    Attributes:
        max_examples: largest number of images, training and test part together; 0: all.
        max_threads: largest number of processor threads; 0: torch's default.
        min_interval_seconds: least time between the starts of two trainings.
        allow: shell command that must exit with 0 before each training; empty: none.
    """

    max_examples: int = 0
    max_threads: int = 0
    min_interval_seconds: float = 0
    allow: str = ""

    def begin(self, state: Path) -> None:
        """Record that a training begins, or decline it.

        The reason is sent to the server, so it holds no data of the owner.

        Args:
            state: the device's folder; it keeps the time of the last training if that matters.

        Raises:
            DeclinedError: it is too early, or the owner's command says no.
        """
        stamp = state / "last-training"
        if self.min_interval_seconds:
            try:
                # A clock that was set back must not keep a device idle for days.
                since = abs(time.time() - stamp.stat().st_mtime)
            except FileNotFoundError:
                since = self.min_interval_seconds
            if since < self.min_interval_seconds:
                logger.info("trained %.0f s ago, rests %g s", since, self.min_interval_seconds)
                raise DeclinedError("it pauses between two trainings")
        if self.allow:
            self._ask_owner()
        if self.min_interval_seconds:
            state.mkdir(parents=True, exist_ok=True)
            stamp.touch()

    def _ask_owner(self) -> None:
        try:
            done = subprocess.run(  # noqa: S602 - the device's owner wrote it
                self.allow,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_ALLOW_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            logger.info("the command in allow took over %g s", _ALLOW_SECONDS)
            raise DeclinedError("its owner's command took too long") from exc
        if done.returncode:
            logger.info("the command in allow exited with %d", done.returncode)
            raise DeclinedError("its owner's command says no")


def device_budget(node_config: Mapping[str, object]) -> Budget:
    """The budget in a node's configuration.

    Raises:
        ConfigError: a limit is not a number, or is below 0.
    """
    problems, values = [], {}
    for key, kind in (("max-examples", int), ("max-threads", int), ("min-interval-seconds", float)):
        text = str(node_config.get(key, 0))
        try:
            values[key] = kind(text)
        except ValueError:
            values[key] = -1
        if not values[key] >= 0:
            problems.append(f"{key}={text} must be a number of at least 0")
    if problems:
        raise ConfigError(problems, "node config")
    return Budget(
        int(values["max-examples"]),
        min(int(values["max-threads"]), os.cpu_count() or 1),
        float(values["min-interval-seconds"]),
        str(node_config.get("allow", "")),
    )
