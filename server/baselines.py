"""Baselines without federation: heads trained on all clients' features in one place."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from common.errors import RunError
from common.evaluation import evaluate
from common.messages import BaselineRequest, read_heads
from common.types import FeatureSet, Head
from server.round.algorithm import Run
from server.round.exchange import ask

__all__ = ["baselines"]

logger = logging.getLogger("fedhead")

_SECONDS = 3600.0


def baselines(run: Run, num_classes: int, test: FeatureSet) -> dict[str, float | None]:
    """Accuracy of the centralized and the ridge head; None if data cannot be in one place."""
    config = run.config
    if not (run.registry.simulated and config.baseline.epochs):
        return {"centralized_accuracy": None, "ridge_accuracy": None}
    training = replace(
        config.train.local(1),
        local_epochs=config.baseline.epochs,
        lr=config.baseline.lr or config.train.peak,
    )
    request = BaselineRequest(
        training=training,
        num_classes=num_classes,
        ridge_lambda=config.baseline.ridge_lambda,
        seed=config.seed,
        fingerprint=run.fingerprint,
    )
    node = min(client.node for client in run.registry.clients.values())
    answers, errors = ask(
        run.grid,
        "query.baselines",
        lambda _: request.write(),
        [node],
        _SECONDS,
    )
    if node not in answers:
        raise RunError(
            f"the baselines could not be computed: {errors.get(node, 'no answer')}; "
            "--set baseline.epochs=0 leaves them out"
        )
    return {
        f"{name}_accuracy": _accuracy(name, head, test)
        for name, head in read_heads(answers[node]).items()
    }


def _accuracy(name: str, head: Head, test: FeatureSet) -> float | None:
    """A head's accuracy; None if the head has diverged, because then it is no baseline."""
    evaluation = evaluate(head, test)
    if math.isfinite(evaluation.loss):
        return evaluation.accuracy
    logger.warning("no %s baseline: its head has diverged (baseline.lr, train.lr)", name)
    return None
