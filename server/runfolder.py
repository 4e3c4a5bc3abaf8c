"""A run's folder: configuration, metrics, checkpoints, models."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX import SummaryWriter

from common.config import Config
from common.errors import RunError
from common.files import write_atomic

__all__ = ["MetricsLog", "RunFolder", "free_folder", "read_run_json"]


def free_folder(config: Config) -> Path:
    """``out``, or the first of runs/NAME, runs/NAME-2, ... that does not exist."""
    if config.out:
        return Path(config.out).expanduser().resolve()
    base = Path("runs").resolve() / config.name
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


class RunFolder:
    """Paths and small files of one run.

    Args:
        path: the folder; made when missing.
        config: what the run does; an existing folder must hold the same.

    Raises:
        RunError: the folder holds a run of another configuration, or something else.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.checkpoints = path / "checkpoint"
        self.model = path / "model.pt"
        self.summary = path / "summary.json"
        self.clients = path / "clients.json"
        self.devices = path / "devices.csv"
        self.events = path / "events.jsonl"
        text = config.model_copy(update={"out": str(path)}).to_toml()
        file = path / "config.toml"
        if file.exists():
            if file.read_text() != text:
                raise RunError(f"{path} holds a run of another configuration, choose another out")
        elif path.exists() and any(path.iterdir()):
            raise RunError(f"{path} is not empty and holds no run, choose another out")
        else:
            write_atomic(file, text.encode())
        self.run_id = self._run_id()

    def _run_id(self) -> str:
        file = self.path / "run.json"
        if not file.exists():
            write_atomic(file, json.dumps({"run-id": uuid.uuid4().hex}).encode())
        return str(read_run_json(self.path)["run-id"])

    def bind(self, fingerprint: str, classes: Sequence[str]) -> None:
        """Tie the run to its backbone and classes, or check that they are still the same.

        Raises:
            RunError: data, weights or packages have changed since the run began.
        """
        known = read_run_json(self.path)
        now = {"run-id": self.run_id, "fingerprint": fingerprint, "classes": list(classes)}
        if "fingerprint" not in known:
            self.write_json(self.path / "run.json", now)
        elif known != now:
            raise RunError(
                f"{self.path}: data, weights or packages have changed since the run began, its "
                "head is of another backbone or other classes"
            )

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        """A small JSON file, whole or not at all."""
        write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def read_run_json(path: Path) -> dict[str, Any]:
    """What ties a run folder to its run.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads((path / "run.json").read_text())
        content["run-id"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise RunError(f"{path / 'run.json'} is missing or damaged ({exc})") from exc
    return content


class MetricsLog:
    """metrics.jsonl and, where wanted, TensorBoard events; a line a round.

    Args:
        folder: the run folder.
        last_round: what came after it, from a run that was cut off, is dropped.
        events: whether TensorBoard gets them too.
    """

    def __init__(self, folder: Path, last_round: int, *, events: bool = True) -> None:
        path = folder / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["round"] <= last_round:
                        kept.append(line)
                except (ValueError, KeyError):
                    break  # the line that was being written when the run was cut off
        write_atomic(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._events = None
        if events:
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=last_round + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._events:
            self._events.close()

    def write(self, round_number: int, values: Mapping[str, Any]) -> None:
        """One round's values; numbers also go to TensorBoard."""
        self._file.write(json.dumps({"round": round_number, **values}) + "\n")
        self._file.flush()
        if not self._events:
            return
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._events.add_scalar(name, value, round_number)
        self._events.flush()
