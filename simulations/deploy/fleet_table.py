"""A deployment's devices as a table of at most 80 columns, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from common.tables import Fitted
from simulations.deploy.authority import expiry_warnings
from simulations.deploy.fleet import DeviceRow, Fleet
from simulations.deploy.phones_table import phones_json

__all__ = ["fleet_json", "fleet_lines", "fleet_table"]

_UNKNOWN = "-"
_MOST_NAMED = 20


def fleet_table(fleet: Fleet) -> Fitted:
    """A table with a line per device; times are in this machine's time zone."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("device", overflow="fold", min_width=6)
    for title in ("key", "state", "since", "version"):
        table.add_column(title, no_wrap=True)
    for title in ("model", "examples", "failed"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("token", no_wrap=True)
    for row in fleet.devices:
        table.add_row(
            row.name,
            row.key or _UNKNOWN,
            row.state,
            _since(row),
            row.app.removeprefix("fedhead ") if row.app else _UNKNOWN,
            _models(row),
            _number(row.last_run.examples if row.last_run else None),
            _number(row.last_run.failed + row.last_run.rejected if row.last_run else None),
            row.token or "none",
        )
    return Fitted(table, ("token", "key", "version", "since", "failed"))


def fleet_lines(fleet: Fleet) -> Iterator[str]:
    """The lines below the table: failures, addresses, expiry dates, and what to do."""
    if fleet.down:
        yield f"the SuperLink was not asked: {fleet.down}"
    for row in fleet.devices:
        if row.last_run and row.last_run.reason_time:
            when = f"{row.last_run.reason_time.astimezone():%d %b %H:%M}"
            yield f"{row.name} last failed on {when}: {row.last_run.reason}"
        if len(row.in_use) > 1:
            models = ", ".join(f"{name} version {v}" for name, v in sorted(row.in_use.items()))
            yield f"{row.name} uses {models}"
    if fleet.still_old:
        names, more = ", ".join(fleet.still_old[:_MOST_NAMED]), len(fleet.still_old) - _MOST_NAMED
        names += f" and {more:,} more" if more > 0 else ""
        yield f"a new authority signs now; not known to trust it: {names}"
    elif fleet.still_old is not None:
        yield "a new authority signs now, and all devices trust it; drop the old one with"
        yield "fedhead fleet DEPLOYMENT renew --authority"
    yield str(fleet.signing)
    for door in fleet.doors:
        yield f"door for {door.name}: {door.address}, {'open' if door.is_open else 'closed'}"
    yield "; ".join(f"the {name} ends on {end:%Y-%m-%d}" for name, end in fleet.ends.items())
    yield from (f"warning: {line}" for line in expiry_warnings(fleet.ends))
    if fleet.last_run:
        yield f"last run: {fleet.last_run.path}"


def fleet_json(fleet: Fleet) -> dict[str, Any]:
    """The table's content, and everything that it has no room for."""
    return {
        "devices": [{**_plain(asdict(row)), "in-use": dict(row.in_use)} for row in fleet.devices],
        "superlink": {"asked": fleet.down is None, "problem": fleet.down},
        "signing-keys": list(fleet.signing.keys),
        "doors": [asdict(door) for door in fleet.doors],
        "ends": _plain(dict(fleet.ends)),
        "still-old": fleet.still_old,
        "last-run": str(fleet.last_run.path) if fleet.last_run else None,
        "phones": phones_json(fleet.phones) if fleet.phones else None,
    }


def _plain(value: Any) -> Any:
    """Times as ISO 8601, keys with hyphens."""
    if isinstance(value, dict):
        return {str(key).replace("_", "-"): _plain(inner) for key, inner in value.items()}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    return value


def _since(row: DeviceRow) -> str:
    """The time when the state began; if unknown, the time of last contact."""
    moment = row.since or row.seen
    if moment is None:
        return _UNKNOWN if row.state == "token only" else "never"
    local, now = moment.astimezone(), datetime.now().astimezone()
    if local.date() == now.date():
        return f"{local:%H:%M}"
    return f"{local:%d %b}" if (now - local).days < 300 else f"{local:%Y-%m}"


def _models(row: DeviceRow) -> str:
    versions = sorted(row.in_use.values())
    return ",".join(map(str, versions)) if versions else _UNKNOWN


def _number(value: int | None) -> str:
    return _UNKNOWN if value is None else str(value)
