"""Weights & Biases: its server, or files in the run folder that ``wandb sync`` sends later."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from common.config import TrackingConfig
from common.errors import ConfigError
from server.record.trackers.tracker import End, Numbers, Tracked, environment, numbers, texts

if TYPE_CHECKING:
    from wandb import Settings

__all__ = ["WandB", "check_login", "told_rounds"]

_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}
_LONGEST_SECONDS = 60  # that W&B may take for what is left to send
_ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false"}  # it would call home

# Its files are logs of records as LevelDB writes them: blocks, in each pieces of records that
# have a checksum of 4 bytes, a length of 2, and a kind: whole, first, middle or last.
_FILE_HEADER, _BLOCK, _PIECE_HEADER = 7, 32768, 7
_WHOLE, _LAST = 1, 4


def _mode(settings: TrackingConfig) -> str:
    wanted = settings.wandb_mode
    return os.environ.get("WANDB_MODE", "") or "online" if wanted == "auto" else wanted


def check_login(settings: TrackingConfig) -> None:
    """Find that W&B would ask for a key, which a run of hours must not wait for.

    Raises:
        ConfigError: W&B is to be online, and there is no key for it.
    """
    if _mode(settings) != "online":
        return
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known:
        raise ConfigError(
            ["tracking.trackers: W&B has no key here: wandb login, or tracking.wandb-mode=offline"]
        )


class WandB:
    """A run of W&B's with this run's id, which goes on with it; a notebook's own run stays.

    Args:
        run: what is tracked.

    Raises:
        Exception: whatever W&B raises, where its server cannot be reached.
    """

    def __init__(self, run: Tracked) -> None:
        with environment(_ENVIRONMENT):
            import wandb

            mode: Any = _mode(run.settings)
            self._folder = run.folder
            self._run = wandb.init(
                project=run.project,
                id=run.run_id,
                name=run.folder.name,
                dir=str(run.folder),
                config=dict(run.params),
                notes=", ".join(f"{name} {value}" for name, value in run.tags.items()),
                mode=mode,
                resume="allow",
                reinit="create_new",
                settings=_settings(),
            )
        there = told_rounds(run.folder, run.run_id) if mode == "offline" else set()
        # A server drops what comes before the step that it goes on from.
        for number, values in run.history.items():
            if number >= self._run.starting_step and number not in there:
                self.write(number, values)

    def write(self, round_number: int, values: Numbers) -> None:
        # Without commit it keeps the round to itself until the next one.
        self._run.log(dict(values), step=round_number, commit=True)

    def summarize(self, figures: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        values = {**numbers(figures), **texts(figures)}
        self._run.summary.update({f"summary/{name}": value for name, value in values.items()})
        for path in files.values():
            self._run.save(path, base_path=self._folder, policy="now")

    def close(self, end: End) -> None:
        self._run.finish(exit_code=_EXIT_CODES[end])


def _settings() -> Settings:
    """What W&B would print, ask, wait for or collect, and is not to."""
    from wandb import Settings

    console: Literal["off"] = "off"
    return Settings(
        console=console,
        silent=True,
        disable_code=True,
        disable_git=True,
        symlink=False,
        init_timeout=_LONGEST_SECONDS / 2,
        finish_timeout=_LONGEST_SECONDS,
    )


def told_rounds(folder: Path, run_id: str) -> set[int]:
    """Rounds that W&B's files in a run folder hold: what a process that was killed has told."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    found = set()
    for file in (folder / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb"):
        for data in _records(file.read_bytes()):
            record = Record.FromString(data)
            # Rounds count from 1; an empty history is of no round.
            if record.HasField("history") and record.history.item:
                found.add(record.history.step.num)
    return found


def _records(content: bytes) -> Iterator[bytes]:
    """The records of W&B's file, as far as it is whole."""
    at, parts = _FILE_HEADER, b""
    while at + _PIECE_HEADER <= len(content):
        if _BLOCK - at % _BLOCK < _PIECE_HEADER:  # too little of the block is left for a piece
            at += _BLOCK - at % _BLOCK
            continue
        length = int.from_bytes(content[at + 4 : at + 6], "little")
        kind, start = content[at + 6], at + _PIECE_HEADER
        at = start + length
        if at > len(content) or not kind:
            return
        parts += content[start:at]
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
