"""An operator's changes to a deployment while its server runs: devices, certificates, authorities.

Each change is first written to the server's files, so that a server that starts later knows it too.
If a command is killed, the same command completes the change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from common.delivery.tokens import revoke_token, token_states
from common.errors import RunError
from common.phones import GATEWAY
from server.delivery.checkins import forget
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

_MOST_NAMED = 20


def let_in(server: Path, say: Say) -> bool:
    """Register the keys in a server's folder with its SuperLink.

    Returns:
        Whether the SuperLink runs; if not, it registers them when it starts.

    Raises:
        ConfigError, RunError: it refuses, or a file in the folder is missing or wrong.
    """
    if not is_served(server):
        return False
    with control(server) as api:
        register_folder(api, server, say)
    return True


def revoke(server: Path, name: str, say: Say) -> None:
    """Shut a device or phone out: from the SuperLink, from delivery and from the gateway.

    Args:
        server: the server's folder; the device's folder beside it is searched for its key.
        name: the device's or phone's name.
        say: called with lines about what has been done.

    Raises:
        RunError: there is none of this name; or the SuperLink refuses, and shuts it out only
            from its next start on.
    """
    delivery = delivery_of(server)
    tokens = token_states(delivery)
    admitted, revoked = admitted_keys(server), revoked_names(server)
    own = server.parent / "devices" / name / "device.key"
    keys = [admitted[name]] if name in admitted else []
    if own.is_file():
        keys.append(comparable(public_half(own)))
    if not keys and name not in revoked and name not in tokens:
        known = sorted({*admitted, *tokens} - {GATEWAY}) or ["none"]
        more = f" and {len(known) - _MOST_NAMED:,} more" if len(known) > _MOST_NAMED else ""
        names = ", ".join(known[:_MOST_NAMED]) + more
        raise RunError(f"no device or phone is called {name}; there are: {names}")
    for key in keys:
        put_out(server, name, key)
    if tokens.get(name) in ("valid", "damaged"):
        revoke_token(delivery, name)
        what = "cannot fetch any more" if keys or name in revoked else "is shut out"
        say(f"{name} {what}: its token is revoked")
    elif not keys and name not in revoked:
        say(f"{name} was revoked before")
    forget(delivery, name)
    if not keys and name not in revoked:
        return  # a phone, which has no SuperNode
    if is_served(server):
        _unregister(server, name)
        say(f"{name} is shut out: its SuperNode is refused from now on")
    else:
        say(f"{name} is shut out: fedhead serve does not run now, and reads this when it starts")


def _unregister(server: Path, name: str) -> None:
    """Unregister all keys that the SuperLink has for this name or for its files."""
    out = {read_key(path) for path in revoked_names(server).get(name, [])}
    with control(server) as api:
        for node in api.nodes():
            if node.status == "unregistered":
                continue
            if node.name == name or node.public_key in out:
                put_out(server, name, node.public_key)
                api.unregister(node.node_id)


def renew_certificate(folder: Path, days: int, say: Say) -> None:
    """Write a new certificate for the server, for the same addresses.

    Raises:
        RunError: a key or certificate cannot be read; the authority's key is kept offline.
    """
    certificate = folder / "server" / "server.crt"
    end = sign_server(folder, addresses_of(certificate), days)
    spread(folder)
    say(f"{certificate}: valid until {end:%Y-%m-%d}; a running server uses it within seconds")


def renew_authority(folder: Path, days: int, say: Say, *, anyway: bool = False) -> None:
    """Take the next step of replacing the authority.

    Args:
        folder: the deployment's folder.
        days: days for which the server's certificate is valid.
        say: called with lines about what has been done and what comes next.
        anyway: whether to drop the old authority even if devices do not trust the new one yet.

    Raises:
        RunError: a key or certificate cannot be read; or there are such devices, which are named.
    """
    server = folder / "server"
    reached = stage(folder)
    if reached in ("settled", "begun"):
        follow(folder, days)
        say("a new authority signs now; devices that trust the old one can still connect")
        say("devices learn the new one at their next check-in (fedhead device checks in each hour)")
        say("when fedhead fleet says so, run this command again to drop the old authority")
        return
    if reached == "both trusted" and not anyway and (behind := lagging(server)):
        raise RunError(
            f"the old authority is still needed by {_named(behind)}; they get the new one when "
            "they check in, or by hand with server/ca.crt; --anyway shuts them out"
        )
    drop_old(folder)
    say("the old authority and its key are dropped")


def _named(behind: dict[str, datetime | None]) -> str:
    def words(name: str, seen: datetime | None) -> str:
        return f"{name} ({f'seen {seen.astimezone():%d %b %H:%M}' if seen else 'never seen'})"

    names: Sequence[str] = [words(name, seen) for name, seen in behind.items()]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
