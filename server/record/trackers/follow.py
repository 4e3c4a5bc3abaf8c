"""Tells a run's trackers of it; one that fails is told no more, and the run goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from typing import Any

from common.config import Config
from common.errors import FedheadError, RunError
from common.keys import flat
from server.record.checkpoint import Checkpoint
from server.record.progress import Progress
from server.record.runfolder import METRICS, SUMMARY, RunFolder, read_run_json, resume_command
from server.record.trackers.registry import KINDS
from server.record.trackers.tracker import End, Tracked, Tracker, numbers

__all__ = ["tracked"]

logger = logging.getLogger("fedhead")

_FILES = ("config.toml", "summary.json", "model.json")


@contextmanager
def tracked(
    folder: RunFolder, config: Config, checkpoint: Checkpoint | None, progress: Progress
) -> Iterator[None]:
    """Tell the trackers that [tracking] names of each round meanwhile, and of the end.

    Args:
        folder: of the run, tied to its backbone.
        config: of the run.
        checkpoint: of its last finished round; metrics.jsonl has all up to it.
        progress: tells of each round once it is on the disk, so that none is told that is lost.

    Raises:
        RunError: a run that begins has a tracker that cannot be reached.
    """
    rounds = checkpoint.round_number if checkpoint else 0
    run = _facts(folder, config, rounds)
    trackers = _Trackers(run, begins=not rounds)
    end: End = "failed"
    try:
        with progress.told(trackers.write):
            yield
        end = "finished"
    except KeyboardInterrupt:
        end = "interrupted"
        raise
    finally:
        trackers.close(end, SUMMARY.read(folder.summary) if folder.summary.exists() else {})


class _Trackers:
    """Those of a run that have not failed.

    Args:
        run: what they are told first.
        begins: whether one that cannot be reached ends the run, of which nothing is lost yet.
    """

    def __init__(self, run: Tracked, *, begins: bool) -> None:
        self._run = run
        self._open: dict[str, Tracker] = {}
        for name in run.settings.trackers:
            try:
                self._open[name] = KINDS[name].start(run)
            except Exception as exc:  # whatever a library raises
                if begins:
                    self.close("failed", {})
                    raise RunError(
                        f"tracking.trackers={name} cannot be reached: {_line(exc)}; without it: "
                        "--set tracking.trackers=[]"
                    ) from exc
                self._lost(name, exc)

    def write(self, line: Mapping[str, Any]) -> None:
        """A round, as metrics.jsonl has it."""
        values = {name: value for name, value in line.items() if name != "round"}
        self._each(lambda tracker: tracker.write(line["round"], numbers(values)))

    def close(self, end: End, figures: Mapping[str, Any]) -> None:
        """The run ends."""
        if figures:
            paths = {name: self._run.folder / name for name in _FILES}
            files = {name: path for name, path in paths.items() if path.exists()}
            told = {**figures, **_in_words(figures)}
            self._each(lambda tracker: tracker.summarize(told, files))
        self._each(lambda tracker: tracker.close(end))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                tell(tracker)
            except Exception as exc:  # whatever a library raises
                del self._open[name]
                self._lost(name, exc)

    def _lost(self, name: str, exc: Exception) -> None:
        logger.warning(
            "%s is told no more of this run: %s; metrics.jsonl has every round; once that is "
            "mended, this tells the rest: %s", name, _line(exc), resume_command(self._run.folder),
        )  # fmt: skip


def _in_words(figures: Mapping[str, Any]) -> dict[str, str]:
    """Text that stands within a section of summary.json, which trackers do not look into."""
    privacy = figures.get("privacy")
    return {"privacy_sentence": privacy["sentence"]} if privacy else {}


def _line(exc: Exception) -> str:
    if isinstance(exc, FedheadError):  # a line of ours
        return str(exc)
    words = (str(exc).strip().splitlines() or [""])[0]
    return f"{type(exc).__name__}: {words}"[:300]


def _facts(folder: RunFolder, config: Config, rounds: int) -> Tracked:
    lines = METRICS.read(folder.path / "metrics.jsonl") if rounds else iter(())
    history = {}
    for line in islice(lines, rounds):
        if isinstance(line, dict):  # the run has found them whole
            number = line.pop("round")
            history[number] = numbers(line)
    return Tracked(
        folder=folder.path,
        settings=config.tracking,
        project=config.tracking.project or config.name,
        run_id=folder.run_id,
        params=flat(config.model_dump(by_alias=True, exclude={"out", "tracking"})),
        tags={
            "run-id": folder.run_id,
            "fingerprint": str(read_run_json(folder.path)["fingerprint"]),
            "version": version("fedhead"),
        },
        history=history,
    )
