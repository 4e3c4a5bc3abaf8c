"""The command line of the signing key: ``fedhead keys new | show | sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["keys"]

keys = typer.Typer(
    no_args_is_help=True,
    help="Make, show and use the key that signs models and backbones. Keep it off servers and "
    "devices. Its passphrase is asked for, or read from FEDHEAD_PASSPHRASE or the file that "
    "FEDHEAD_PASSPHRASE_FILE names.",
)


@keys.command()
def new(file: Annotated[Path, typer.Argument(help="The key's file; it must not exist.")]) -> None:
    """Make a signing key and write its public half to FILE.pub."""
    from simulations.deploy.signing_key import new_key, new_passphrase, public_file

    passphrase = new_passphrase()
    name = new_key(file, passphrase)
    locked = "" if passphrase else " (no passphrase: anyone who has the file can sign)"
    print(
        f"{file}: signing key {name}; keep it offline, with a copy{locked}\n"
        f"{public_file(file)}: its public half, for fedhead deploy --trust"
    )


@keys.command()
def show(file: Annotated[Path, typer.Argument(help="Private or public key.")]) -> None:
    """Say which kind of key a file holds, and the key's id."""
    from common.signing.trust import key_id, read_public_key
    from simulations.deploy.signing_key import read_key

    with file.open("rb") as opened:
        private = b"PRIVATE KEY" in opened.read(8192)
    key = read_key(file).public_key() if private else read_public_key(file)
    what = "private signing key" if private else "public signing key"
    print(f"{file}: {what} {key_id(key)}, ECDSA on P-256")


@keys.command()
def sign(
    statement: Annotated[Path, typer.Argument(help="File from fedhead publish --statement.")],
    key: Annotated[Path, typer.Option(help="Signing key from fedhead keys new.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default STATEMENT.signed.")
    ] = None,
) -> None:
    """Sign a statement that another machine wrote."""
    from common.errors import SignatureError
    from common.files import write_atomic
    from common.signing.statement import MAX_SIGNED_BYTES, Statement, utc
    from simulations.deploy.signing_key import read_key
    from simulations.deploy.signing_key import sign as sign_with

    with statement.open("rb") as opened:
        data = opened.read(MAX_SIGNED_BYTES + 1)
    try:
        read = Statement.from_bytes(data)
    except SignatureError as exc:
        raise SignatureError(f"{statement}: {exc}") from exc
    target = out or statement.with_name(f"{statement.name}.signed")
    write_atomic(target, sign_with(read_key(key), read).to_file())
    print(f"{target}: {read}, {read.size:,} bytes, until {utc(read.expires)}\nsha256 {read.sha256}")
