"""``fedhead cache``: show and prune the cache."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.cache import MADE_AGAIN, entries, prune, size_of
from common.errors import RunError
from common.files import cache_root
from fedhead.cli.terminal import JsonFlag

__all__ = ["cache"]

_DAYS = 30


def cache(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A device's state folder; by default the cache of this machine."),
    ] = None,
    prune_: Annotated[
        bool, typer.Option("--prune", help="Remove what was not used for --days days.")
    ] = False,
    days: Annotated[
        int, typer.Option(min=0, help="For --prune; 0 removes all that can be made again.")
    ] = _DAYS,
    json_: JsonFlag = False,
) -> None:
    """Show what the cache holds; with --prune, free disk space.

    Only backbones, features and partitions are removed; they are made again
    when needed. Clients' memories of their runs and downloaded data sets stay.
    """
    if folder is not None and not folder.is_dir():
        raise RunError(f"{folder}: no such folder")
    root = cache_root() if folder is None else folder
    removed = prune(root, days) if prune_ else []
    freed = sum(entry.size_bytes for entry in removed)
    rows = [_row(path) for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
    if json_:
        print(json.dumps({"cache": str(root), "kinds": rows, "freed-bytes": freed}))
        return
    table = Table(title=str(root), title_justify="left")
    for name, justify in (("kind", "left"), ("entries", "right"), ("MB", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("last used")
    table.add_column("made again")
    for row in rows:
        used = datetime.fromisoformat(row["used"]).astimezone() if row["used"] else None
        table.add_row(
            row["kind"], str(row["entries"]), f"{row['bytes'] / 1e6:,.1f}",
            f"{used:%Y-%m-%d %H:%M}" if used else "-", "yes" if row["made-again"] else "no",
        )  # fmt: skip
    Console(markup=False).print(table)
    if prune_:
        print(f"removed: {len(removed)} entries, {freed / 1e6:,.1f} MB")


def _row(path: Path) -> dict[str, Any]:
    found = entries(path)
    used = datetime.fromtimestamp(found[-1].used, UTC).isoformat() if found else None
    return {
        "kind": path.name,
        "entries": len(found),
        "bytes": size_of(path),
        "used": used,
        "made-again": path.name in MADE_AGAIN,
    }
