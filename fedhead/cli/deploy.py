"""The command line of a deployment: ``fedhead deploy | serve | device``.

Typer takes a command's options as its parameters, so they are more than seven.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fedhead.cli.publish import ServerArgument
from simulations.deploy import MOST_DAYS, VALID_DAYS

__all__ = ["deployments"]

deployments = typer.Typer()

FolderArgument = Annotated[
    Path, typer.Argument(help="Made when missing; keys that are there stay.")
]
DeviceOption = Annotated[
    list[str] | None,
    typer.Option(help="Name of a device; repeat it. Those that are known stay."),
]
AddressOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Host name or IP address of the server; repeat it, these devices use the first. "
        "Those that are known stay."
    ),
]
DropAddressOption = Annotated[
    list[str] | None, typer.Option(help="Host name or IP address that is known no longer.")
]
PortOption = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Of the server; without it, 9092.")
]
OperatorPortOption = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="For operators, on loopback; without it, 9093."),
]
DeliveryPortOption = Annotated[
    int | None, typer.Option(min=1, max=65535, help="For models; without it, 9095.")
]
DaysOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_DAYS,
        help=f"Validity of a new certificate for the server; without it, {VALID_DAYS}.",
    ),
]
TrustOption = Annotated[
    list[Path] | None,
    typer.Option(help="Public signing key, for all devices; twice at most."),
]


@deployments.command()
def deploy(
    folder: FolderArgument,
    device: DeviceOption = None,
    address: AddressOption = None,
    drop_address: DropAddressOption = None,
    port: PortOption = None,
    operator_port: OperatorPortOption = None,
    delivery_port: DeliveryPortOption = None,
    days: DaysOption = None,
    trust: TrustOption = None,
) -> None:
    """Write keys, settings and instructions for a server and its devices, or for more of them.

    Where the server runs, devices are let in at once.
    """
    from simulations.deploy.changes import let_in
    from simulations.deploy.folder import Ports, write_deployment
    from simulations.deploy.trust import signing_state

    notes = write_deployment(
        folder,
        addresses=address or [],
        dropped=drop_address or [],
        devices=device or [],
        days=days,
        ports=Ports(port, operator_port, delivery_port),
        trust=trust or [],
    )
    for note in notes:
        print(note)
    if not let_in(folder / "server", print):
        command = f"fedhead serve {shlex.quote(str(folder / 'server'))}"
        print(f"{command} registers the devices when it starts")
    print(f"{folder}: read its README.md; keep authority/ca.key offline")
    print(signing_state(folder / "server"))


@deployments.command()
def serve(
    server: ServerArgument,
) -> None:
    """Start Flower's SuperLink for real devices, and register their keys."""
    from simulations.deploy.launch import serve as start

    with _until_ended():
        raise typer.Exit(start(server, _say))


@deployments.command()
def device(
    device: Annotated[Path, typer.Argument(help="The device's folder.")],
) -> None:
    """Start Flower's SuperNode on a device."""
    from simulations.deploy.launch import run_device

    with _until_ended():
        run_device(device, _say)


@contextmanager
def _until_ended() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _say("ended")


def _say(line: str) -> None:
    print(line, flush=True)
