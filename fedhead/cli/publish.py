"""The commands that publish models and backbones for devices, signed or not.

Typer takes a command's options as its parameters, so they are more than seven.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.delivery.versions import MOST_VERSIONS
from common.errors import DeliveryError, SignatureError
from fedhead.cli.terminal import JsonFlag
from simulations.deploy import MOST_DAYS, VALID_DAYS

if TYPE_CHECKING:
    from common.delivery.versions import Artifact
    from server.delivery.publish import Candidate

__all__ = ["NameOption", "ServerArgument", "figures_of", "publish", "published_in", "restore"]

_MODEL = "model.pt"


class PhoneFormat(StrEnum):
    """The formats that phones run."""

    EXECUTORCH = "executorch"
    LITE = "lite"
    TORCH = "torch"


def _server(folder: Path) -> Path:
    from simulations.deploy.settings import server_folder

    return server_folder(folder)


_SERVER = "The deployment's folder, or its server's folder."
ServerArgument = Annotated[Path, typer.Argument(callback=_server, help=_SERVER)]
NameOption = Annotated[str, typer.Option(help="Name under which the model was published.")]
KeyOption = Annotated[Path | None, typer.Option(help="Signing key from fedhead keys new.")]
StatementOption = Annotated[
    Path | None,
    typer.Option(help="Publish nothing; write this file for fedhead keys sign elsewhere."),
]
SignedOption = Annotated[
    Path | None, typer.Option(help="Signed statement that fedhead keys sign wrote elsewhere.")
]
ExpiresOption = Annotated[
    int, typer.Option(min=1, max=MOST_DAYS, help="Days that the signature is valid.")
]
WhatArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|EXPERIMENT.toml",
        help="Run folder; or an experiment file, to sign its backbone.",
    ),
]
ToOption = Annotated[Path, typer.Option(callback=_server, help=_SERVER)]
FileOption = Annotated[str, typer.Option(help="Exported file in RUN.")]
FormatOption = Annotated[
    PhoneFormat | None,
    typer.Option("--format", help="With an experiment: its backbone's file for such phones."),
]
NewNameOption = Annotated[
    str | None, typer.Option(help="Name that devices ask for; by default the file's name.")
]
VersionOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=MOST_VERSIONS,
        help="Lowest version number to give, if the server has lost its versions.",
    ),
]


@dataclass(frozen=True)
class _Signing:
    """The signing options of commands that publish.

    Raises:
        DeliveryError: more than one way to sign is given.
    """

    key: Path | None
    statement: Path | None
    signed: Path | None
    days: int

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.key, self.statement, self.signed)) > 1:
            raise DeliveryError("--key, --statement and --signed exclude each other")


def publish(
    what: WhatArgument,
    to: ToOption,
    file: FileOption = "model.pt",
    format_: FormatOption = None,
    name: NewNameOption = None,
    version: VersionOption = 1,
    key: KeyOption = None,
    statement: StatementOption = None,
    signed: SignedOption = None,
    expires: ExpiresOption = VALID_DAYS,
    json_: JsonFlag = False,
) -> None:
    """Publish a run's exported model for devices, as a new version, signed or not.

    The same bytes get no second version; with a key, their signature is renewed.
    """
    from common.config import load_config
    from simulations.deploy.phone_files import phone_candidate
    from simulations.deploy.signing import backbone_candidate

    delivered = published_in(to)
    if what.suffix == ".toml":
        if not (key or statement or signed):
            raise SignatureError(
                f"{what}: a backbone can only be published signed: give --key FILE"
            )
        config = load_config(what)
        candidate = (
            phone_candidate(config, to, format_) if format_ else backbone_candidate(config, to)
        )
    elif format_:
        raise DeliveryError(f"{what}: --format is of an experiment's backbone, not of a run's file")
    else:
        candidate = _exported(what, file, delivered, name)
    candidate = replace(candidate, least=version)
    _publish(candidate, to, _Signing(key, statement, signed, expires), json_=json_)


def _exported(run: Path, file: str, delivered: Path, name: str | None) -> Candidate:
    from server.delivery.publish import exported

    source = run / file
    if not source.is_file():
        command = f"fedhead export {shlex.quote(str(run))}"
        raise DeliveryError(f"{source}: no such file; {command} writes model.pt")
    return exported(source, delivered, name=name or source.name)


def restore(
    server: ServerArgument,
    version: Annotated[int, typer.Argument(min=1, help="Earlier version to publish again.")],
    name: NameOption = _MODEL,
    key: KeyOption = None,
    statement: StatementOption = None,
    signed: SignedOption = None,
    expires: ExpiresOption = VALID_DAYS,
    json_: JsonFlag = False,
) -> None:
    """Publish an earlier version's content again, as a new version.

    Devices never go back to a lower number, so that nobody can force an old version on them.
    """
    from server.delivery.publish import earlier

    candidate = earlier(published_in(server), name=name, version=version)
    _publish(candidate, server, _Signing(key, statement, signed, expires), json_=json_)


def _publish(candidate: Candidate, server: Path, signing: _Signing, *, json_: bool) -> None:
    from common.signing.statement import Statement, utc
    from server.delivery.publish import publish_version
    from simulations.deploy.signing import draft, signer
    from simulations.deploy.trust import signing_state

    if signing.statement:
        drafted = draft(candidate, signing.statement, signing.days)
        print(f"{signing.statement}: {drafted}, to be signed by fedhead keys sign")
        return
    sign = signer(server, key=signing.key, signed=signing.signed, days=signing.days)
    release = publish_version(candidate, sign)
    artifact = release.artifact
    if json_:
        print(json.dumps({**figures_of(artifact), "new": release.is_new}))
        return
    news = f"{artifact.size:,} bytes" if release.is_new else "published already, the same bytes"
    print(f"{artifact}: {news}\nsha256 {artifact.sha256}")
    if artifact.signed:
        print(f"signed until {utc(Statement.from_bytes(artifact.signed.statement).expires)}")
        if not signing_state(server).keys:
            print("no device asks for signatures yet: fedhead deploy --trust")


def figures_of(artifact: Artifact) -> dict[str, object]:
    """A version's figures for --json."""
    names = ("name", "version", "size", "sha256")
    return {name: getattr(artifact, name) for name in names} | {"signed": bool(artifact.signed)}


def published_in(server: Path) -> Path:
    """The folder of published files in a server's folder."""
    from simulations.deploy.settings import delivery_of, read_server

    read_server(server)  # otherwise a mistyped folder would become a server's
    return delivery_of(server)
