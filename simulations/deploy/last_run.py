"""What a deployment's last run says of its devices: examples, failures, and the last reason."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from common.errors import DamagedError
from common.identity import client_of_node
from common.readback import JsonFile
from server.record.events import EVENTS

__all__ = ["LastRun", "Participation", "read_last_run", "remember_run"]

logger = logging.getLogger("fedhead")

_LAST_RUN = JsonFile("last-run.json of a deployment")
_TROUBLE = ("failed", "declined", "rejected", "refused", "late", "node")


@dataclass(frozen=True)
class Participation:
    """What a device did in a run.

    Attributes:
        examples: that it trained on; None: it did not come.
        valid: updates that counted.
        failed: rounds in which it gave none, late ones too.
        rejected: updates that were not fit to count, or not its to give.
        reason: of the last that failed or was rejected; empty: none did.
        reason_time: when that was.
        seen: when it was there; None: never.
    """

    examples: int | None = None
    valid: int = 0
    failed: int = 0
    rejected: int = 0
    reason: str = ""
    reason_time: datetime | None = None
    seen: datetime | None = None


@dataclass(frozen=True)
class LastRun:
    """A run and its devices.

    Attributes:
        path: its folder.
        devices: by client id.
    """

    path: Path
    devices: Mapping[int, Participation]


def remember_run(server: Path, path: Path) -> None:
    """Keep which run folder a deployment's devices last worked for."""
    _LAST_RUN.write(server / "last-run.json", {"path": str(path.resolve())})


def read_last_run(server: Path) -> LastRun | None:
    """The last run; None: there was none, or its folder is elsewhere by now.

    Raises:
        DamagedError: the file that names it has changed since it was written.
        RunError: all its checkpoints are damaged.
    """
    try:
        path = Path(_LAST_RUN.read(server / "last-run.json")["path"])
    except FileNotFoundError:
        return None
    if not path.is_dir():
        return None
    examples, reasons = _said(path / "events.jsonl")
    devices = {client: Participation(examples=count) for client, count in examples.items()}
    for client, account in _accounts(path / "checkpoint"):
        reason, moment = reasons.get(client, ("", None))
        devices[client] = replace(
            account, examples=examples.get(client), reason=reason, reason_time=moment
        )
    return LastRun(path, devices)


def _accounts(checkpoints: Path) -> Iterator[tuple[int, Participation]]:
    """What the last finished round knew of each client; devices.csv says it to people."""
    # Who only remembers a run watches over its server, and goes without numpy.
    from server.record.accounts import COLUMNS
    from server.record.checkpoint import load_latest

    checkpoint = load_latest(checkpoints)
    if checkpoint is None:
        return
    for client, *numbers, seen in checkpoint.arrays["accounts"].tolist():
        row = dict(zip(COLUMNS, numbers, strict=True))
        yield (
            client,
            Participation(
                valid=row["valid"],
                failed=row["failed"],
                rejected=row["rejected"] + row["refused"],
                seen=datetime.fromtimestamp(seen / 1000, UTC) if seen else None,
            ),
        )


def _said(path: Path) -> tuple[dict[int, int], dict[int, tuple[str, datetime]]]:
    """Examples and the last trouble, why and when, by client id; a damaged line says nothing."""
    examples, reasons = dict[int, int](), dict[int, tuple[str, datetime]]()
    if not path.exists():
        return examples, reasons
    damaged = 0
    for event in EVENTS.read(path):
        if isinstance(event, DamagedError):
            damaged += 1
            continue
        # What a node is refused for need not be about its client.
        node = client_of_node(int(event["node"])) if "node" in event else None
        client = event.get("client", node)
        if client is None:
            continue
        if event["event"] == "joined":
            examples[int(client)] = int(event["num_examples"])
        elif event["event"] in _TROUBLE:
            reason = str(event.get("reason") or event["event"])
            reasons[int(client)] = reason, datetime.fromisoformat(event["time"])
    if damaged:
        logger.warning("%s: damaged lines are left out: %d", path, damaged)
    return examples, reasons
