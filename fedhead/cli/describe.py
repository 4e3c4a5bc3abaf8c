"""The commands that show what there is: ``fedhead config | strategies | partition | info``."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fedhead.cli.run_tables import rows_table
from fedhead.cli.terminal import ExperimentArgument, JsonFlag, SetOption, configured

__all__ = ["descriptions"]

descriptions = typer.Typer()

# Of an experiment, what decides who holds what.
_PARTITION_KEYS = ("data.*", "partition.*", "round.max-examples-per-client", "seed")


@descriptions.command()
def partition(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    out: Annotated[Path, typer.Option(help="File of the plot.")] = Path("partition.png"),
) -> None:
    """Plot which client holds which images, without training."""
    from common.experiment import client_shares, experiment_dataset
    from common.partition import plot_partition
    from common.plots import check_drawable
    from common.unheld import unheld

    check_drawable(out, purpose="drawing the partition")  # before data are read
    config = configured(experiment, set_, reads=_PARTITION_KEYS)
    dataset, shares = experiment_dataset(config), client_shares(config)
    plot_partition([dataset.labels[share.train] for share in shares], dataset.classes, out)
    sizes = sorted(len(share.train) for share in shares)
    print(
        f"{len(shares)} clients, {sum(sizes)} training examples: "
        f"{sizes[0]} to {sizes[-1]} each, median {sizes[len(sizes) // 2]}"
    )
    for line in unheld(config):
        print(line)
    print(out)


@descriptions.command()
def config() -> None:
    """List every key of an experiment file, with its default and meaning."""
    from common.config import describe_keys

    section = ""
    for key, default, meaning in describe_keys():
        head, _, name = key.rpartition(".")
        if head != section:
            section = head
            print(f"\n[{section}]")
        print(f"{name} = {default}")
        if meaning:
            print(_indented(meaning))


@descriptions.command()
def strategies(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Only these; module:function for one of yours, in this folder.",
        ),
    ] = None,
) -> None:
    """List the strategies with their arguments and papers."""
    from server.strategies import STRATEGIES, strategy_factory
    from simulations.compare.parse import find_modules

    for name in names or STRATEGIES:
        find_modules(name, [Path.cwd()])
        _show_strategy(name, strategy_factory(name))


def _show_strategy(name: str, factory: Callable[..., object]) -> None:
    """What one takes, and what its docstring says of it."""
    from server.round.stock import is_stock
    from server.strategies import argument_names, arguments

    text = " ".join((factory.__doc__ or "").split("\n\n")[0].split())
    if is_stock(name):  # which has its own types
        print(f"{name}({', '.join(argument_names(factory))})")
        print(_indented(text))
        return
    own = arguments(name, factory)
    print(f"{name}({', '.join(f'{one.name}={one.default}' for one in own)})")
    paper = re.search(r"arXiv \d+\.\d+", factory.__doc__ or "")
    if paper and paper[0] not in text:
        text += f" {paper[0]}."
    if text:
        print(_indented(text))
    for one in own:
        print(f"    {one.name}: {one.allowed}")


@descriptions.command()
def info(json_: JsonFlag = False) -> None:
    """Versions, quantized engines and caches."""
    from fedhead.info import collect

    figures = collect()
    if json_:
        print(json.dumps(figures))
    else:
        rows_table("fedhead", figures)


def _indented(text: str) -> str:
    indent = " " * 4
    return textwrap.fill(text, 78, initial_indent=indent, subsequent_indent=indent)
