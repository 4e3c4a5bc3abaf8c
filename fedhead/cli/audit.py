"""The command that tries to read clients out of a run: ``fedhead audit``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedhead.cli.terminal import JsonFlag, print_all

__all__ = ["audit"]


def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a simulated run.")],
    client: Annotated[
        int | None,
        typer.Option(
            min=0, help="Id of the client to look for.", show_default="the one with fewest images"
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option(min=100, help="Draws of the noise, to tell who took part.")
    ] = 2000,
    json_: JsonFlag = False,
) -> None:
    """Try to read clients' images out of a simulated run: as it is, and with or without privacy.

    What clients send is made again by the clients' own code, and the heads by the server's.
    """
    from simulations.probe.audit.audit import audit as audited
    from simulations.probe.audit.tables import as_json, audit_table, sentences

    found = audited(run, client, draws)
    if json_:
        print(json.dumps(as_json(found)))
        return
    print_all([audit_table(found), "", *sentences(found)], highlight=False)
