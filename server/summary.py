"""summary.json: the results of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from common.backbone.frozen import FrozenBackbone
from common.evaluation import Evaluation
from common.experiment import malicious_clients
from common.machine import versions
from common.messages import payload_bytes, write_head
from common.types import Head
from server.export.card import Calibration
from server.export.runtime_cards import ExportReport
from server.round.algorithm import Run
from server.round.client_figures import ClientFigures
from server.round.learning_rate import takes_steps

__all__ = ["Outcome", "of_export", "summarize"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of training.

    Attributes:
        head: the last head.
        evaluation: of the last head, on the server's test set.
        rounds: number of finished rounds.
        counters: totals over all rounds.
        figures: figures of the clients' own test parts.
        calibration: the head's temperature, and how good its probabilities are.
    """

    head: Head
    evaluation: Evaluation
    rounds: int
    counters: Mapping[str, float]
    figures: ClientFigures
    calibration: Calibration


# Metrics of the strategy that say what it has chosen.
_CHOSEN = (
    "ridge-lambda", "ridge-lambda-edge", "ridge-freedom", "lda-shrinkage", "precondition-lambda",
)  # fmt: skip
_FATES = ("valid", "rejected", "failed", "dropped", "late")


def summarize(
    run: Run, backbone: FrozenBackbone, outcome: Outcome, classes: Sequence[str]
) -> dict[str, Any]:
    """The figures of a run's training; ``classes`` are the names of the classes."""
    config, counters, head = run.config, outcome.counters, outcome.head
    accounts, hides = run.registry.accounts, config.privacy.hides_cohorts
    # Bytes that one client would send if the float32 backbone were trained and sent too.
    full_model_bytes = backbone.spec.float_model_bytes + payload_bytes(
        RecordDict({"arrays": write_head(head)})
    )
    return {
        "accuracy": outcome.evaluation.accuracy,
        "loss": outcome.evaluation.loss,
        "balanced_accuracy": outcome.evaluation.balanced_accuracy,
        "test_examples": outcome.evaluation.num_examples,
        **_probabilities(outcome.calibration),
        "classes": _by_class(outcome.evaluation, classes),
        **outcome.figures.summary(),
        "rounds": outcome.rounds,
        "accepted_rounds": int(counters["accepted"]),
        "clients": max(len(run.registry.known), accounts.num_clients),
        **{f"{fate}_updates": _total(counters, fate) for fate in _FATES},
        "refused_answers": None if hides else accounts.total("refused"),
        "attack": config.attack.kind,
        "malicious_clients": len(malicious_clients(config)),
        "backdoor_success": counters.get("backdoor-success"),
        "uplink_bytes": _total(counters, "uplink-bytes"),
        "downlink_bytes": _total(counters, "downlink-bytes"),
        "full_model_uplink_bytes": None if hides else full_model_bytes * int(counters["valid"]),
        "codec_up": config.codec.up,
        "codec_down": config.codec.down,
        "projection": backbone.spec.projection,
        "pooled_features": backbone.spec.num_pooled,
        "backbone_bytes_sent": None if hides else accounts.total("backbone_bytes"),
        **{name.replace("-", "_"): counters.get(name) for name in _CHOSEN},
        "simulated_seconds": None if hides else round(counters["simulated-seconds"], 3),
        "seconds": {
            "rounds_total": round(counters["seconds"], 3),
            "training": round(counters["train-seconds"], 3),
        },
        "strategy": config.strategy.name,
        "lr": config.train.peak if takes_steps(config) else None,
        "privacy": run.guard.summary() if run.guard else None,
        "head_sha256": head.sha256,
        "fingerprint": backbone.fingerprint,
        "versions": versions(),
    }


def _total(counters: Mapping[str, float], name: str) -> int | None:
    """A count of the whole run; None if it is not told, see server.record.untold."""
    return int(counters[name]) if name in counters else None


def _probabilities(found: Calibration) -> dict[str, Any]:
    """The calibration whole, for a later export; and as plain numbers, which trackers take."""
    return {
        "temperature": found.temperature,
        "ece": found.ece,
        "ece_before": found.ece_before,
        "calibrated_loss": found.loss,
        "calibration": found.model_dump(),
    }


def _by_class(evaluation: Evaluation, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Test images and accuracy of each class, in label order; None without test images."""
    tests = evaluation.confusion.sum(axis=1).tolist()
    rows = zip(classes, tests, evaluation.class_accuracy, strict=True)
    return [{"name": name, "tests": n, "accuracy": share} for name, n, share in rows]


def of_export(exported: ExportReport | None, path: Path) -> dict[str, Any]:
    """The figures of the run's exported model; ``exported`` is None if the export failed."""
    return {
        "model_path": str(path) if exported else None,
        "model_bytes": exported and exported.model_bytes,
        "model_accuracy": exported and exported.accuracy,
        "model_test_examples": exported and exported.images,
        "argmax_agreement": exported and exported.argmax_agreement,
        "max_logit_difference": exported and exported.max_logit_difference,
    }
