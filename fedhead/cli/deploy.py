"""The command line of a deployment: ``fedhead deploy | serve | device | phone``.

Typer takes a command's options as its parameters, so they are more than seven.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from fedhead.cli.publish import ServerArgument
from simulations.deploy import MOST_DAYS, VALID_DAYS

__all__ = ["deployments"]

deployments = typer.Typer()

FolderArgument = Annotated[
    Path, typer.Argument(help="The deployment's folder. It is made if missing; its keys stay.")
]
DeviceOption = Annotated[
    list[str] | None,
    typer.Option(help="Name of a new device; may be given several times. Known devices stay."),
]
PhoneOption = Annotated[
    list[str] | None,
    typer.Option(help="Name of a new phone; may be given several times. Known phones stay."),
]
PhonesOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Names of many new phones, one a line."),
]
AddressOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Host name or IP address of the server; may be given several times. New devices use "
        "the first. Known addresses stay."
    ),
]
DropAddressOption = Annotated[
    list[str] | None, typer.Option(help="Host name or IP address of the server to forget.")
]
PortOption = Annotated[
    int | None, typer.Option(min=1, max=65535, help="The server's port; by default 9092.")
]
OperatorPortOption = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Port for operators, on loopback; by default 9093."),
]
DeliveryPortOption = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Port for models; by default 9095.")
]
GatewayPortOption = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Port for phones; by default 9096.")
]
DaysOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_DAYS,
        help=f"Days that a new certificate of the server is valid; by default {VALID_DAYS}.",
    ),
]
TrustOption = Annotated[
    list[Path] | None,
    typer.Option(help="Public signing key that all devices trust; at most twice."),
]


@deployments.command()
def deploy(
    folder: FolderArgument,
    device: DeviceOption = None,
    phone: PhoneOption = None,
    phones: PhonesOption = None,
    address: AddressOption = None,
    drop_address: DropAddressOption = None,
    port: PortOption = None,
    operator_port: OperatorPortOption = None,
    delivery_port: DeliveryPortOption = None,
    gateway_port: GatewayPortOption = None,
    days: DaysOption = None,
    trust: TrustOption = None,
) -> None:
    """Write keys, settings and instructions for a server, its devices and its phones.

    Run it again to add devices or phones. A server that runs lets them in at once.
    """
    from simulations.deploy.changes import let_in
    from simulations.deploy.folder import Ports, write_deployment
    from simulations.deploy.phones import read_names
    from simulations.deploy.trust import signing_state

    names = [*(phone or []), *(read_names(phones) if phones else [])]
    notes = write_deployment(
        folder,
        addresses=address or [],
        dropped=drop_address or [],
        devices=device or [],
        phones=names,
        days=days,
        ports=Ports(port, operator_port, delivery_port, gateway_port),
        trust=trust or [],
    )
    for note in notes:
        print(note)
    if not let_in(folder / "server", print):
        command = f"fedhead serve {shlex.quote(str(folder / 'server'))}"
        print(f"{command} lets them in when it starts")
    if names:
        print(f"fedhead gateway {shlex.quote(str(folder))} serves the phones, beside fedhead serve")
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


@deployments.command()
def gateway(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The deployment's folder, or its server's.")
    ],
) -> None:
    """Serve phones, so that they take part in rounds. It runs on the server's machine."""
    from simulations.deploy.gateway import run_gateway
    from simulations.deploy.settings import server_folder

    with _until_ended():
        run_gateway(server_folder(folder), _say)


@deployments.command()
def phone(
    phone: Annotated[Path, typer.Argument(help="The phone's folder.")],
    once: Annotated[
        bool, typer.Option("--once", help="End after one task, or where there is none.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Fetch the newest finished model of this name, and end."),
    ] = None,
) -> None:
    """Take part in rounds as a phone does, through a gateway, with a folder of images."""
    import asyncio

    from client.phone.launch import run_phone
    from client.phone.models import fetch_model
    from client.phone.settings import read_phone
    from simulations.deploy.processes import alone, terminable

    folder = read_phone(phone.resolve())
    folder.state.mkdir(parents=True, exist_ok=True)
    if model is not None:
        if once:
            raise ConfigError(["--once is of rounds, and --model ends without one"])
        with _until_ended():
            fetched = fetch_model(folder, model)
            print(f"{fetched.model}: {fetched.note}; {fetched.received_bytes:,} bytes received")
        return
    with _until_ended(), terminable(), alone(folder.state, "fedhead phone"):
        asyncio.run(run_phone(folder, once=once))


@contextmanager
def _until_ended() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _say("ended")


def _say(line: str) -> None:
    print(line, flush=True)
