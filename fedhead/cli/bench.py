"""The commands that compare fedhead's speed with others: ``fedhead bench simulation``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from common.errors import ConfigError
from fedhead.cli.terminal import JsonFlag

__all__ = ["bench"]

bench = typer.Typer(no_args_is_help=True, help="Compare fedhead's speed with other frameworks.")


@bench.command()
def simulation(
    sizes: Annotated[
        str,
        typer.Option(help="Numbers of clients to compare with Flower's simulation and pfl."),
    ] = "100,1000",
    scaling: Annotated[
        str, typer.Option(help="Numbers of clients for fedhead alone.")
    ] = "1000,10000,100000",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to time, after a warm-up.")] = 5,
    json_: JsonFlag = False,
) -> None:
    """Time a round of local training, here and in two other frameworks. Takes some minutes.

    100,000 clients need 6.4 GB of disk in the cache folder meanwhile.
    """
    from simulations.bench.simulation import bench_simulation, show, to_json

    measurements = bench_simulation(_counts(sizes), _counts(scaling), rounds=rounds)
    if json_:
        print(json.dumps(to_json(measurements)))
    else:
        show(measurements)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        counts = [0]
    if any(count < 1 for count in counts):
        raise ConfigError([f"{text!r} must be numbers of clients, for example 100,1000"])
    return counts
