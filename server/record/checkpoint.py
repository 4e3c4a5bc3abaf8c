"""Checkpoints: the head, the strategy's state and the counters after each round.

A checkpoint is a folder that appears completely or not at all. ``SHA256SUMS`` holds the hashes of
its files, in the form that ``sha256sum --check`` reads. A checkpoint with a wrong hash is skipped,
and the one before it is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import RunError
from common.files import write_folder
from common.readback import own_check
from common.types import Head
from server.record.events import event

__all__ = ["Checkpoint", "load_latest", "restore_state", "save_checkpoint"]

_HEAD, _STATE, _META = "head.safetensors", "state.safetensors", "meta.json"
_SUMS = "SHA256SUMS"
S = TypeVar("S")
Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state after a round.

    Attributes:
        round_number: the last finished round; 0 before the first.
        head: the global head after it.
        arrays: the arrays of the strategy's state, by dotted field name.
        scalars: the state's other fields, and the counters.
        counters: totals of the run so far.
    """

    round_number: int
    head: Head
    arrays: Mapping[str, npt.NDArray[np.generic]]
    scalars: Mapping[str, Any]
    counters: Mapping[str, float]


def _flatten(state: Any, prefix: str = "") -> tuple[Arrays, dict[str, Any]]:
    arrays: Arrays = {}
    scalars: dict[str, Any] = {}
    for field in dataclasses.fields(state):
        value, name = getattr(state, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            inner_arrays, inner_scalars = _flatten(value, f"{name}.")
            arrays |= inner_arrays
            scalars |= inner_scalars
        elif isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            scalars[name] = value
    return arrays, scalars


def restore_state(template: S, checkpoint: Checkpoint, prefix: str = "") -> S:
    """The strategy's state in a checkpoint, in the form of a new state.

    Raises:
        RunError: a field is missing or an array has another shape or dtype.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(template):  # type: ignore[arg-type]
        old, name = getattr(template, field.name), prefix + field.name
        if dataclasses.is_dataclass(old):
            values[field.name] = restore_state(old, checkpoint, f"{name}.")
            continue
        source = checkpoint.arrays if isinstance(old, np.ndarray) else checkpoint.scalars
        if name not in source:
            raise RunError(
                f"checkpoint of round {checkpoint.round_number} has no {name!r}: it is of another "
                "strategy or another version of fedhead"
            )
        new = source[name]
        if isinstance(old, np.ndarray) and (_form(new, old), new.dtype) != (old.shape, old.dtype):
            raise RunError(
                f"checkpoint of round {checkpoint.round_number}: {name} is {new.dtype} "
                f"{new.shape}, expected {old.dtype} {old.shape}"
            )
        values[field.name] = tuple(new) if isinstance(old, tuple) else new
    return type(template)(**values)


def _form(new: npt.NDArray[np.generic], old: npt.NDArray[np.generic]) -> tuple[int, ...]:
    """The shape, without the number of rows if the array began without rows."""
    if old.ndim and not len(old) and new.ndim:
        return (0, *new.shape[1:])
    return new.shape


def save_checkpoint(
    folder: Path,
    *,
    round_number: int,
    head: Head,
    state: Any,
    counters: Mapping[str, float],
    keep: int,
) -> None:
    """Write a round's checkpoint, and remove all but it and the ``keep - 1`` before it."""
    arrays, scalars = _flatten(state)
    meta = {"round": round_number, "scalars": scalars, "counters": dict(counters)}
    files = {
        _HEAD: save({"weight": head.weight, "bias": head.bias}),
        _STATE: save({name: np.ascontiguousarray(a) for name, a in arrays.items()}),
        _META: json.dumps(meta, indent=1).encode(),
    }
    files[_SUMS] = _sums(files)
    with write_folder(folder / f"{round_number:06d}") as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
    for path in _folders(folder):
        # Later checkpoints were found damaged, and the run has continued without them.
        if not round_number - keep < int(path.name) <= round_number:
            shutil.rmtree(path, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdecimal())


def _sums(files: Mapping[str, bytes]) -> bytes:
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    return "".join(lines).encode()


def _load(path: Path) -> Checkpoint:
    files = {name: (path / name).read_bytes() for name in (_HEAD, _STATE, _META)}
    if _sums(files) != (path / _SUMS).read_bytes():
        raise ValueError(f"its files are not those listed in {_SUMS}")
    head, meta = load(files[_HEAD]), json.loads(files[_META])
    return Checkpoint(
        round_number=meta["round"],
        head=Head(head["weight"], head["bias"]),
        arrays=load(files[_STATE]),
        scalars=meta["scalars"],
        counters=meta["counters"],
    )


@own_check("checkpoint of a run")
def load_latest(folder: Path, *, rounds: int | None = None, because: str = "") -> Checkpoint | None:
    """The newest valid checkpoint; None if there are no checkpoints.

    Args:
        folder: the folder of checkpoints.
        rounds: checkpoints of later rounds are skipped; None: none is skipped.
        because: the reason for skipping, for the log.

    Raises:
        RunError: all checkpoints are damaged or of later rounds.
    """
    folders = _folders(folder)
    for path in reversed(folders):
        if rounds is not None and int(path.name) > rounds:
            message = f"checkpoint {path} is skipped ({because}), going back one"
            event("checkpoint", message, level=logging.WARNING, path=str(path), reason=because)
            continue
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as exc:
            message = f"checkpoint {path} is damaged ({exc}), going back one"
            event("checkpoint", message, level=logging.WARNING, path=str(path), reason=str(exc))
    if folders and rounds is not None and int(folders[0].name) > rounds:
        raise RunError(
            f"{because}, and the oldest checkpoint is of round {int(folders[0].name)}: repair the "
            f"file, or remove {folder} to begin the run again"
        )
    if folders:
        raise RunError(
            f"{folder}: all {len(folders)} checkpoints are damaged; without this folder the run "
            "begins again"
        )
    return None
