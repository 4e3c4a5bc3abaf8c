"""What an operator changes in a deployment while its server runs: devices come, go, are renewed.

Each change is in the server's files first, so that a server that starts later knows it too, and
what was killed in between is completed when it is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from common.errors import RunError
from server.delivery.checkins import forget
from server.delivery.tokens import revoke_token, token_states
from simulations.deploy.authority import drop_old, follow, sign_server, spread, stage
from simulations.deploy.certificates import addresses_of, public_half
from simulations.deploy.device_keys import (
    admitted_keys,
    comparable,
    put_out,
    read_key,
    revoked_names,
)
from simulations.deploy.fleet import is_served, lagging
from simulations.deploy.operator import control, register_folder
from simulations.deploy.settings import delivery_of

__all__ = ["let_in", "renew_authority", "renew_certificate", "revoke"]

Say = Callable[[str], None]


def let_in(server: Path, say: Say) -> bool:
    """Register the keys in a server's folder with its SuperLink.

    Returns:
        Whether it runs; else it does so itself when it starts.

    Raises:
        ConfigError, RunError: it refuses, or a file of the folder is missing or wrong.
    """
    if not is_served(server):
        return False
    with control(server) as api:
        register_folder(api, server, say)
    return True


def revoke(server: Path, name: str, say: Say) -> None:
    """Let a device in no more, neither at the SuperLink nor at delivery.

    Args:
        server: the server's folder; the device's own beside it is asked for its key.
        name: of the device.
        say: gets what has been done.

    Raises:
        RunError: no device of this name; or the SuperLink refuses, and the device's key stays out
            from its next start.
    """
    delivery = delivery_of(server)
    tokens = token_states(delivery)
    admitted, revoked = admitted_keys(server), revoked_names(server)
    own = server.parent / "devices" / name / "device.key"
    keys = [admitted[name]] if name in admitted else []
    if own.is_file():
        keys.append(comparable(public_half(own)))
    if not keys and name not in revoked and name not in tokens:
        known = sorted({*admitted, *tokens}) or ["none"]
        raise RunError(f"no device is called {name}; there are: {', '.join(known)}")
    for key in keys:
        put_out(server, name, key)
    if tokens.get(name) in ("valid", "damaged"):
        revoke_token(delivery, name)
        say(f"{name} fetches no more: its token is revoked")
    elif not keys and name not in revoked:
        say(f"{name} was revoked before")
    forget(delivery, name)
    if not keys and name not in revoked:
        return  # a phone, which has no SuperNode
    if is_served(server):
        _unregister(server, name)
        say(f"{name} is let in no more: its SuperNode is refused from now on")
    else:
        say(f"{name} is let in no more: fedhead serve does not run, and knows when it starts")


def _unregister(server: Path, name: str) -> None:
    """Put out whatever key the SuperLink knows by this name or by its files."""
    out = {read_key(path) for path in revoked_names(server).get(name, [])}
    with control(server) as api:
        for node in api.nodes():
            if node.status == "unregistered":
                continue
            if node.name == name or node.public_key in out:
                put_out(server, name, node.public_key)
                api.unregister(node.node_id)


def renew_certificate(folder: Path, days: int, say: Say) -> None:
    """Write a new certificate for the server, for the addresses as before.

    Raises:
        RunError: a key or certificate cannot be read; the authority's key is kept offline.
    """
    certificate = folder / "server" / "server.crt"
    end = sign_server(folder, addresses_of(certificate), days)
    spread(folder)
    say(f"{certificate}: valid until {end:%Y-%m-%d}; running servers take it up within seconds")


def renew_authority(folder: Path, days: int, say: Say, *, anyway: bool = False) -> None:
    """Take the next step by which another authority follows.

    Args:
        folder: the deployment's.
        days: how long the server's certificate is valid.
        say: gets what has been done, and what comes next.
        anyway: drop the old authority though there are devices that do not trust the new one.

    Raises:
        RunError: a key or certificate cannot be read; or such devices are there, by name.
    """
    server = folder / "server"
    reached = stage(folder)
    if reached in ("settled", "begun"):
        follow(folder, days)
        say("another authority signs now, and devices that trust the old one are let in as before")
        say("they take it when they check in: fedhead device and delivery fetch do, each hour")
        say("then the same command once more drops the old authority; fedhead fleet says when")
        return
    if reached == "both trusted" and not anyway and (behind := lagging(server)):
        raise RunError(
            f"the old authority is still needed, by {_named(behind)}; they take the new one from "
            "delivery, or by hand with server/ca.crt; --anyway leaves them behind"
        )
    drop_old(folder)
    say("the old authority is dropped, and its key with it")


def _named(behind: dict[str, datetime | None]) -> str:
    def words(name: str, seen: datetime | None) -> str:
        return f"{name} ({f'seen {seen.astimezone():%d %b %H:%M}' if seen else 'never seen'})"

    names: Sequence[str] = [words(name, seen) for name, seen in behind.items()]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
