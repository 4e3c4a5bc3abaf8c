"""Selects what carries a run's messages: an engine on this machine, or a deployment's devices."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.errors import ConfigError, RunError
from server.record.progress import OnRound

__all__ = ["Carrier", "Engine"]


class Engine(StrEnum):
    """The engines that carry messages between server and nodes on one machine."""

    IN_PROCESS = "in-process"
    FLOWER = "flower"


@dataclass(frozen=True)
class Carrier:
    """The way in which a run reaches its clients.

    Attributes:
        engine: the engine on this machine.
        deployment: folder of ``fedhead deploy``, whose devices are used instead of an engine;
            None: no devices.
        key: signing key, if the deployment's devices take signed backbones only.
        health: HOST:PORT for health checks meanwhile; empty: none.

    Raises:
        ConfigError: names everything that does not fit together.
    """

    engine: Engine = Engine.IN_PROCESS
    deployment: Path | None = None
    key: Path | None = None
    health: str = ""

    def __post_init__(self) -> None:
        from simulations.deploy.settings import is_address

        problems = []
        if self.deployment is not None and self.engine is not Engine.IN_PROCESS:
            problems.append(f"--deployment and --engine {self.engine} exclude each other")
        if self.key is not None and self.deployment is None:
            problems.append("--key is for --deployment: nothing else needs signatures")
        if self.health and not is_address(self.health):
            problems.append(
                f"--health {self.health!r} must be HOST:PORT, for example 127.0.0.1:9097"
            )
        if problems:
            raise ConfigError(problems)

    def check_ready(self) -> None:
        """Check whether a run can begin, before a run folder is made.

        Raises:
            MissingExtraError: Flower's simulation is not installed.
            RunError: the deployment's server does not run.
        """
        from simulations.deploy.launch import check_served
        from simulations.engines.flower import check_ray

        if self.engine is Engine.FLOWER:
            check_ray()
        if self.deployment is not None:
            check_served(self.deployment)

    def check_suits(self, path: Path) -> None:
        """Refuse to resume a run without the devices that it began with.

        Args:
            path: the run folder.

        Raises:
            RunError: it began with a deployment, but this carrier has none.
        """
        from server.record.runfolder import read_run_json, resume_command

        if self.deployment is None and read_run_json(path).get("simulated") is False:
            raise RunError(f"{path} began with real devices: {resume_command(path)}")

    def check_tells(self) -> None:
        """Make sure that ``run`` can report each round.

        Raises:
            ConfigError: the rounds run in another process.
        """
        if self.deployment is not None or self.engine is not Engine.IN_PROCESS:
            who = "a deployment" if self.deployment is not None else f"the engine {self.engine}"
            raise ConfigError(
                [f"on_round is for the engine in-process: the rounds of {who} run in another "
                 "process, which adds a line to the run's metrics.jsonl after each"]
            )  # fmt: skip

    def run(self, path: Path, *, on_round: OnRound | None = None) -> dict[str, Any]:
        """Run or resume the experiment of a run folder.

        Args:
            path: the run folder.
            on_round: is told of each round, see ``check_tells``.

        Returns:
            The run's closing figures.

        Raises:
            KeyboardInterrupt: it was interrupted, or this process got SIGTERM.
            FedheadError: it failed for a reason that a user can fix.
        """
        if on_round is not None:
            self.check_tells()
        from simulations.deploy.launch import run_deployed
        from simulations.deploy.processes import terminable
        from simulations.engines.flower import run_flower
        from simulations.report.curves import write_curves
        from simulations.run import num_nodes, open_run, run_in_process

        with terminable():
            if self.deployment is not None:
                figures = run_deployed(path, self.deployment, health=self.health, key=self.key)
            elif self.engine is Engine.FLOWER:
                nodes = num_nodes(open_run(path))
                figures = run_flower(path, num_supernodes=nodes, health=self.health)
            else:
                tell = on_round or (lambda _: None)
                return run_in_process(path, health=self.health, on_round=tell)
        write_curves(path)
        return figures

    def resume_command(self, path: Path) -> str:
        """The command that resumes an interrupted run."""
        option = f" --engine {self.engine}" if self.engine is Engine.FLOWER else ""
        if self.deployment is not None:
            option = f" --deployment {shlex.quote(str(self.deployment))}"
        return f"fedhead resume {shlex.quote(str(path))}{option}"
