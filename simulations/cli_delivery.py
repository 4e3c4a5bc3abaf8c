"""The command line of artifact delivery: ``fedhead publish`` and ``fedhead delivery ...``."""

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
from simulations.terminal import print_error

if TYPE_CHECKING:
    from client.delivery.remote import Remote
    from client.delivery.shelf import Shelf

__all__ = ["delivery", "publish"]

delivery = typer.Typer(no_args_is_help=True, help="Bring published models to devices over gRPC.")

logger = logging.getLogger("fedhead.delivery")

_GRACE_SECONDS = 5
_HERE = Path()
_MODEL = "model.pt"

ServerArgument = Annotated[Path, typer.Argument(help="The deployment's server folder.")]
DeviceArgument = Annotated[Path, typer.Argument(help="The device's folder; without it, this one.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the device.")]
NameOption = Annotated[str, typer.Option(help="Artifact, as it was published.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def publish(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    to: Annotated[Path, typer.Option(help="The deployment's server folder.")],
    file: Annotated[str, typer.Option(help="Exported file in RUN.")] = "model.pt",
    name: Annotated[
        str | None, typer.Option(help="What devices ask for; without it, the file's name.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Put a run's exported model up for devices, as a new version."""
    from server.delivery.publish import publish as put_up

    source = run_folder / file
    if not source.is_file():
        raise DeliveryError(f"{source}: no such file; fedhead export {run_folder} writes model.pt")
    artifact = put_up(source, _published(to), name=name or source.name)
    if json_:
        figures = asdict(artifact)
        del figures["card"]
        print(json.dumps(figures))
    else:
        print(f"{artifact}: {artifact.size:,} bytes\nsha256 {artifact.sha256}")


@delivery.command()
def token(
    server: ServerArgument,
    device: NameArgument,
    out: Annotated[Path, typer.Option(help="Token file to carry to the device.")],
) -> None:
    """Let one more device fetch, a phone for example: write its token file.

    The server keeps only a hash. Devices of fedhead deploy have their token already.
    """
    from server.delivery.tokens import issue_token

    issue_token(_published(server), device, out)
    print(f"{device} may fetch with {out}")


@delivery.command()
def revoke(server: ServerArgument, device: NameArgument) -> None:
    """Let a device fetch no more."""
    from server.delivery.tokens import revoke_token

    revoke_token(_published(server), device)
    print(f"{device} may fetch no more")


@delivery.command()
def serve(
    server: ServerArgument,
    downloads: Annotated[int, typer.Option(min=1, help="Downloads at once.")] = 16,
    rate: Annotated[
        float, typer.Option(min=0.001, help="MB a second, all downloads together.")
    ] = 10.0,
) -> None:
    """Serve published models until Ctrl-C or SIGTERM; what is published meanwhile too."""
    from server.delivery.identity import Identity
    from server.delivery.service import Limits, start
    from simulations.deploy.settings import endpoint, read_server

    settings = read_server(server)
    # A service manager's stop is as good as Ctrl-C, which a shell's `&` lets a process ignore.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    running, port = start(
        _published(server),
        address=endpoint(settings.host, settings.delivery_port),
        identity=Identity(server / "server.crt", server / "server.key", server / "ca.crt"),
        limits=Limits(downloads, 1e6 * rate),
    )
    print(f"serving models at port {port}; end with Ctrl-C", flush=True)
    with suppress(KeyboardInterrupt):
        running.wait_for_termination()
    running.stop(_GRACE_SECONDS).wait()


@delivery.command()
def status(server: ServerArgument, json_: JsonFlag = False) -> None:
    """What is published, and how right devices found it on their own data."""
    from server.delivery.reports import survey

    found = survey(_published(server))
    if json_:
        rows = [
            {
                "name": entry.artifact.name,
                "version": entry.artifact.version,
                "size": entry.artifact.size,
                "sha256": entry.artifact.sha256,
                "accuracy": entry.accuracy,
                "reports": {device: asdict(report) for device, report in entry.reports.items()},
            }
            for entry in found
        ]
        print(json.dumps(rows))
        return
    table = Table()
    for title in ("artifact", "version", "bytes", "devices", "accuracy", "worst"):
        table.add_column(title, justify="left" if title == "artifact" else "right")
    for entry in found:
        accuracies = [report.accuracy for report in entry.reports.values()]
        table.add_row(
            entry.artifact.name,
            str(entry.artifact.version),
            f"{entry.artifact.size:,}",
            str(len(accuracies)),
            "-" if entry.accuracy is None else f"{100 * entry.accuracy:.2f} %",
            f"{100 * min(accuracies):.2f} %" if accuracies else "-",
        )
    Console().print(table)


@delivery.command()
def fetch(
    device: DeviceArgument = _HERE,
    name: NameOption = _MODEL,
    keep: Annotated[int, typer.Option(min=2, help="Versions to keep.")] = 3,
    json_: JsonFlag = False,
) -> None:
    """On a device: fetch the newest model, if it is new, and put it into use."""
    from client.delivery.fetch import fetch as bring
    from client.delivery.remote import DeliveryInterruptedError

    with _remote(device) as remote:
        try:
            fetched = bring(remote, _shelf(device, name), keep=keep)
        except DeliveryInterruptedError:
            raise
        except DeliveryError:  # nothing is published yet: it checks in nevertheless
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
    """On a device: tell the server what it runs, and trust the authorities that it hands out.

    fetch does so too, and fedhead device every hour.
    """
    with _remote(device) as remote:
        _check_in(device, remote)


@delivery.command()
def report(device: DeviceArgument = _HERE, name: NameOption = _MODEL) -> None:
    """On a device: measure the model in use on its own pictures, and tell the accuracy.

    Nothing else is told: no picture, no label, no prediction.
    """
    from common.delivery.versions import read_artifact
    from simulations.deploy.settings import inside, read_device
    from simulations.predict import measure

    settings, shelf = read_device(device), _shelf(device, name)
    with shelf.locked():
        artifact = read_artifact(shelf.path, shelf.current)
    accuracy, num_examples = measure(shelf.model, inside(device, settings.data))
    with _remote(device) as remote:
        remote.report(artifact, num_examples=num_examples, accuracy=accuracy)
    right = f"right in {100 * accuracy:.2f} % of {num_examples} pictures"
    print(f"{artifact}: {right}, told {settings.delivery}")


@delivery.command()
def rollback(device: DeviceArgument = _HERE, name: NameOption = _MODEL) -> None:
    """On a device: use the version before again, until one newer than today's is published."""
    with _shelf(device, name).locked() as shelf:
        artifact = shelf.roll_back()
    print(f"{shelf.model}: back to {artifact}")


def _published(server: Path) -> Path:
    from simulations.deploy.settings import delivery_of, read_server

    read_server(server)  # or a mistyped folder would become one
    return delivery_of(server)


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
        logger.info("%s: other authorities are trusted", device / "ca.crt")
    for line in expiry_warnings({"authority": end_of_trust(device / "ca.crt")}):
        logger.warning("warning: %s", line)


def _shelf(device: Path, name: str) -> Shelf:
    from client.delivery.shelf import Shelf
    from simulations.deploy.settings import inside, read_device

    return Shelf(inside(device, read_device(device).models), name)
