"""What a deployment's last run says of its devices: examples, failures, and the last reason."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import RunError
from common.files import write_atomic
from common.identity import client_of_node

__all__ = ["LastRun", "Part", "read_last_run", "remember_run"]

_TROUBLE = ("failed", "declined", "rejected", "refused", "late", "node")


@dataclass(frozen=True)
class Part:
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
        parts: by client id.
    """

    path: Path
    parts: Mapping[int, Part]


def remember_run(server: Path, path: Path) -> None:
    """Keep which run folder a deployment's devices last worked for."""
    write_atomic(server / "last-run.json", json.dumps({"path": str(path.resolve())}).encode())


def read_last_run(server: Path) -> LastRun | None:
    """The last run; None: there was none, or its folder is elsewhere by now.

    Raises:
        RunError: a file of it is damaged.
    """
    file = server / "last-run.json"
    try:
        path = Path(json.loads(file.read_text())["path"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as exc:
        raise RunError(f"{file} is damaged: {exc}") from exc
    if not path.is_dir():
        return None
    examples, reasons = _said(path / "events.jsonl")
    parts = {client: Part(examples=count) for client, count in examples.items()}
    for client, part in _accounts(path / "devices.csv"):
        reason, moment = reasons.get(client, ("", None))
        parts[client] = replace(
            part, examples=examples.get(client), reason=reason, reason_time=moment
        )
    return LastRun(path, parts)


def _accounts(path: Path) -> Iterator[tuple[int, Part]]:
    if not path.exists():
        return
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                yield (
                    int(row["client"]),
                    Part(
                        valid=int(row["valid"]),
                        failed=int(row["failed"]),
                        rejected=int(row["rejected"]) + int(row.get("refused") or 0),
                        seen=datetime.fromisoformat(row["last_seen"]) if row["last_seen"] else None,
                    ),
                )
    except (ValueError, KeyError, TypeError, csv.Error) as exc:
        raise RunError(f"{path} is damaged: {exc}") from exc


def _said(path: Path) -> tuple[dict[int, int], dict[int, tuple[str, datetime]]]:
    """Examples and the last trouble, why and when, by client id; an unfinished line is passed."""
    examples, reasons = dict[int, int](), dict[int, tuple[str, datetime]]()
    if not path.exists():
        return examples, reasons
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                event: dict[str, Any] = dict(json.loads(line))
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
    return examples, reasons
