"""A run's folder: configuration, metrics, checkpoints, models."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from common.config import Config, load_config
from common.errors import DamagedError, RunError
from common.files import is_empty, remove_temporary, write_atomic
from common.readback import ArraysFile, JsonFile, JsonLines, checksum, own_check
from common.types import IntArray
from server.record.replaced import recover

__all__ = [
    "CLIENTS",
    "CONFUSION",
    "HEAD",
    "METRICS",
    "SUMMARY",
    "MetricsLog",
    "RunFolder",
    "free_folder",
    "intact_rounds",
    "read_config",
    "read_run_json",
    "resume_command",
    "write_confusion",
]

SUMMARY = JsonFile("summary.json of a run", indent=1)
CLIENTS = JsonFile("clients.json of a run")
CONFUSION = JsonFile("confusion.json of a run")
METRICS = JsonLines("metrics.jsonl of a run")
HEAD = ArraysFile("head.safetensors of a run")
_IDENTITY = JsonFile("run.json of a run", indent=1)

# What the disk says, and not the network, whose errors are of the same type.
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
}  # fmt: skip


def free_folder(config: Config, *, numbered: bool = True) -> Path:
    """``out``, or the first of runs/NAME, runs/NAME-2, ... that does not exist.

    Args:
        config: of the run.
        numbered: False: runs/NAME, whether or not it exists.
    """
    given = Path(config.out).expanduser() if config.out else Path("runs") / config.name
    path, number = given.resolve(), 2
    recover(path)
    while numbered and not config.out and path.exists():
        path, number = path.with_name(f"{config.name}-{number}"), number + 1
        recover(path)
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
        self.head = path / "head.safetensors"
        self.summary = path / "summary.json"
        self.clients = path / "clients.json"
        self.confusion = path / "confusion.json"
        self.devices = path / "devices.csv"
        self.events = path / "events.jsonl"
        # A run folder may be moved: its configuration does not say where it lies.
        content = config.model_copy(update={"out": ""}).to_toml().encode()
        file = path / "config.toml"
        if file.exists():
            if file.read_bytes() != content:
                raise RunError(f"{path} holds a run of another configuration, choose another out")
        elif not is_empty(path) and not (path / "run.json").exists():
            raise RunError(f"{path} is not empty and holds no run, choose another out")
        self.run_id = self._run_id()  # its file comes first: it says that this folder is a run's
        if not file.exists():
            write_atomic(file, content)

    def _run_id(self) -> str:
        file = self.path / "run.json"
        if not file.exists():
            _IDENTITY.write(file, {"run-id": uuid.uuid4().hex})
        return str(read_run_json(self.path)["run-id"])

    def reopen(self) -> None:
        """The run goes on: what a former end of it has left no longer holds."""
        for file in (self.summary, self.head, self.confusion):
            file.unlink(missing_ok=True)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let no other process work on the run meanwhile, and tidy up after one that was killed.

        Raises:
            RunError: one does (a process that died does not), or the disk fails; what finished
                rounds left stays.
        """
        try:
            with (self.path / ".lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for folder in (self.path, self.checkpoints):
                    remove_temporary(folder)
                yield
        except BlockingIOError as exc:
            raise RunError(f"{self.path}: another process is at work on this run") from exc
        except OSError as exc:
            if exc.errno not in _DISK:
                raise
            raise RunError(
                f"{exc.filename or self.path}: {exc.strerror}; finished rounds are safe: mend "
                f"that, then {resume_command(self.path)}"
            ) from exc

    def bind(self, fingerprint: str, classes: Sequence[str], data: str) -> None:
        """Tie the run to its backbone and data, or check that they are still the same.

        Args:
            fingerprint: of the backbone.
            classes: names of the classes.
            data: the data set's ``content_key``.

        Raises:
            RunError: data, weights or packages have changed since the run began.
        """
        if not self._same({"fingerprint": fingerprint, "classes": list(classes), "data": data}):
            raise RunError(
                f"{self.path}: data, weights or packages have changed since the run began: other "
                "images, other classes or another backbone"
            )

    def bind_clients(self, *, simulated: bool) -> None:
        """Tie the run to simulated clients or to real ones.

        Raises:
            RunError: it began with the others.
        """
        if not self._same({"simulated": simulated}):
            began = "real devices" if simulated else "simulated clients"
            raise RunError(f"{self.path} began with {began}: {resume_command(self.path)}")

    def learning_rate(self) -> float | None:
        """The learning rate that the run has chosen; None: it has not yet."""
        known = read_run_json(self.path).get("learning-rate")
        return None if known is None else float(known)

    def bind_learning_rate(self, rate: float) -> None:
        """Keep what the run has chosen, for when it goes on.

        Raises:
            RunError: it has another one.
        """
        if not self._same({"learning-rate": rate}):
            raise RunError(f"{self.path} has a learning rate already, other than {rate:g}")

    def privacy(self) -> dict[str, float] | None:
        """What the run has decided on its privacy; None: it has not yet, or is not private."""
        return read_run_json(self.path).get("privacy")

    def bind_privacy(self, decided: Mapping[str, float]) -> None:
        """Keep it for when the run goes on: its noise was chosen for all rounds together."""
        if not self._same({"privacy": dict(decided)}):
            raise RunError(f"{self.path} has decided on its privacy already")

    def _same(self, facts: Mapping[str, Any]) -> bool:
        """Whether what is known of the run agrees; what is not yet known is from now on."""
        known = read_run_json(self.path)
        now = {**known, **facts}
        if now != known and not known.keys() & facts.keys():
            _IDENTITY.write(self.path / "run.json", now)
            return True
        return now == known


@own_check("config.toml of a run")
def read_config(path: Path) -> Config:
    """The configuration in a run folder, as it was written there.

    Raises:
        ConfigError: the file is missing or not a configuration.
        DamagedError: the file was changed since the run began.
    """
    file = path / "config.toml"
    if file.exists():  # before its keys are looked at: a damaged one is nobody's typing error
        text, mark, stated = file.read_bytes().rpartition(b"# checksum: ")
        if not mark or stated != checksum(text) + b"\n":
            reason = "it was changed since the run began, and a run keeps its configuration"
            raise DamagedError(str(file), reason)
    return load_config(file)


def read_run_json(path: Path) -> dict[str, Any]:
    """What ties a run folder to its run.

    Raises:
        RunError: the file is missing.
        DamagedError: it has changed since it was written.
    """
    try:
        return _IDENTITY.read(path / "run.json")
    except OSError as exc:
        raise RunError(f"{path / 'run.json'} is missing ({exc.strerror})") from exc


def resume_command(path: Path) -> str:
    """What goes on with a run, where it began; the deployment's folder only its owner knows."""
    devices = read_run_json(path).get("simulated") is False
    return f"fedhead resume {shlex.quote(str(path))}{' --deployment DEPLOYMENT' if devices else ''}"


def intact_rounds(folder: Path) -> tuple[int, str]:
    """How many rounds metrics.jsonl holds, from the first on without a gap.

    Returns:
        That number, and why there are no more.
    """
    path, intact = folder / "metrics.jsonl", 0
    if not path.exists():
        return 0, f"{path} is missing"
    for line in METRICS.read(path):
        if isinstance(line, DamagedError):
            return intact, str(line)
        if line["round"] != intact + 1:
            return intact, f"{path}, line {intact + 1}: round {line['round']}"
        intact += 1
    return intact, f"{path} ends after round {intact}"


def write_confusion(path: Path, counts: IntArray) -> None:
    """Write a confusion matrix as lists of its entries that are not 0: of 1,000 classes few are.

    Args:
        path: the file.
        counts: int64 (K, K), rows are true classes, columns predictions.
    """
    true, predicted = np.nonzero(counts)
    content = {"true": true.tolist(), "predicted": predicted.tolist()}
    CONFUSION.write(path, {**content, "count": counts[true, predicted].tolist()})


class MetricsLog:
    """metrics.jsonl, a line a round.

    Args:
        folder: the run folder.
        last_round: what came after it, from a run that was cut off, is dropped; what came before
            is intact, see ``intact_rounds``.
        durable: whether a line must survive a loss of power.
    """

    def __init__(self, folder: Path, last_round: int, *, durable: bool = True) -> None:
        path = folder / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        write_atomic(path, b"".join(line + b"\n" for line in lines[:last_round]))
        self._file, self._durable = path.open("a", encoding="utf-8"), durable

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, round_number: int, values: Mapping[str, Any]) -> None:
        """One round's values, down to the disk."""
        self._file.write(METRICS.line({"round": round_number, **values}) + "\n")
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())
