"""The command line of a simulated fleet: ``fedhead fleet-simulate``.

Typer takes a command's options as its parameters, so they are more than seven.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedhead.api.experiments import experiment_file
from fedhead.cli.terminal import JsonFlag, SetOption, near

__all__ = ["fleet_simulate"]

_DEFAULT = Path("mnist5k")
_MORE = 0.3

ConfigOption = Annotated[
    Path,
    typer.Option(help="Experiment file, or the name of a shipped one.", callback=experiment_file),
]


def fleet_simulate(
    phones: Annotated[int, typer.Option(min=1, help="Number of phones.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.")] = 10,
    clients_per_round: Annotated[
        int, typer.Option(min=1, help="Updates that a round waits for.")
    ] = 500,
    config: ConfigOption = _DEFAULT,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/NAME.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that run.")] = False,
    faults: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the tasks whose phone falls silent, is late or declines.",
        ),
    ] = 0.1,
    profile: Annotated[
        str,
        typer.Option(
            help="When phones are there: always; diurnal, in eight time zones; or greedy, where "
            "one in twenty calls twenty times as often as it is told."
        ),
    ] = "always",
    connections: Annotated[
        int,
        typer.Option(min=0, help="TLS connections that all phones share; 0: one for each phone."),
    ] = 50,
    pace: Annotated[
        float, typer.Option(min=0.1, help="Check-ins a second that the gateway asks for.")
    ] = 500.0,
    json_: JsonFlag = False,
) -> None:
    """Let a fleet of simulated phones call a real gateway, and train with them. Takes minutes.

    All phones are in one process; they have tokens of their own, and really train. A round asks
    30 % more of them than it waits for, and --set round.over-selection changes that.
    """
    from common.config import load_config
    from simulations.bench.fleet.profile import find_profile
    from simulations.bench.fleet.simulate import Fleet, simulate
    from simulations.bench.fleet.table import show

    fleet = Fleet(phones, find_profile(profile), faults, connections, pace)
    items = [f"round.over-selection={_MORE}", f"round.deadline-seconds={fleet.deadline_seconds}"]
    overrides: dict[str, Any] = {
        "name": "fleet",
        "partition": {"num-clients": phones},
        "train": {"rounds": rounds, "clients-per-round": clients_per_round},
    }
    if out:
        overrides["out"] = str(out)
    experiment = load_config(config, overrides, [*items, *(set_ or [])])
    figures = simulate(experiment, fleet, overwrite=overwrite)
    if json_:
        print(json.dumps(figures))
        return
    show(figures)
    print(near(figures["run"]))
