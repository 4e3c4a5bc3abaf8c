"""The command line of artifact delivery: ``fedhead publish`` and ``fedhead delivery ...``."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import DeliveryError

if TYPE_CHECKING:
    from client.delivery.remote import Remote

__all__ = ["delivery", "publish"]

delivery = typer.Typer(no_args_is_help=True, help="Bring published models to devices over gRPC.")

_GRACE_SECONDS = 5

FolderArgument = Annotated[Path, typer.Argument(help="Folder of what is published.")]
DeviceArgument = Annotated[str, typer.Argument(help="Name of the device.")]
ModelsArgument = Annotated[Path, typer.Argument(help="Folder for models on this device.")]
ServerArgument = Annotated[str, typer.Argument(metavar="HOST:PORT", help="Delivery server.")]
CaOption = Annotated[Path, typer.Option(help="Certificate of the deployment's authority (PEM).")]
TokenOption = Annotated[Path, typer.Option(help="This device's token file.")]
NameOption = Annotated[str, typer.Option(help="Artifact, as it was published.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def publish(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    to: Annotated[Path, typer.Option(help="Folder that fedhead delivery serve serves.")],
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
    artifact = put_up(source, to, name=name or source.name)
    if json_:
        figures = asdict(artifact)
        del figures["card"]
        print(json.dumps(figures))
    else:
        print(f"{artifact}: {artifact.size:,} bytes\nsha256 {artifact.sha256}")


@delivery.command()
def token(
    folder: FolderArgument,
    device: DeviceArgument,
    out: Annotated[Path, typer.Option(help="Token file to carry to the device.")],
) -> None:
    """Let a device in: write its token file; only a hash stays here."""
    from server.delivery.tokens import issue_token

    issue_token(folder, device, out)
    print(f"{device} may fetch with {out}")


@delivery.command()
def revoke(folder: FolderArgument, device: DeviceArgument) -> None:
    """Let a device in no more."""
    from server.delivery.tokens import revoke_token

    revoke_token(folder, device)
    print(f"{device} may fetch no more")


@delivery.command()
def serve(
    folder: FolderArgument,
    cert: Annotated[Path, typer.Option(help="Server certificate (PEM).")],
    key: Annotated[Path, typer.Option(help="Its private key (PEM).")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104 - devices come from outside
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 9095,
    downloads: Annotated[int, typer.Option(min=1, help="Downloads at once.")] = 16,
    rate: Annotated[
        float, typer.Option(min=0.001, help="MB a second, all downloads together.")
    ] = 10.0,
) -> None:
    """Serve published models until Ctrl-C or SIGTERM; what is published meanwhile too."""
    from server.delivery.service import Limits, start

    # A service manager's stop is as good as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    server, port = start(
        folder,
        address=f"{host}:{port}",
        certificate=cert,
        key=key,
        limits=Limits(downloads, 1e6 * rate),
    )
    print(f"serving {folder} on {host}:{port}", flush=True)
    with suppress(KeyboardInterrupt):
        server.wait_for_termination()
    server.stop(_GRACE_SECONDS).wait()


@delivery.command()
def status(folder: FolderArgument, json_: JsonFlag = False) -> None:
    """What is published, and how right devices found it on their own data."""
    from server.delivery.reports import survey

    found = survey(folder)
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
    server: ServerArgument,
    models: ModelsArgument,
    ca: CaOption,
    token: TokenOption,
    name: NameOption = "model.pt",
    keep: Annotated[int, typer.Option(min=2, help="Versions to keep.")] = 3,
    json_: JsonFlag = False,
) -> None:
    """On a device: fetch the newest model, if it is new, and put it into use."""
    from client.delivery.fetch import fetch as bring
    from client.delivery.shelf import Shelf

    with _remote(server, ca, token) as remote:
        fetched = bring(remote, Shelf(models, name), keep=keep)
    if json_:
        print(json.dumps(asdict(fetched), default=str))
    else:
        print(f"{fetched.model}: {fetched.note}; {fetched.received_bytes:,} bytes received")


@delivery.command()
def report(
    server: ServerArgument,
    models: ModelsArgument,
    data: Annotated[Path, typer.Option(help="This device's pictures, one sub-folder a class.")],
    ca: CaOption,
    token: TokenOption,
    name: NameOption = "model.pt",
) -> None:
    """On a device: measure the model in use on own pictures and tell the server the accuracy.

    Nothing else is told: no picture, no label, no prediction.
    """
    from client.delivery.shelf import Shelf
    from common.delivery.versions import read_artifact
    from simulations.predict import measure

    shelf = Shelf(models, name)
    with shelf.locked():
        artifact = read_artifact(shelf.path, shelf.current)
    accuracy, num_examples = measure(shelf.model, data)
    with _remote(server, ca, token) as remote:
        remote.report(artifact, num_examples=num_examples, accuracy=accuracy)
    print(f"{artifact}: right in {100 * accuracy:.2f} % of {num_examples} pictures, told {server}")


@delivery.command()
def rollback(models: ModelsArgument, name: NameOption = "model.pt") -> None:
    """On a device: use the version before again, until one newer than today's is published."""
    from client.delivery.shelf import Shelf

    with Shelf(models, name).locked() as shelf:
        artifact = shelf.roll_back()
    print(f"{shelf.model}: back to {artifact}")


def _remote(server: str, ca: Path, token: Path) -> Remote:
    from client.delivery.remote import Remote

    return Remote(server, authority=ca, token=token)
