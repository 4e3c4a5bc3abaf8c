"""The round loop, the only one: train, evaluate, write metrics, checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from common.evaluation import Evaluation
from common.progress import stage
from common.types import Head
from common.words import byte_text
from server.record.checkpoint import Checkpoint, save_checkpoint
from server.record.events import event
from server.record.replaced import forget_replaced
from server.record.runfolder import MetricsLog, RunFolder, write_confusion
from server.record.untold import untold_figures
from server.round.algorithm import Algorithm, RoundResult, Run, quorum
from server.round.judge import Judge
from server.round.registry import Registry
from server.round.result import DROPOUTS

__all__ = ["run_rounds"]

logger = logging.getLogger("fedhead")


def _metrics(
    result: RoundResult, evaluation: Evaluation, seconds: float, *, simulated: bool
) -> dict[str, Any]:
    own: dict[str, Any] = {"strategy": dict(result.metrics)} if result.metrics else {}
    # Of simulated clients these are settings; in a private run they would tell of single ones.
    if not (simulated or result.privacy.active):
        own["dropouts"] = {why: n for why in DROPOUTS if (n := result.dropouts[why])}
        own["phase-seconds"] = {name: list(both) for name, both in result.phase_seconds.items()}
    figures = {
        "accuracy": evaluation.accuracy,
        "loss": evaluation.loss,
        "balanced-accuracy": evaluation.balanced_accuracy,
        "test-examples": evaluation.num_examples,
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
        **own,
    }
    return figures | dict.fromkeys(untold_figures(result.privacy))


_COUNTED = (
    "valid", "rejected", "failed", "dropped", "late", "accepted", "uplink-bytes",
    "downlink-bytes", "simulated-seconds", "train-seconds", "seconds",
)  # fmt: skip

# Metrics of strategies that the run's summary tells as they were last.
_CHOSEN = (
    "ridge-lambda", "ridge-lambda-edge", "ridge-freedom", "ridge-leverage", "lda-shrinkage",
    "head-temperature", "precondition-lambda",
)  # fmt: skip


def run_rounds(
    run: Run,
    algorithm: Algorithm,
    head: Head,
    judge: Judge,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    *,
    is_cell: bool = False,
) -> tuple[Head, int, Mapping[str, float]]:
    """Run all rounds from the first, or from the one after the checkpoint, to the last.

    Args:
        run: grid, registry and configuration.
        algorithm: trains the head.
        head: the first head; replaced by the checkpoint's, if there is one.
        judge: evaluates heads.
        folder: the run folder for metrics and checkpoints.
        checkpoint: the checkpoint to continue from.
        is_cell: whether this is a cell of a comparison, which writes only metrics.jsonl and
            confusion.json.

    Returns:
        The last head, the number of finished rounds, and the totals of the run.
    """
    rounds = run.config.train.rounds
    done = checkpoint.round_number if checkpoint else 0
    head = checkpoint.head if checkpoint else head
    counted = [name for name in _COUNTED if name not in untold_figures(run.config.privacy)]
    counters = dict.fromkeys(counted, 0.0) | dict(checkpoint.counters if checkpoint else {})
    algorithm.start(head, checkpoint)
    # A cell of a comparison begins again when it is cut off.
    with MetricsLog(folder.path, done, durable=not is_cell) as log:
        for number in range(done + 1, rounds + 1):
            started = time.perf_counter()
            with stage(f"round {number}/{rounds}"):
                step = _step(run, algorithm, number, head, judge)
            if step is None:
                break
            head, result = step
            evaluation = judge.evaluate(head)
            metrics = _metrics(
                result, evaluation, time.perf_counter() - started, simulated=run.registry.simulated
            )
            metrics["learning-rate"] = run.config.train.rate(number)
            if run.guard:
                metrics["epsilon-spent"] = run.guard.spent
            for name in counted:
                counters[name] += metrics[name]
            counters |= {name: result.metrics[name] for name in _CHOSEN if name in result.metrics}
            if (opened := judge.backdoor(head)) is not None:
                metrics["backdoor-success"] = counters["backdoor-success"] = opened
            log.write(number, metrics)
            if not is_cell:
                _keep(run, folder, number, head, algorithm.state, counters)
            if not run.registry.simulated:
                run.registry.accounts.write(folder.devices)
            done = number
            _report(number, rounds, result, evaluation)
            if run.registry.progress.finished({"round": number, **metrics}):
                logger.info("stopped by its listener: done after %d of %d rounds", number, rounds)
                break
    if run.guard:
        run.guard.end(done)
    write_confusion(folder.confusion, judge.evaluate(head).confusion)
    return head, done, counters


def _step(
    run: Run, algorithm: Algorithm, number: int, head: Head, judge: Judge
) -> tuple[Head, RoundResult] | None:
    """One round's training: check who is there, train, and count late answers."""
    _gather(run, number)
    before = judge.seconds
    step = algorithm.step(number, head, judge.fault)
    if step is not None:
        _, result = step
        result.train_seconds -= judge.seconds - before  # the step evaluates a new head, too
        _count_late(run.registry, result)
    return step


def _keep(
    run: Run, folder: RunFolder, number: int, head: Head, state: Any, counters: Mapping[str, float]
) -> None:
    """Write a finished round to the disk; then a run that this one replaces can be removed."""
    save_checkpoint(
        folder.checkpoints,
        round_number=number,
        head=head,
        state=state,
        counters=counters,
        keep=run.config.round.keep_checkpoints,
    )
    forget_replaced(folder.path)


def _gather(run: Run, round_number: int) -> None:
    """Find the clients that are there; wait for as many real devices as the round needs.

    If they do not join by the deadline, the round is lost.
    """
    config, registry = run.config, run.registry
    registry.refresh()
    asked = config.train.asked(registry.population)
    wanted = min(asked or len(registry.clients), len(registry.known))
    if config.privacy.hides_cohorts or (config.privacy.active and not asked):
        wanted = registry.population
    needed = quorum(config, wanted)
    registry.progress.update(round_number=round_number, rounds=config.train.rounds, quorum=needed)
    if not registry.simulated:
        registry.gather(needed, config.round.deadline_seconds)


def _count_late(registry: Registry, result: RoundResult) -> None:
    """Count late answers to earlier rounds; their content is not read."""
    registry.stragglers.poll()
    for reply in registry.stragglers.take():
        result.answered_late(reply.clients)
        if result.privacy.hides_cohorts:
            continue
        if not registry.simulated:
            registry.accounts.see(reply.clients)
        for client in reply.clients:
            name = registry.name(client)
            event(
                "late", f"round {reply.round_number}: {name}: answered after it closed",
                level=logging.WARNING, round=reply.round_number, client=client, name=name,
            )  # fmt: skip


def _report(number: int, rounds: int, result: RoundResult, evaluation: Evaluation) -> None:
    privacy, words = result.privacy, f"round {number:{len(str(rounds))}}/{rounds}"
    words += f"  accuracy {evaluation.accuracy:.4f}  loss {evaluation.loss:.4f}"
    if not privacy.active:
        loss = "-" if result.loss_before is None else f"{result.loss_before:.3f}"
        words += f"  train loss {loss} (before)"
    counts = {}
    if not privacy.hides_cohorts:
        words += f"  clients {result.valid}/{result.cohort}  up {byte_text(result.uplink_bytes)}"
        names = ("cohort", "valid", "rejected", "failed", "late")
        counts = {name: getattr(result, name) for name in names}
    event(
        "round", words,
        round=number, accepted=result.accepted, accuracy=evaluation.accuracy, **counts,
    )  # fmt: skip
