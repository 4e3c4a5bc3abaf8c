"""Baselines without federation: the best heads of all clients' features in one place."""

from __future__ import annotations

from common.errors import RunError
from common.evaluation import evaluate
from common.messages import BaselineRequest, read_heads
from common.types import FeatureSet
from server.round.algorithm import Run
from server.round.exchange import ask

__all__ = ["baselines"]

_SECONDS = 3600.0


def baselines(run: Run, num_classes: int, test: FeatureSet) -> dict[str, float | None]:
    """Accuracy of the ridge and the logistic head, and as "centralized" of one of them.

    None if data cannot be in one place, and in a private run whose noise is to protect them. That
    one did better on training examples that were held out, see client.best_linear.
    """
    config = run.config
    protects = run.guard is not None and not run.guard.simulated
    if protects or not (run.registry.simulated and config.baseline.enabled):
        return {f"{name}_accuracy": None for name in ("centralized", "ridge", "logistic")}
    lam = config.baseline.ridge_lambda
    request = BaselineRequest(
        num_classes=num_classes,
        ridge_lambda=0.0 if lam == "auto" else lam,
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
            "--set baseline.enabled=false leaves them out"
        )
    return {
        f"{name}_accuracy": evaluate(head, test).accuracy
        for name, head in read_heads(answers[node]).items()
    }
