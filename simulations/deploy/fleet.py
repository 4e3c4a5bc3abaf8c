"""An operator's view of a deployment's devices, from the server's files and its SuperLink."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from common.delivery.tokens import TokenState, token_states
from common.errors import RunError
from common.phones import GATEWAY
from server.delivery.checkins import CheckIn, check_ins
from server.round.roster import read_client, read_roster
from simulations.deploy.authority import expiries
from simulations.deploy.certificates import certificates_in
from simulations.deploy.device_keys import admitted_keys, key_id, last_revoked, read_key
from simulations.deploy.last_run import LastRun, Participation, read_last_run
from simulations.deploy.operator import Node, control
from simulations.deploy.phones_view import PhonesView, phone_names, phones_view
from simulations.deploy.processes import is_held
from simulations.deploy.settings import (
    OPERATORS_HOST,
    delivery_of,
    endpoint,
    read_server,
)
from simulations.deploy.trust import SigningState, signing_state

__all__ = [
    "DeviceRow",
    "Door",
    "Fleet",
    "State",
    "is_served",
    "lagging",
    "look",
]

State = Literal["online", "offline", "registered", "waiting", "revoked", "token only"]

_CONNECT_SECONDS = 2.0


@dataclass(frozen=True)
class DeviceRow:
    """A device.

    Attributes:
        name: the name that its owner gave it.
        key: short id of its public key; None: it has no key and can only fetch models.
        state: for example "registered" (never seen) or "waiting" (its key is in the folder but not
            in the SuperLink yet).
        since: when the state began, if it is online, offline or revoked; None: unknown.
        seen: time of last contact with SuperLink, delivery or a run; None: never.
        app: program and version that it reported; None: it never did.
        in_use: current version of each model that it reported.
        trusts_all: whether it trusts all authorities that it should; None: it never reported.
        token: state of its delivery token; None: it never had one.
        last_run: its part in the last run.
    """

    name: str
    key: str | None
    state: State
    since: datetime | None = None
    seen: datetime | None = None
    app: str | None = None
    in_use: Mapping[str, int] = field(default_factory=dict)
    trusts_all: bool | None = None
    token: TokenState | None = None
    last_run: Participation | None = None


@dataclass(frozen=True)
class Door:
    """An address where a server listens.

    Attributes:
        name: for whom it is.
        address: host:port.
        is_open: whether the server listens there now.
    """

    name: str
    address: str
    is_open: bool


@dataclass(frozen=True)
class Fleet:
    """The state of a deployment.

    Attributes:
        devices: rows in the order of names.
        down: why the SuperLink was not asked; None: it was asked.
        signing: the signatures that devices need.
        doors: the server's addresses.
        ends: when the server's certificate and its authority end.
        still_old: during a change of authorities, devices that are not known to trust the new one;
            None: there is no change.
        last_run: the devices' last run.
        phones: the phones; None: there are none.
    """

    devices: Sequence[DeviceRow]
    down: str | None
    signing: SigningState
    doors: Sequence[Door]
    ends: Mapping[str, datetime]
    still_old: Sequence[str] | None
    last_run: LastRun | None
    phones: PhonesView | None = None


def look(server: Path) -> Fleet:
    """The present state of a deployment and its devices.

    Raises:
        ConfigError, RunError, DeliveryError: a file in the server's folder is missing or damaged.
    """
    down, nodes = None, None
    if not is_served(server):
        down = "fedhead serve does not run; the table is from its files"
    else:
        try:
            with control(server) as api:
                nodes = api.nodes()
        except RunError as exc:
            down = str(exc)
    last_run = read_last_run(server)
    rows = _rows(server, nodes, last_run)
    keys = {row.name for row in rows if row.key}
    phones = phone_names(server, token_states(delivery_of(server)), keys)
    follows = len(certificates_in(server / "ca.crt")) > 1
    return Fleet(
        devices=[row for row in rows if row.name not in phones],
        down=down,
        signing=signing_state(server),
        doors=_doors(server, phones=bool(phones)),
        ends=expiries(server),
        still_old=[*lagging(server)] if follows else None,
        last_run=last_run,
        phones=phones_view(server, phones),
    )


def is_served(server: Path) -> bool:
    """Whether the SuperLink of a server's folder runs and answers operators.

    Raises:
        ConfigError, RunError: a file in the server's folder is missing or wrong.
    """
    # Another program may listen at the port, and a starting SuperLink reads the folder later.
    return is_held(server) and _listens(OPERATORS_HOST, read_server(server).operator_port)


def lagging(server: Path) -> dict[str, datetime | None]:
    """Devices and phones not known to trust all authorities that they should, and when they came.

    Raises:
        RunError, DeliveryError: a file is damaged.
    """
    delivery = delivery_of(server)
    wanted = _digest(server)
    may_fetch = {name for name, state in token_states(delivery).items() if state == "valid"}
    said = check_ins(delivery)
    return {
        name: _time(said.get(name))
        for name in sorted(({*admitted_keys(server)} - {GATEWAY}) | may_fetch)
        if name not in said or said[name].authorities_sha256 != wanted
    }


def _rows(server: Path, nodes: Sequence[Node] | None, last_run: LastRun | None) -> list[DeviceRow]:
    delivery = delivery_of(server)
    said, tokens = check_ins(delivery), token_states(delivery)
    wanted, roster, revoked = _digest(server), read_roster(server), last_revoked(server)
    rows = []
    for name, key, state, since in _keys(server, nodes, {*tokens}, {*roster}):
        words = said.get(name) if state != "revoked" else None
        if state == "revoked":
            client = read_client(revoked[name].with_suffix(".client")) if name in revoked else None
        else:
            client = roster[name].client if name in roster else None
        did = last_run.devices.get(client) if last_run and client is not None else None
        times = [_time(words), did.seen if did else None]
        if state in ("online", "offline"):
            times.append(datetime.now(UTC) if state == "online" else since)
        rows.append(
            DeviceRow(
                name,
                key,
                state,
                since,
                seen=max(filter(None, times), default=None),
                app=words.app if words else None,
                in_use=words.in_use if words else {},
                trusts_all=words.authorities_sha256 == wanted if words else None,
                token=tokens.get(name),
                last_run=did,
            )
        )
    return rows


def _keys(
    server: Path, nodes: Sequence[Node] | None, tokens: set[str], roster: set[str]
) -> Iterator[tuple[str, str | None, State, datetime | None]]:
    """Name, key, state and its beginning for each known device, in the order of names."""
    found: dict[str, tuple[str | None, State, datetime | None]] = {}
    for name in tokens:
        found[name] = None, "token only", None
    for name, path in last_revoked(server).items():
        found[name] = key_id(read_key(path)), "revoked", _changed(path)
    by_key = {node.public_key: node for node in nodes or ()}
    for node in by_key.values():
        if node.status != "unregistered":  # unregistered keys are known from their files
            found[node.name] = key_id(node.public_key), *_standing(node)
    for name, key in admitted_keys(server).items():
        if key in by_key:
            found[name] = key_id(key), *_standing(by_key[key])
        else:
            known = nodes is None and name in roster
            found[name] = key_id(key), "registered" if known else "waiting", None
    for name in sorted(found):
        yield name, *found[name]


def _standing(node: Node) -> tuple[State, datetime | None]:
    if node.status == "online":
        return "online", node.activated
    if node.status == "offline":
        return "offline", node.deactivated
    if node.status == "unregistered":
        return "revoked", node.unregistered
    return "registered", None


def _digest(server: Path) -> str:
    """SHA-256 of the authorities that devices should trust."""
    return hashlib.sha256((server / "ca.crt").read_bytes()).hexdigest()


def _time(words: CheckIn | None) -> datetime | None:
    return datetime.fromtimestamp(words.time, UTC) if words else None


def _changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _doors(server: Path, *, phones: bool) -> list[Door]:
    settings = read_server(server)
    places = [
        ("devices", settings.host, settings.port),
        ("operators", OPERATORS_HOST, settings.operator_port),
        ("models", settings.host, settings.delivery_port),
    ]
    if phones:
        places.append(("phones", settings.host, settings.gateway_port))
    return [Door(name, endpoint(host, port), _listens(host, port)) for name, host, port in places]


def _listens(host: str, port: int) -> bool:
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - all addresses
    try:
        socket.create_connection((here, port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
