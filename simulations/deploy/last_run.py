"""What a deployment's last run recorded about its devices: examples, failures, last reason."""

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
    """A device's part in a run.

    Attributes:
        examples: number of examples that it trained on; None: it did not join, or a private run.
        valid: number of updates that counted.
        failed: number of rounds without an update from it in time.
        rejected: number of updates or statements that were refused.
        reason: reason of the last failure or rejection; empty: there was none.
        reason_time: time of the last failure or rejection.
        seen: time of last contact; None: never.
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
        path: the run's folder.
        devices: the devices' parts by client id.
    """

    path: Path
    devices: Mapping[int, Participation]


def remember_run(server: Path, path: Path) -> None:
    """Record the run folder that a deployment's devices last worked for."""
    _LAST_RUN.write(server / "last-run.json", {"path": str(path.resolve())})


def read_last_run(server: Path) -> LastRun | None:
    """The last run; None: there was none, or its folder has moved.

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
    accounts = dict(_accounts(path / "checkpoint"))
    devices = {}
    # A device that could not join has a reason, but no examples and no account.
    for client in accounts.keys() | examples.keys() | reasons.keys():
        reason, moment = reasons.get(client, ("", None))
        account = accounts.get(client, Participation())
        devices[client] = replace(
            account, examples=examples.get(client), reason=reason, reason_time=moment
        )
    return LastRun(path, devices)


def _accounts(checkpoints: Path) -> Iterator[tuple[int, Participation]]:
    """Each client's account in the last checkpoint; devices.csv shows the same to people."""
    # Imported here: the process that watches over a server does without numpy.
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
    """Examples, and reason and time of the last problem, by client id; skips damaged lines."""
    examples, reasons = dict[int, int](), dict[int, tuple[str, datetime]]()
    if not path.exists():
        return examples, reasons
    damaged = 0
    for event in EVENTS.read(path):
        if isinstance(event, DamagedError):
            damaged += 1
            continue
        # A node's refusal need not be about its client.
        node = client_of_node(int(event["node"])) if "node" in event else None
        client = event.get("client", node)
        if client is None:
            continue
        if event["event"] == "joined":
            if "num_examples" in event:  # a private run does not tell
                examples[int(client)] = int(event["num_examples"])
        elif event["event"] in _TROUBLE:
            reason = str(event.get("reason") or event["event"])
            reasons[int(client)] = reason, datetime.fromisoformat(event["time"])
    if damaged:
        logger.warning("%s: damaged lines are left out: %d", path, damaged)
    return examples, reasons
