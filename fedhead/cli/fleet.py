"""The command line of a deployment's devices: ``fedhead fleet DIR [revoke NAME | renew]``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from click import Context
from rich.console import Console
from typer.core import TyperGroup

from fedhead.cli.terminal import JsonFlag
from simulations.deploy import MOST_DAYS, VALID_DAYS

__all__ = ["fleet"]


class _FolderFirst(TyperGroup):
    """Takes the folder before the command; without a command, it shows the folder's devices."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            named = len(args) > 1 and args[1] in self.commands
            args = [args[1], args[0], *args[2:]] if named else ["show", *args]
        return super().parse_args(ctx, args)


fleet = typer.Typer(
    cls=_FolderFirst,
    no_args_is_help=True,
    subcommand_metavar="DIR [COMMAND] [ARGS]...",
    help="Show or change a deployment's devices. DIR is its folder, or its server's folder.",
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The deployment's folder.")]
Days = Annotated[
    int, typer.Option(min=1, max=MOST_DAYS, help="Days that the server's certificate is valid.")
]


@fleet.command()
def show(folder: Folder, json_: JsonFlag = False) -> None:
    """List devices and phones: who is there, and what came of the last rounds. The default."""
    from simulations.deploy.fleet import look
    from simulations.deploy.fleet_table import fleet_json, fleet_lines, fleet_table
    from simulations.deploy.phones_table import phones_lines, phones_table, rounds_table
    from simulations.deploy.settings import server_folder

    found = look(server_folder(folder))
    if json_:
        print(json.dumps(fleet_json(found)))
        return
    console = Console(highlight=False, markup=False)
    console.print(fleet_table(found))
    for line in fleet_lines(found):
        console.print(line, soft_wrap=False)
    if found.phones:
        for table in (phones_table(found.phones), rounds_table(found.phones)):
            if table:
                console.print()
                console.print(table)
        console.print()
        for line in phones_lines(found.phones):
            console.print(line, soft_wrap=False)


@fleet.command()
def revoke(
    folder: Folder, name: Annotated[str, typer.Argument(metavar="NAME", help="The device's name.")]
) -> None:
    """Shut a device or phone out at once: its SuperNode and its token are refused."""
    from simulations.deploy.changes import revoke as put_out
    from simulations.deploy.settings import server_folder

    put_out(server_folder(folder), name, print)


@fleet.command()
def renew(
    folder: Folder,
    authority: Annotated[
        bool,
        typer.Option("--authority", help="Take the next step to a new certificate authority."),
    ] = False,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Drop the old authority even if devices still need it."),
    ] = False,
    days: Days = VALID_DAYS,
) -> None:
    """Give the server a new certificate. A running server uses it without a restart."""
    from simulations.deploy.changes import renew_authority, renew_certificate
    from simulations.deploy.settings import server_folder

    deployment = server_folder(folder).parent
    if authority:
        renew_authority(deployment, days, print, anyway=anyway)
    else:
        renew_certificate(deployment, days, print)
