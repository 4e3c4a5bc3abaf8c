"""TensorBoard events in the run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from server.record.trackers.tracker import End, Numbers, Tracked

__all__ = ["TensorBoard"]


class TensorBoard:
    """Events of the rounds from the last finished one on; what was told of later ones is void.

    tensorboardX's own SummaryWriter writes in a thread, which ends where the disk is full, and
    then the run waits for it for ever.

    Args:
        run: tells the folder and the rounds so far.
    """

    def __init__(self, run: Tracked) -> None:
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        last = max(run.history, default=0)
        # TensorBoard reads files in the order of their names, and a clock may have been set back.
        self._file = EventsWriter(str(folder / f"events-{last:06d}"))
        # A process that was killed may not have told of its last round: it is told again.
        first = max(last, 1)
        self._file.write_event(Event(step=first, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)  # earlier events from this step on are void
        self._file.write_event(Event(step=first, session_log=start))
        if last:
            self.write(last, run.history[last])

    def write(self, round_number: int, values: Numbers) -> None:
        for name, value in values.items():
            summary = scalar(name, value)
            event = Event(wall_time=time.time(), step=round_number, summary=summary)
            self._file.write_event(event)
        self._file.flush()

    def summarize(self, figures: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """It shows curves alone."""

    def close(self, end: End) -> None:
        self._file.close()
