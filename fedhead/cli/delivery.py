"""The command line of artifact delivery, apart from publishing: ``fedhead delivery ...``."""

from __future__ import annotations

import json
import logging
import signal
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import DeliveryError
from fedhead.cli.publish import NameOption, ServerArgument, figures_of, published_in, restore
from fedhead.cli.terminal import JsonFlag, print_error

if TYPE_CHECKING:
    from client.delivery.remote import Remote
    from client.delivery.shelf import Shelf
    from client.trust import Trust
    from common.delivery.versions import Artifact

__all__ = ["delivery"]

delivery = typer.Typer(no_args_is_help=True, help="Deliver published models to devices over gRPC.")
delivery.command()(restore)

logger = logging.getLogger("fedhead.delivery")

_GRACE_SECONDS = 5
_HERE = Path()
_MODEL = "model.pt"

DeviceArgument = Annotated[
    Path, typer.Argument(help="The device's folder; by default the working folder.")
]
NameArgument = Annotated[str, typer.Argument(help="Name of the device.")]


@delivery.command()
def token(
    server: ServerArgument,
    device: NameArgument,
    out: Annotated[Path, typer.Option(help="Token file to carry to the device.")],
) -> None:
    """Allow one more device to fetch models, a phone for example: write its token file.

    The server keeps only a hash of it. Devices of fedhead deploy have their token already.
    """
    from common.delivery.tokens import issue_token

    issue_token(published_in(server), device, out)
    print(f"{device} may fetch with {out}")


@delivery.command()
def revoke(server: ServerArgument, device: NameArgument) -> None:
    """Stop a device from fetching models: its token is refused."""
    from common.delivery.tokens import revoke_token

    revoke_token(published_in(server), device)
    print(f"{device} may fetch no more")


@delivery.command()
def serve(
    server: ServerArgument,
    downloads: Annotated[
        int, typer.Option(min=1, max=1000, help="Largest number of downloads at once.")
    ] = 16,
    rate: Annotated[
        float, typer.Option(min=0.001, help="MB per second for all downloads together.")
    ] = 10.0,
) -> None:
    """Serve published models until Ctrl-C or SIGTERM, including those published meanwhile."""
    from common.delivery.identity import Identity
    from server.delivery.service import Limits, start
    from simulations.deploy.settings import endpoint, read_server
    from simulations.deploy.trust import signing_state

    settings, signing = read_server(server), signing_state(server)
    # A service manager stops with SIGTERM. A process started with a shell's `&` ignores Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    running, port = start(
        published_in(server),
        address=endpoint(settings.host, settings.delivery_port),
        identity=Identity(server / "server.crt", server / "server.key", server / "ca.crt"),
        limits=Limits(downloads, 1e6 * rate),
    )
    print(f"serving models at port {port}; end with Ctrl-C", flush=True)
    print(signing, flush=True)
    with suppress(KeyboardInterrupt):
        running.wait_for_termination()
    running.stop(_GRACE_SECONDS).wait()


@delivery.command()
def status(server: ServerArgument, json_: JsonFlag = False) -> None:
    """List published versions, and the accuracy that devices measured on their own data."""
    from server.delivery.reports import survey

    found = survey(published_in(server))
    if json_:
        rows = [
            {
                **figures_of(entry.artifact),
                "accuracy": entry.accuracy,
                "reports": {device: asdict(report) for device, report in entry.reports.items()},
            }
            for entry in found
        ]
        print(json.dumps(rows))
        return
    table = Table()
    for title in ("artifact", "version", "bytes", "signed until", "reports", "accuracy", "worst"):
        table.add_column(title, justify="left" if title == "artifact" else "right")
    for entry in found:
        table.add_row(
            entry.artifact.name,
            str(entry.artifact.version),
            f"{entry.artifact.size:,}",
            _until(entry.artifact),
            str(len(entry.reports)),
            "-" if entry.accuracy is None else f"{100 * entry.accuracy:.2f} %",
            entry.worst or "-",
        )
    Console(markup=False).print(table)


@delivery.command()
def fetch(
    device: DeviceArgument = _HERE,
    name: NameOption = _MODEL,
    keep: Annotated[int, typer.Option(min=2, help="Number of versions to keep.")] = 3,
    json_: JsonFlag = False,
) -> None:
    """On a device: fetch the newest model if there is a new one, and use it from now on."""
    from client.delivery.fetch import fetch as bring
    from client.delivery.remote import DeliveryInterruptedError

    with _remote(device) as remote:
        try:
            fetched = bring(remote, _shelf(device, name), keep=keep, trust=_trust(device))
        except DeliveryInterruptedError:
            raise
        except DeliveryError:  # if nothing is published yet, the device still checks in
            with suppress(DeliveryError):
                _check_in(device, remote)
            raise
        try:
            _check_in(device, remote)
        except DeliveryError as exc:
            print_error(str(exc))
    if json_:
        print(json.dumps(asdict(fetched), default=str))
    else:
        print(f"{fetched.model}: {fetched.note}; {fetched.received_bytes:,} bytes received")


@delivery.command("check-in")
def check_in(device: DeviceArgument = _HERE) -> None:
    """On a device: report its versions to the server, and trust the authorities it hands out.

    fetch does this too, and fedhead device does it every hour.
    """
    with _remote(device) as remote:
        _check_in(device, remote)


@delivery.command()
def report(device: DeviceArgument = _HERE, name: NameOption = _MODEL) -> None:
    """On a device: measure the current model on its own images and report the accuracy.

    A device that took part in a run with the model's classes uses its test
    images only. Nothing else is sent: no image, no label, no prediction.
    """
    from simulations.deploy.grade import grade
    from simulations.deploy.settings import read_device

    artifact, figures = grade(device, _shelf(device, name), _trust(device))
    with _remote(device) as remote:
        remote.report(artifact, **asdict(figures))
    print(f"{artifact}: right in {figures}, reported to {read_device(device).delivery}")


@delivery.command()
def rollback(device: DeviceArgument = _HERE, name: NameOption = _MODEL) -> None:
    """On a device: go back to the previous version until a newer one is published.

    A device that trusts signing keys goes back to a version that they have signed.
    """
    with _shelf(device, name).locked() as shelf:
        artifact = shelf.roll_back(_trust(device))
    print(f"{shelf.model}: back to {artifact}")


def _until(artifact: Artifact) -> str:
    from common.signing.statement import Statement, utc

    if artifact.signed is None:
        return "unsigned"
    return utc(Statement.from_bytes(artifact.signed.statement).expires)[:10]


def _remote(device: Path) -> Remote:
    from client.delivery.remote import Remote
    from simulations.deploy.settings import read_device

    address = read_device(device).delivery
    return Remote(address, authority=device / "ca.crt", token=device / "delivery.token")


def _check_in(device: Path, remote: Remote) -> None:
    from importlib.metadata import version

    from client.delivery.authorities import check_in
    from client.delivery.shelf import shelves
    from simulations.deploy.authority import end_of_trust, expiry_warnings
    from simulations.deploy.settings import inside, read_device

    settings = read_device(device)
    new = check_in(
        remote,
        device / "ca.crt",
        [settings.server, settings.delivery],
        app=f"fedhead {version('fedhead')}",
        in_use={s.path.name: s.current for s in shelves(inside(device, settings.models))},
    )
    if new:
        logger.info("%s: the trusted authorities changed", device / "ca.crt")
    for line in expiry_warnings({"authority": end_of_trust(device / "ca.crt")}):
        logger.warning("warning: %s", line)


def _trust(device: Path) -> Trust | None:
    from client.trust import Trust
    from simulations.deploy.settings import inside, read_device
    from simulations.deploy.trust import trusted_of

    folder = trusted_of(device)
    if not folder.exists():
        return None
    return Trust.of(folder, inside(device, read_device(device).state))


def _shelf(device: Path, name: str) -> Shelf:
    from client.delivery.shelf import Shelf
    from simulations.deploy.settings import inside, read_device

    return Shelf(inside(device, read_device(device).models), name)
