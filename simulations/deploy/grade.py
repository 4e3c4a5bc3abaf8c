"""Measures the accuracy of the current model on a device's own images."""

from __future__ import annotations

from pathlib import Path

from client.delivery.shelf import Shelf
from client.held_out import held_out
from client.trust import Trust
from common.datasets.folder import load_folder
from common.delivery.versions import Artifact, fingerprint_of, read_artifact
from common.errors import DeliveryError
from server.delivery.reports import DeviceReport
from server.export.card import read_card
from server.export.predict import measure
from simulations.deploy.settings import inside, read_device

__all__ = ["grade"]


def grade(device: Path, shelf: Shelf, trust: Trust | None) -> tuple[Artifact, DeviceReport]:
    """Measure the current model, on the device's test images if it has any.

    Args:
        device: the device's folder.
        shelf: the model's shelf.
        trust: keys of which one must have signed the model before it is loaded; None: it may be
            unsigned. The signature may have expired since.

    Raises:
        DeliveryError: nothing was fetched yet, or the file is damaged.
        SignatureError: it is not signed as it must be.
        FedheadError: as in ``server.export.predict.measure``.
    """
    settings = read_device(device)
    with shelf.locked():
        if not shelf.current:
            raise DeliveryError(f"{shelf.path}: nothing was fetched to there yet")
        artifact = read_artifact(shelf.path, shelf.current)
        # The file is loaded below, so its bytes must be those that were fetched and signed.
        if problem := artifact.damage(shelf.model):
            raise DeliveryError(f"{shelf.model} is damaged: {problem}; fedhead delivery fetch")
        if trust:
            statement = trust.keys.verify(artifact.signed, str(artifact), expires=False)
            artifact.check(statement, "model", fingerprint_of(artifact))
        path = artifact.path(shelf.path)
    classes = read_card(path).classes
    dataset = load_folder(inside(device, settings.data), classes=classes)
    kept = held_out(
        dataset, inside(device, settings.state), classes, max_examples=settings.max_examples
    )
    positions = dataset.train if kept is None else kept
    accuracy = measure(path, dataset, positions)
    return artifact, DeviceReport(len(positions), accuracy, held_out=kept is not None)
