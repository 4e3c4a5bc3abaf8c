"""What a client remembers between rounds, in files on its own machine.

A Flower Context lives in memory for one run and is pickled with every message under Ray, so
nothing is kept there. Each file names the round that wrote it, and a round starts from the
newest file of an EARLIER round: a client that is ahead of a server that crashed steps back.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from common.errors import FedheadError
from common.files import write_atomic
from common.types import FloatArray

__all__ = ["ControlStore"]

_KEEP = 2


class ControlStore:
    """Control variates of the clients of one node, for one run.

    Args:
        folder: of the run on this machine; holds one folder a client.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, client: int, round_number: int, shape: tuple[int, ...]) -> FloatArray:
        """The control variate that a client starts this round with, zeros at first.

        Raises:
            FedheadError: the file is damaged, or what the round needs has been dropped.
        """
        files = self._files(client)
        earlier = [path for number, path in files if number < round_number]
        if not earlier:
            if files and self._previous(files[0][1]):
                raise FedheadError(
                    f"client {client}: the state before round {round_number} is gone, "
                    f"the oldest kept is {files[0][1]}"
                )
            return np.zeros(shape, np.float32)
        path = earlier[-1]
        try:
            control: FloatArray = load_file(path)["control"]
        except (SafetensorError, KeyError, OSError) as exc:
            raise FedheadError(f"client {client}: {path} is damaged ({exc})") from exc
        if control.shape != shape:
            raise FedheadError(f"client {client}: {path} is {control.shape}, expected {shape}")
        return control

    def save(self, client: int, round_number: int, control: FloatArray) -> None:
        """Keep what this round gave, and drop all but the two newest rounds."""
        files = [(number, path) for number, path in self._files(client) if number < round_number]
        metadata = {"previous": json.dumps(files[-1][0] if files else 0)}
        target = self._folder / str(client) / f"{round_number:08d}.safetensors"
        try:
            write_atomic(target, lambda path: save_file({"control": control}, path, metadata))
        except OSError as exc:
            reason = exc.strerror or exc
            raise FedheadError(f"client {client}: {target} cannot be written: {reason}") from exc
        for number, path in self._files(client):
            stale = number > round_number or number in [n for n, _ in files[: 1 - _KEEP]]
            if stale:
                path.unlink()

    def _files(self, client: int) -> list[tuple[int, Path]]:
        folder = self._folder / str(client)
        return sorted((int(path.stem), path) for path in folder.glob("[0-9]*.safetensors"))

    @staticmethod
    def _previous(path: Path) -> int:
        try:
            with safetensors.safe_open(path, "numpy") as file:
                return int(json.loads((file.metadata() or {}).get("previous", "0")))
        except (SafetensorError, OSError) as exc:
            raise FedheadError(f"{path} is damaged ({exc})") from exc
