"""The round loop, the only one: train, evaluate, write metrics, checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from common.evaluation import Evaluation, evaluate
from common.types import FeatureSet, Head
from server.checkpoint import Checkpoint, save_checkpoint
from server.engine import Engine, RoundResult, Task
from server.runfolder import MetricsLog, RunFolder

__all__ = ["run_rounds"]

logger = logging.getLogger("fedhead")


def _metrics(result: RoundResult, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    return {
        "accuracy": evaluation.accuracy,
        "loss": evaluation.loss,
        "class-accuracy": evaluation.class_accuracy,
        "confusion": evaluation.confusion.tolist(),
        "train-loss-before": result.loss_before,
        "train-loss-after": result.loss_after,
        "cohort": result.cohort,
        "accepted": result.accepted,
        "valid": result.valid,
        "rejected": result.rejected,
        "failed": result.failed,
        "dropped": result.dropped,
        "late": result.late,
        "simulated-seconds": result.simulated_seconds or 0.0,
        "num-examples": result.num_examples,
        "uplink-bytes": result.uplink_bytes,
        "downlink-bytes": result.downlink_bytes,
        "train-seconds": round(result.train_seconds, 4),
        "seconds": round(seconds, 4),
    }


_COUNTED = (
    "valid", "rejected", "failed", "dropped", "late", "accepted", "uplink-bytes",
    "downlink-bytes", "simulated-seconds", "train-seconds", "seconds",
)  # fmt: skip


def run_rounds(
    task: Task,
    engine: Engine,
    head: Head,
    test: FeatureSet,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    *,
    is_cell: bool = False,
) -> tuple[Head, int, Mapping[str, float]]:
    """Run from the round after the checkpoint, or from the first, to the last.

    Args:
        task: grid, registry and configuration.
        engine: trains.
        head: the first head; a checkpoint's takes its place.
        test: the server's test set.
        folder: gets metrics and checkpoints.
        checkpoint: where to go on from.
        is_cell: a cell of a comparison: metrics.jsonl alone.

    Returns:
        The last head, the number of finished rounds, and the totals of the run.
    """
    config = task.config
    done = checkpoint.round_number if checkpoint else 0
    head = checkpoint.head if checkpoint else head
    counters = dict.fromkeys(_COUNTED, 0.0) | dict(checkpoint.counters if checkpoint else {})
    engine.start(head, checkpoint)
    with MetricsLog(folder.path, done, events=not is_cell) as log:
        for round_number in range(done + 1, config.train.rounds + 1):
            started = time.perf_counter()
            task.registry.refresh()
            step = engine.step(round_number, head)
            if step is None:
                logger.info("every client has been asked: done after %d rounds", done)
                break
            head, result = step
            evaluation = evaluate(head, test)
            metrics = _metrics(result, evaluation, time.perf_counter() - started)
            for name in _COUNTED:
                counters[name] += metrics[name]
            log.write(round_number, metrics)
            if not is_cell:
                save_checkpoint(
                    folder.checkpoints,
                    round_number=round_number,
                    head=head,
                    state=engine.state,
                    counters=counters,
                    keep=config.round.keep_checkpoints,
                )
            done = round_number
            _report(round_number, config.train.rounds, result, evaluation)
    return head, done, counters


def _report(number: int, rounds: int, result: RoundResult, evaluation: Evaluation) -> None:
    for reason in result.reasons:
        logger.warning("round %d: %s", number, reason)
    loss = "-" if result.loss_before is None else f"{result.loss_before:.3f}"
    logger.info(
        "round %*d/%d  accuracy %.4f  loss %.4f  train %s  clients %d/%d  up %.2f MB",
        len(str(rounds)), number, rounds, evaluation.accuracy, evaluation.loss, loss,
        result.valid, result.cohort, result.uplink_bytes / 1e6,
    )  # fmt: skip
