"""The images that a device kept out of its last training, to test models with later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.device import TASK, used_positions
from common.datasets.base import Dataset
from common.errors import DamagedError
from common.partition import local_split
from common.types import IntArray

__all__ = ["held_out"]


def held_out(
    dataset: Dataset, state: Path, classes: Sequence[str], *, max_examples: int
) -> IntArray | None:
    """The test part of the last run with these classes that the device took part in.

    Args:
        dataset: all images of the device.
        state: the device's state folder.
        classes: a model's classes.
        max_examples: the device's present budget.

    Returns:
        Positions, at least one. None: there was no such run, it left no test part, or images or
        budget have changed since, so that the training images are unknown.
    """
    tasks = sorted((state / "clients").glob("*/task.json"), key=_age)
    task = next((task for task in map(_read, tasks) if task.get("classes") == [*classes]), None)
    if task is None:
        return None
    now = {"images": dataset.content_key, "budget": max_examples}
    if any(task.get(key) != value for key, value in now.items()):
        return None
    _, test = local_split(
        used_positions(dataset, max_examples, task["max-examples"]),
        dataset.labels,
        client=task["client"],
        test_fraction=task["test-fraction"],
        seed=task["seed"],
    )
    return test if len(test) else None


def _age(path: Path) -> int:
    return -path.stat().st_mtime_ns


def _read(path: Path) -> dict[str, Any]:
    try:
        return TASK.read(path)
    except DamagedError:
        return {}
