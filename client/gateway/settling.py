"""Results of tasks: they are checked, kept on the disk and counted, each once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from client.gateway.figures import Figures
from client.gateway.judge import LostError, RefusedError
from client.gateway.orders import Result
from client.gateway.record import write_record
from client.gateway.round import LATE, Judged, Round, State
from client.gateway.uploads import Uploads
from common.phones import phones_pb2 as pb
from common.words import one_line

__all__ = ["Heavy", "Settling"]

logger = logging.getLogger("fedhead.gateway")

Heavy = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function that computes, in a thread."""

_LONGEST_REASON = 200
_OUTCOMES = {pb.Outcome.DECLINED: "declined", pb.Outcome.FAILED: "failed"}


class _ClosedError(Exception):
    """A round has closed."""


class Settling:
    """Settles tasks.

    Args:
        folder: of all rounds.
        figures: the counters.
        uploads: what arrives in parts.
        heavy: see ``Heavy``.
    """

    def __init__(self, folder: Path, figures: Figures, uploads: Uploads, heavy: Heavy) -> None:
        self._folder, self._figures, self._uploads = folder, figures, uploads
        self._heavy = heavy

    async def settle(self, round_: Round, state: State, submission: pb.Submission) -> Judged:
        """Judge a result; asked again, the answer is the same.

        Raises:
            WrongOffsetError: an array has not arrived.
            DamagedUploadError: an array was damaged on its way; it was removed.
            OSError: it cannot be kept.
        """
        async with state.lock:
            if state.judged is not None:
                self._figures.judged(state.client, "duplicate", "", round_.figures)
                return state.judged
            try:
                judged = await self._judged(round_, state, submission)
            except OSError:
                if not round_.closed.is_set():
                    raise
            if round_.closed.is_set():
                (self._folder / round_.id / str(state.client)).unlink(missing_ok=True)
                judged = LATE
            round_.judge(state, judged)
            if judged.what == "accepted":
                round_.spent(state, submission)
            round_.look()
        await asyncio.to_thread(self._uploads.drop, state.id)
        return judged

    async def _judged(self, round_: Round, state: State, submission: pb.Submission) -> Judged:
        if round_.closed.is_set():
            return LATE
        words: dict[str, object] = {}
        parts: dict[str, bytes] = {}
        if kind := _OUTCOMES.get(submission.outcome):
            judged = Judged(cast(Any, kind), one_line(submission.reason, _LONGEST_REASON))
        else:
            try:
                result = await self._heavy(partial(self._result, round_, state, submission))
                judged = Judged("accepted")
                words, parts = dict(result.words), dict(result.parts)
            except _ClosedError:
                return LATE
            except RefusedError as exc:
                judged = Judged("refused", one_line(str(exc)))
            except LostError as exc:
                logger.warning("%s", exc)
                judged = Judged("failed", "the gateway has lost the client's memory")
        words |= {"what": judged.what, "reason": judged.reason}
        path = self._folder / round_.id / str(state.client)
        if not round_.closed.is_set():
            await asyncio.to_thread(write_record, path, words, parts)
        return judged

    def _result(self, round_: Round, state: State, submission: pb.Submission) -> Result:
        """The checked result. Uploads are read here, where few are at work: they may be large.

        Raises:
            _ClosedError: the round has closed while the result waited for its turn. The server
                waits for the answer, which must not wait for checks that have no use.
        """
        if round_.closed.is_set():
            raise _ClosedError
        arrays = {
            array.field: self._uploads.read(state.id, array.sha256) if array.sha256 else array.data
            for array in submission.arrays
        }
        return round_.order.judged(state.client, state.count, submission, arrays)
