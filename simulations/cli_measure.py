"""The commands that measure: data before there is a federation, and models after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from simulations.terminal import JsonFlag, near

__all__ = ["measures"]

measures = typer.Typer()


@measures.command()
def probe(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder with one sub-folder a class, or a data set as data.source names it.",
        ),
    ],
    target: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="Accuracy that you need.")
    ] = 0.9,
    examples: Annotated[int, typer.Option(min=10, help="Pictures to use at most.")] = 5000,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of [data] or [backbone]."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Picture file.")] = Path("probe.png"),
    json_: JsonFlag = False,
) -> None:
    """Does training the head alone suffice for these pictures? Asked before anything is deployed.

    Linear heads on the frozen int8 backbone's features, in cross-validation.
    """
    from common.config import changed, load_config, parse_overrides
    from simulations.probe import draw, judge, probe_data
    from simulations.probe.tables import as_json, tables

    source = f"folder:{Path(data).resolve()}" if Path(data).is_dir() else data
    base = load_config(None, parse_overrides(set_ or []))
    found = probe_data(changed(base, {"data": {"source": source}}), examples=examples)
    verdict = judge(found, target)
    draw(found, target, out)
    if json_:
        print(json.dumps({**as_json(found, verdict), "picture": str(out.resolve())}))
        return
    console = Console()
    for part in tables(found, verdict):
        console.print(part)
    print(near(str(out.resolve())))
