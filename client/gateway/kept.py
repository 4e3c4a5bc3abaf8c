"""A round on the disk: its order, the verdicts on its tasks with their results, and its end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from client.gateway.record import read_record, write_record
from client.gateway.round import Judged, Round
from common.errors import DamagedError

__all__ = ["ORDER", "is_closed", "keep_closed", "keep_order", "recall"]

logger = logging.getLogger("fedhead.gateway")

ORDER = "order"
"""The file of the order; a task's has its client's number."""

_CLOSED = "closed"


def keep_order(folder: Path, round_: Round) -> None:
    """Write what is asked, before any phone is asked.

    Raises:
        OSError: the disk is full, for example.
    """
    order, times = round_.order, round_.times
    folder.mkdir(parents=True, exist_ok=True)
    words = {
        "kind": order.kind,
        "run": order.run_id,
        "round": order.round_number,
        "opened": times.opened,
        "seconds": times.seconds,
        "enough": round_.enough,
        "counts": [[client, state.count] for client, state in round_.states.items()],
    }
    write_record(folder / ORDER, words, {"content": order.write()})


def keep_closed(folder: Path, accepted: Sequence[int], missed: str) -> None:
    """Write which results are in the answer, before it is given; the first time counts.

    Raises:
        OSError: the disk is full, for example.
    """
    if not is_closed(folder):
        write_record(folder / _CLOSED, {"accepted": list(accepted), "missed": missed}, {})


def is_closed(folder: Path) -> bool:
    """Whether the answer has been made once."""
    return (folder / _CLOSED).exists()


def recall(folder: Path, round_: Round) -> None:
    """Give a round the verdicts of an earlier process."""
    counted: list[int] | None = None
    try:
        words, _ = read_record(folder / _CLOSED)
        counted = [int(client) for client in words["accepted"]]
        round_.missed = "over-selected" if words["missed"] == "over-selected" else "silent"
        round_.closed.set()
    except FileNotFoundError:
        pass
    except (DamagedError, OSError, KeyError, ValueError) as exc:
        logger.warning("%s; the round goes on", exc)
    for client, state in round_.states.items():
        try:
            words, _ = read_record(folder / str(client))
            judged = Judged(words["what"], str(words["reason"]))
        except FileNotFoundError:
            continue
        except (DamagedError, OSError, KeyError) as exc:
            logger.warning("%s; the phone is asked again", exc)
            continue
        if judged.what != "accepted" or counted is None or client in counted:
            round_.recall(state, judged)
    if round_.figures and counted is not None:
        missed = sum(state.judged is None for state in round_.states.values())
        round_.figures.counts[round_.missed] = missed
