"""What no simulated client trains on, in words: said in every run, never only when it was drawn."""

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

    Partitions drop what does not divide, and calibration, validation and clients' own test parts
    take from rare classes.

    Returns:
        A line for each of the two, where there is something to say.
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
            line += ", or are more than round.max-examples-per-client lets it use"
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
