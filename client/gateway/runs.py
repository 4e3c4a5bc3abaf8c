"""What runs are about, as the server has described them, and as phones are told."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from client.gateway.record import read_record, write_record
from client.host import run_folder
from common.errors import DamagedError, ProtocolError
from common.messages import DescribeRequest
from common.phones import phones_pb2 as pb
from common.words import one_line

__all__ = ["FINGERPRINT", "LARGEST_COUNT", "RunInfo", "Runs"]

logger = logging.getLogger("fedhead.gateway")

LARGEST_COUNT = 2**31 - 1
"""Of examples of one phone."""

FINGERPRINT = re.compile("[0-9a-f]{64}")
"""Of a backbone; the name of its folder."""

_ACTIVE_SECONDS = 900.0  # after the server's last message of a run
_MOST_ACTIVE = 8  # a phone names at most as many holdings
_KEPT_SECONDS = 30 * 86_400.0  # since the server's last message; also of what clients remember


@dataclass
class RunInfo:
    """A run.

    Attributes:
        request: what the server has said of it.
        counts: numbers of examples, train and test part, by client, as they were told last.
        asked: monotonic time of the server's last message about it; 0: not since the start.
        last_round: number of its last round; 0: none yet.
        odd: clients whose counts no phone can have.
        id: the description's.
    """

    request: DescribeRequest
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)
    asked: float = 0.0
    last_round: int = 0
    odd: set[int] = field(default_factory=set)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        said = json.dumps(asdict(self.request), sort_keys=True)
        self.id = hashlib.sha256(said.encode()).hexdigest()

    def allows(self, counts: tuple[int, int]) -> bool:
        """Whether a phone may have these numbers of examples, of the train and the test part.

        The server would refuse all phones of an answer that has others.
        """
        most = min(self.request.max_examples or LARGEST_COUNT, LARGEST_COUNT)
        return 0 <= counts[0] <= most and 0 <= counts[1] <= most

    def description(self, client: int, backbones: list[pb.Backbone]) -> pb.Description:
        """What a phone is told."""
        request = self.request
        return pb.Description(
            id=self.id,
            run=request.run_id,
            name=request.name,
            classes=request.classes,
            test_fraction=request.test_fraction,
            seed=request.seed % 2**64,
            max_examples=request.max_examples,
            private=request.private,
            fingerprint=request.fingerprint,
            client=client,
            backbones=backbones,
        )


class Runs:
    """All runs, kept in a folder.

    Args:
        folder: one file for each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: dict[str, RunInfo] = {}
        self._private: frozenset[str] = frozenset()
        for path in sorted(folder.glob("[!.]*")):
            try:
                words, _ = read_record(path)
                request = DescribeRequest(**words["request"] | {"classes": tuple(words["classes"])})
                counts = {int(c): (int(n), int(t)) for c, n, t in words["counts"]}
            except (DamagedError, OSError, KeyError, TypeError, ValueError) as exc:
                logger.warning("%s; its server must describe it again", exc)
                continue
            self._add(RunInfo(request, counts))

    def _add(self, run: RunInfo) -> RunInfo:
        self._runs[run.request.run_id] = run
        if run.request.private:
            self._private |= {run.id}
        return run

    def get(self, run_id: str) -> RunInfo:
        """A run that the server has described.

        Raises:
            ProtocolError: it has not.
        """
        if run_id not in self._runs:
            raise ProtocolError(f"run {run_id}: the server must describe it first")
        return self._runs[run_id]

    def describe(self, request: DescribeRequest) -> tuple[RunInfo, bool]:
        """Note what the server says of a run; return whether it is new.

        Raises:
            ProtocolError: its id is no plain name, or it does not name its backbone.
        """
        run_folder(self._folder, request.run_id)
        if not FINGERPRINT.fullmatch(request.fingerprint):
            raise ProtocolError("the server does not name the run's backbone to a gateway")
        known = self._runs.get(request.run_id)
        is_new = known is None or known.request != request
        if known is None or is_new:
            known = self._add(RunInfo(request))
        known.asked = time.monotonic()
        return known, is_new

    def kept(self, run: RunInfo) -> Callable[[], None]:
        """A function that writes what phones are held to now, for the time after a kill.

        It may be called in a thread, while the run goes on.
        """
        words = {
            "request": asdict(run.request) | {"classes": []},
            "classes": list(run.request.classes),
            "counts": [[client, *counts] for client, counts in run.counts.items()],
        }
        path = run_folder(self._folder, run.request.run_id)
        return partial(write_record, path, words, {})

    def forget_old(self, clients: Path) -> None:
        """Remove runs that the server has not asked about for a month, with their memories.

        Args:
            clients: the folder of what clients remember, by run.
        """
        for run_id in list(self._runs):
            path = run_folder(self._folder, run_id)
            if path.exists() and time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(run_folder(clients, run_id), ignore_errors=True)
                path.unlink()
                run = self._runs.pop(run_id)
                self._private -= {run.id}
                logger.info("run %s is forgotten: it is a month old", one_line(run.request.name))

    def private(self) -> frozenset[str]:
        """The descriptions of private runs."""
        return self._private

    def touch(self, run_id: str) -> None:
        """Note that the server has asked something of a run that it has described.

        Raises:
            OSError: its file is gone.
        """
        self._runs[run_id].asked = time.monotonic()
        os.utime(run_folder(self._folder, run_id))

    def active(self) -> Iterator[RunInfo]:
        """The runs that go on, the newest first."""
        since = time.monotonic() - _ACTIVE_SECONDS
        runs = [run for run in self._runs.values() if run.asked > since and run.asked]
        yield from sorted(runs, key=lambda run: -run.asked)[:_MOST_ACTIVE]
