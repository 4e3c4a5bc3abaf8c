"""The commands about differential privacy: ``fedhead privacy RUN | plan``.

Typer takes a command's options as its parameters, so they are more than seven.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click import Context
from typer.core import TyperGroup

from common.errors import ConfigError
from common.privacy.rule import Mechanism
from fedhead.cli.sources import source_of
from fedhead.cli.terminal import JsonFlag, configured, near, print_all

if TYPE_CHECKING:
    from common.config import Config

__all__ = ["privacy"]


class _RunFirst(TyperGroup):
    """Without a command, it shows the run whose folder is named."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


privacy = typer.Typer(
    cls=_RunFirst,
    no_args_is_help=True,
    subcommand_metavar="RUN | COMMAND [ARGS]...",
    help="Show what a private run has spent, or plan one. RUN is its folder.",
)


@privacy.command()
def show(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    json_: JsonFlag = False,
) -> None:
    """Explain a run's ledger: budget, releases and their cost. The default command."""
    from common.privacy.words import NOT_PRIVATE
    from fedhead.cli.privacy_tables import ledger_json, ledger_tables
    from server.record.privacy import read_privacy

    path = run_folder.resolve()
    found = read_privacy(path)
    if json_:
        print(json.dumps({"run": str(path), "privacy": found and ledger_json(*found)}))
    elif found is None:
        print(f"{near(str(path))}: {NOT_PRIVATE}, privacy.epsilon is inf")
    else:
        print_all(ledger_tables(near(str(path)), *found))


_EPSILONS = (1.0, 2.0, 4.0, 8.0, math.inf)
# Of an experiment, what a plan reads.
_PLANNED = ("data.*", "backbone.*", "partition.*", "privacy.*", "seed")
_ELSEWHERE = {
    "data.source": "--data", "partition.num-clients": "--clients", "privacy.epsilon": "--epsilon",
    "privacy.delta": "--delta", "privacy.mechanism": "--mechanism", "train.rounds": "--rounds",
    "train.clients-per-round": "--clients-per-round",
    "privacy.typical-examples": "--typical-examples",
}  # fmt: skip


@privacy.command()
def plan(
    clients: Annotated[int, typer.Option(min=2, help="Clients that there are to be.")],
    epsilon: Annotated[float, typer.Option(help="Budget of the whole run.")] = 4.0,
    rounds: Annotated[
        int, typer.Option(min=0, help="Rounds of training; 0: as privacy's rule has them.")
    ] = 0,
    delta: Annotated[float, typer.Option(help="Below 1 by the number of clients.")] = 1e-5,
    mechanism: Annotated[
        Mechanism,
        typer.Option(
            help="How clients come to take part in a round; noise for poisson takes a minute to "
            "find, the first time."
        ),
    ] = "everyone",
    clients_per_round: Annotated[
        int, typer.Option(min=0, help="Clients of a round, with poisson and min-separation.")
    ] = 0,
    typical_examples: Annotated[
        int,
        typer.Option(
            min=0, help="Images that a client typically has; 0: those of --data dealt out, or 20."
        ),
    ] = 0,
    data: Annotated[
        str,
        typer.Option(help="A data source, as of probe, or an experiment file (.toml)."),
    ] = "mnist5k",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the experiment."),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Say what noise a budget needs, and simulate how accurate heads are with it.

    Heads are trained on your images' features as a run by privacy's rule trains them,
    with the noise for as many clients as you say.
    """
    from common.privacy import rule
    from fedhead.cli.privacy_plan_tables import plan_json, plan_tables
    from simulations.probe.private_plan import plan_privacy

    terms = {"epsilon": epsilon, "delta": delta, "mechanism": mechanism}
    terms |= {"typical-examples": typical_examples} if typical_examples else {}
    train = {"rounds": rounds or rule.rounds(mechanism), "clients-per-round": clients_per_round}
    config = _planned(data, set_, {"privacy": terms, "train": train}, clients)
    found = plan_privacy(config, _EPSILONS)
    if json_:
        print(json.dumps(plan_json(found)))
    else:
        print_all(plan_tables(found))


def _planned(data: str, items: list[str] | None, overrides: dict[str, Any], clients: int) -> Config:
    """The configuration of the planned run, which is of FedAvg.

    Raises:
        ConfigError: an option or key is wrong, or the budget is infinite.
    """
    from common.config import StrategyConfig

    is_file = data.endswith(".toml")
    overrides = {**overrides, "partition": {"num-clients": clients, "test-fraction": 0.0}}
    if not is_file:
        overrides["data"] = {"source": source_of(data)}
    config = configured(
        Path(data) if is_file else None, items, overrides, reads=_PLANNED, elsewhere=_ELSEWHERE
    )
    if not config.privacy.active:
        raise ConfigError(["--epsilon inf is no privacy: expected a number above 0"])
    return config.model_copy(update={"strategy": StrategyConfig()})
