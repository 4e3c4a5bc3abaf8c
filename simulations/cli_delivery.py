"""The command line of artifact delivery: ``fedhead publish`` and ``fedhead delivery ...``."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import DeliveryError, SignatureError

if TYPE_CHECKING:
    from client.delivery.remote import Remote
    from client.delivery.shelf import Shelf
    from client.trust import Trust
    from common.delivery.versions import Artifact
    from server.delivery.publish import Candidate

__all__ = ["delivery", "publish"]

delivery = typer.Typer(no_args_is_help=True, help="Bring published models to devices over gRPC.")

_GRACE_SECONDS = 5
_HERE = Path()
_MODEL = "model.pt"

ServerArgument = Annotated[Path, typer.Argument(help="The deployment's server folder.")]
DeviceArgument = Annotated[Path, typer.Argument(help="The device's folder; without it, this one.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the device.")]
KeyOption = Annotated[Path | None, typer.Option(help="Signing key of fedhead keys new.")]
StatementOption = Annotated[
    Path | None,
    typer.Option(help="Put nothing up; write what fedhead keys sign is to sign elsewhere."),
]
SignedOption = Annotated[Path | None, typer.Option(help="What fedhead keys sign wrote elsewhere.")]
ExpiresOption = Annotated[int, typer.Option(min=1, help="Days that the signature holds.")]
NameOption = Annotated[str, typer.Option(help="Artifact, as it was published.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@dataclass(frozen=True)
class Signing:
    """The options of commands that put something up.

    Raises:
        DeliveryError: more than one way to sign.
    """

    key: Path | None
    statement: Path | None
    signed: Path | None
    days: int

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.key, self.statement, self.signed)) > 1:
            raise DeliveryError("--key, --statement and --signed exclude each other")


def _put_up(candidate: Candidate, server: Path, signing: Signing, *, json_: bool) -> None:
    from common.signing.statement import Statement, utc
    from server.delivery.publish import put_up
    from simulations.signing import draft, signer

    if signing.statement:
        drafted = draft(candidate, signing.statement, signing.days)
        print(f"{signing.statement}: {drafted}, to be signed by fedhead keys sign")
        return
    sign = signer(server, key=signing.key, signed=signing.signed, days=signing.days)
    release = put_up(candidate, sign)
    artifact = release.artifact
    if json_:
        print(json.dumps({**_figures(artifact), "new": release.is_new}))
        return
    news = f"{artifact.size:,} bytes" if release.is_new else "published already, the same bytes"
    print(f"{artifact}: {news}\nsha256 {artifact.sha256}")
    if artifact.signed:
        print(f"signed until {utc(Statement.from_bytes(artifact.signed.statement).expires)}")


def publish(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|EXPERIMENT.toml", help="Run folder; or experiment, to sign its backbone."
        ),
    ],
    to: Annotated[Path, typer.Option(help="The deployment's server folder.")],
    file: Annotated[str, typer.Option(help="Exported file in RUN.")] = "model.pt",
    name: Annotated[
        str | None, typer.Option(help="What devices ask for; without it, the file's name.")
    ] = None,
    key: KeyOption = None,
    statement: StatementOption = None,
    signed: SignedOption = None,
    expires: ExpiresOption = 365,
    json_: JsonFlag = False,
) -> None:
    """Put a run's exported model up for devices, as a new version, signed or not.

    What is published already stays as it is; with a key, its signature is renewed.
    """
    from common.config import load_config
    from server.delivery.publish import exported
    from simulations.signing import backbone_candidate

    delivered = _published(to)
    if what.suffix == ".toml":
        if not (key or statement or signed):
            raise SignatureError(f"{what}: a backbone is put up to be signed: give --key FILE")
        candidate = backbone_candidate(load_config(what), to)
    else:
        source = what / file
        if not source.is_file():
            raise DeliveryError(f"{source}: no such file; fedhead export {what} writes model.pt")
        candidate = exported(source, delivered, name=name or source.name)
    _put_up(candidate, to, Signing(key, statement, signed, expires), json_=json_)


@delivery.command()
def restore(
    server: ServerArgument,
    version: Annotated[int, typer.Argument(min=1, help="Version with the content wanted.")],
    name: NameOption = _MODEL,
    key: KeyOption = None,
    statement: StatementOption = None,
    signed: SignedOption = None,
    expires: ExpiresOption = 365,
    json_: JsonFlag = False,
) -> None:
    """Give devices an earlier version's content again, as a new version.

    Devices never go back to a lower number: an old version must not be forced on them.
    """
    from server.delivery.publish import earlier

    candidate = earlier(_published(server), name=name, version=version)
    _put_up(candidate, server, Signing(key, statement, signed, expires), json_=json_)


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
    from server.delivery.service import Limits, start
    from simulations.deploy.settings import endpoint, read_server
    from simulations.deploy.trust import signing_state

    settings, signing = read_server(server), signing_state(server)
    # A service manager's stop is as good as Ctrl-C, which a shell's `&` lets a process ignore.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    running, port = start(
        _published(server),
        address=endpoint(settings.host, settings.delivery_port),
        certificate=server / "server.crt",
        key=server / "server.key",
        limits=Limits(downloads, 1e6 * rate),
    )
    print(f"serving models at port {port}; end with Ctrl-C", flush=True)
    print(signing, flush=True)
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
                **_figures(entry.artifact),
                "accuracy": entry.accuracy,
                "reports": {device: asdict(report) for device, report in entry.reports.items()},
            }
            for entry in found
        ]
        print(json.dumps(rows))
        return
    table = Table()
    for title in ("artifact", "version", "bytes", "signed until", "devices", "accuracy", "worst"):
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

    with _remote(device) as remote:
        fetched = bring(remote, _shelf(device, name), keep=keep, trust=_trust(device))
    if json_:
        print(json.dumps(asdict(fetched), default=str))
    else:
        print(f"{fetched.model}: {fetched.note}; {fetched.received_bytes:,} bytes received")


@delivery.command()
def report(device: DeviceArgument = _HERE, name: NameOption = _MODEL) -> None:
    """On a device: measure the model in use on its own pictures, and tell the accuracy.

    On those that it keeps to test with, if it has taken part in a run with the model's classes.
    Nothing else is told: no picture, no label, no prediction.
    """
    from simulations.deploy.grade import grade
    from simulations.deploy.settings import read_device

    artifact, figures = grade(device, _shelf(device, name), _trust(device))
    with _remote(device) as remote:
        remote.report(artifact, **asdict(figures))
    print(f"{artifact}: right in {figures}, told {read_device(device).delivery}")


@delivery.command()
def rollback(device: DeviceArgument = _HERE, name: NameOption = _MODEL) -> None:
    """On a device: use the version before again, until one newer than today's is published."""
    with _shelf(device, name).locked() as shelf:
        artifact = shelf.roll_back()
    print(f"{shelf.model}: back to {artifact}")


def _figures(artifact: Artifact) -> dict[str, object]:
    """What a program wants to know of a version."""
    names = ("name", "version", "size", "sha256")
    return {name: getattr(artifact, name) for name in names} | {"signed": bool(artifact.signed)}


def _until(artifact: Artifact) -> str:
    from common.signing.statement import Statement, utc

    if artifact.signed is None:
        return "unsigned"
    return utc(Statement.from_bytes(artifact.signed.statement).expires)[:10]


def _published(server: Path) -> Path:
    from simulations.deploy.settings import delivery_of, read_server

    read_server(server)  # or a mistyped folder would become one
    return delivery_of(server)


def _remote(device: Path) -> Remote:
    from client.delivery.remote import Remote
    from simulations.deploy.settings import read_device

    address = read_device(device).delivery
    return Remote(address, authority=device / "ca.crt", token=device / "delivery.token")


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
