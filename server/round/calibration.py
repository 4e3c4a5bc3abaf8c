"""The temperature of a run's last head: how it is found, how good it is, where it is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.evaluation import calibration_error, evaluate, losses_of, probabilities_of
from common.temperature import SHARPNESS, fit_temperature
from common.types import FeatureSet, Head
from server.export.card import Calibration
from server.record.runfolder import SUMMARY
from server.round.algorithm import Run
from server.round.client_figures import ClientFigures

__all__ = [
    "Temperature",
    "best_calibration",
    "calibrated",
    "calibration_of",
    "kept_calibration",
    "of_test_images",
    "temperatures",
]

_log = logging.getLogger("fedhead")

_FEWEST = 50  # of a few dozen examples, whether one is right decides
_CHANCE = 1.1  # other images than those that it was fitted on may have a somewhat larger loss


@dataclass(frozen=True)
class Temperature:
    """What the logits of a head are divided by.

    Attributes:
        value: T.
        fitted_on: words for what it was fitted on.
        examples: number of these examples; 0 if there were none.
    """

    value: float
    fitted_on: str
    examples: int = 0


def calibrated(
    run: Run, figures: ClientFigures, counters: Mapping[str, float], head: Head, test: FeatureSet
) -> Calibration:
    """The calibration of a run's last head.

    Args:
        run: grid, registry and configuration.
        figures: what clients tell of the head.
        counters: the run's, with the closed form's estimate as "head-temperature".
        head: the last head.
        test: the server's test set.
    """
    if run.config.privacy.active:  # it has not asked its clients, and its statistics are noisy
        return best_calibration([of_test_images(head, test)], head, test)
    train_examples = {number: one.num_examples for number, one in run.registry.clients.items()}
    return best_calibration(
        temperatures(figures, train_examples, counters.get("head-temperature")), head, test
    )


def best_calibration(choices: Sequence[Temperature], head: Head, test: FeatureSet) -> Calibration:
    """That of the first choice that hardly raises the loss on the server's test set.

    A client could tell made-up losses that no check can find: a single one may ask for any
    temperature. The server's own images do not choose it, but can refuse it.

    Args:
        choices: in the order in which they are preferred; none of them may be good enough.
        head: the last head.
        test: the server's test set.
    """
    for choice in choices:
        found = calibration_of(choice, head, test)
        if found.loss <= _CHANCE * found.loss_before:
            return found
        _log.warning(
            "the temperature %.3g of %s is not used: with it the loss of the test images would "
            "be %.3g instead of %.3g", choice.value, choice.fitted_on, found.loss, found.loss_before
        )  # fmt: skip
    return calibration_of(Temperature(1.0, "nothing: no temperature helped"), head, test)


def temperatures(
    figures: ClientFigures, train_examples: Mapping[int, int], of_statistics: float | None
) -> list[Temperature]:
    """The temperatures to choose from, the best first.

    They are that of the clients' test parts, by what clients tell of the head, and the estimate of
    the statistics. A client counts with its test examples, but not with more of them than it
    trained on.

    Args:
        figures: the clients' answers.
        train_examples: by client.
        of_statistics: the estimate of a closed form for its head, if there is one.

    Returns:
        Without the first if all test parts together are too small. If there is nothing to choose
        from, 1.
    """
    weights = {
        client: min(figures.num_examples[client], train_examples.get(client, 0))
        for client in figures.losses
    }
    total, found = sum(weights.values()), list[Temperature]()
    if total >= _FEWEST:
        losses = np.zeros_like(SHARPNESS)
        for client, weight in weights.items():
            losses += weight * figures.losses[client]
        found.append(Temperature(fit_temperature(losses, total), "clients' test parts", total))
    if of_statistics is not None:
        found.append(Temperature(of_statistics, "clients' statistics"))
    few = f"nothing: clients have {total} test examples, fewer than {_FEWEST}"
    return found or [Temperature(1.0, few)]


def of_test_images(head: Head, test: FeatureSet) -> Temperature:
    """The temperature of the server's own test images, the only labelled ones that it has."""
    if len(test) < _FEWEST:
        few = f"nothing: the server has {len(test)} test images, fewer than {_FEWEST}"
        return Temperature(1.0, few)
    value = fit_temperature(len(test) * losses_of(head, test), len(test))
    return Temperature(value, "the server's test set, on which it is measured too", len(test))


def calibration_of(temperature: Temperature, head: Head, test: FeatureSet) -> Calibration:
    """How good the probabilities are on the server's test set, with and without temperature."""
    ece, loss = _quality(head, test, temperature.value)
    before, _ = _quality(head, test, 1.0)
    return Calibration(
        temperature=temperature.value,
        fitted_on=temperature.fitted_on,
        fitted_examples=temperature.examples,
        ece=ece,
        ece_before=before,
        loss=loss,
        loss_before=evaluate(head, test).loss,
        examples=len(test),
    )


def _quality(head: Head, test: FeatureSet, temperature: float) -> tuple[float, float]:
    """Calibration error and mean cross-entropy."""
    probabilities = probabilities_of(head, test, temperature)
    of_truth = np.take_along_axis(probabilities, test.labels[:, None], axis=1)
    tiny = np.finfo(np.float64).tiny  # a probability of 0 would cost infinitely much
    loss = float(-np.log(np.maximum(of_truth, tiny)).mean())
    return calibration_error(probabilities, test.labels), loss


def kept_calibration(path: Path, head: Head) -> Calibration | None:
    """The calibration in a run folder's summary; None if that is of another head or missing."""
    file = path / "summary.json"
    if not file.exists():
        return None
    summary: Mapping[str, Any] = SUMMARY.read(file)
    found = summary.get("calibration")
    if found is None or summary.get("head_sha256") != head.sha256:
        return None
    return Calibration.model_validate(found)
