"""Checkpoints: the head, the strategy's state and the counters after each round.

A checkpoint is a folder that appears whole or not at all. ``SHA256SUMS`` holds the hashes of its
files, as ``sha256sum --check`` reads them; one that does not verify is passed over for the one
before.
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
    """What a round left behind.

    Attributes:
        round_number: the last finished round; 0 before the first.
        head: the global head after it.
        arrays: the strategy state's arrays, by dotted field name.
        scalars: its other fields, and the counters.
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
    """The strategy state of a checkpoint, in the form of a freshly made one.

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
                f"checkpoint of round {checkpoint.round_number} lacks {name!r}: it is of another "
                "strategy, or another version of fedhead wrote it"
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
    """Its shape, but for the length of an array that began with no rows and has grown."""
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
    """Write the checkpoint of a round and drop all but it and the ``keep - 1`` before it."""
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
        # A later one was found damaged: the run has gone another way since.
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
        raise ValueError(f"its files are not those of {_SUMS}")
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
    """The newest checkpoint that verifies; None if there is none at all.

    Args:
        folder: of the checkpoints.
        rounds: pass over those of later rounds; None: of none.
        because: why.

    Raises:
        RunError: there are checkpoints, but every one is damaged or of a later round.
    """
    folders = _folders(folder)
    for path in reversed(folders):
        if rounds is not None and int(path.name) > rounds:
            message = f"checkpoint {path} is passed over ({because}), going back one"
            event("checkpoint", message, level=logging.WARNING, path=str(path), reason=because)
            continue
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as exc:
            message = f"checkpoint {path} is damaged ({exc}), going back one"
            event("checkpoint", message, level=logging.WARNING, path=str(path), reason=str(exc))
    if folders and rounds is not None and int(folders[0].name) > rounds:
        raise RunError(
            f"{because}, and the oldest checkpoint is of round {int(folders[0].name)}: mend it, "
            f"or remove {folder}, and the run begins again"
        )
    if folders:
        raise RunError(
            f"{folder}: all {len(folders)} checkpoints are damaged; without this folder the run "
            "begins again"
        )
    return None
