"""Lines about data that no simulated client trains on. Every run logs them."""

from __future__ import annotations

import numpy as np

from common.config import Config
from common.experiment import (
    calibration_positions,
    client_ids,
    client_shares,
    experiment_dataset,
    held_out_positions,
)
from common.words import some

__all__ = ["unheld"]

_SHOWN = 10  # classes in a line


def unheld(config: Config) -> list[str]:
    """Training images that belong to no client, and classes that no client trains on.

    A partition drops images that it cannot divide. The calibration images, the validation part and
    clients' test parts may use up a rare class.

    Returns:
        A line for each of the two that occurs.
    """
    dataset, shares = experiment_dataset(config), client_shares(config)
    free = np.setdiff1d(dataset.train, calibration_positions(config))
    if config.data.validation_fraction:
        free = np.setdiff1d(free, held_out_positions(config))
    taking_part = config.train.participants(len(shares))
    trained = np.concatenate([shares[client].train for client in taking_part])
    owned = sum(len(share.train) + len(share.test) for share in shares)
    lines = []
    if lost := len(free) - owned:
        line = f"{lost} of {len(free)} training images belong to no client"
        if config.round.max_examples_per_client:
            line += ", or are beyond round.max-examples-per-client"
        if config.partition.scheme == "natural":
            owners = client_ids(dataset, config.partition.column)[free].tolist()
            if gaps := owners.count(None):
                line += f", {gaps} of them because '{config.partition.column}' is empty"
        lines.append(line)
    counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    missing = np.setdiff1d(np.arange(dataset.num_classes), dataset.labels[trained]).tolist()
    if missing:
        names = [f"{dataset.classes[k]} ({counts[k]} images)" for k in missing]
        lines.append(f"no client trains on {len(missing)} of the classes: {some(names, _SHOWN)}")
    return lines
