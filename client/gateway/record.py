"""One kind of file for all that the gateway must find again after a kill: words and bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DamagedError
from common.readback import ArraysFile

__all__ = ["Record", "read_record", "write_record"]

_FILE = ArraysFile("record of a gateway")
_WORDS, _PART = "words", "part."

Record = tuple[dict[str, Any], dict[str, bytes]]
"""Words, which JSON can hold, and bytes by name."""


def write_record(path: Path, words: Mapping[str, object], parts: Mapping[str, bytes]) -> None:
    """Put a record in place; when this returns, it survives a power failure.

    Raises:
        OSError: the disk is full, for example.
    """
    arrays = {_PART + name: np.frombuffer(data, np.uint8) for name, data in parts.items()}
    arrays[_WORDS] = np.frombuffer(json.dumps(words).encode(), np.uint8)
    _FILE.write(path, arrays)


def read_record(path: Path) -> Record:
    """What was written.

    Raises:
        DamagedError: the file has changed since.
        OSError: there is none, or it cannot be read.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = _FILE.read(path)
    try:
        words = json.loads(arrays.pop(_WORDS).tobytes())
        parts = {name.removeprefix(_PART): array.tobytes() for name, array in arrays.items()}
    except (KeyError, ValueError) as exc:
        raise DamagedError(str(path), "it holds something else") from exc
    return words, parts
