"""What a client remembers between rounds, in files on its own machine.

A Flower Context lives in memory for one run and is pickled with every message under Ray, so
nothing is kept there. Each file is named after the round that wrote it, and the server says which
round's update of a client was the last that counted: a client whose update was refused, came too
late or went down with the server starts again from where the server thinks it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from common.errors import FedheadError
from common.files import write_atomic
from common.types import FloatArray

__all__ = ["ControlStore"]


class ControlStore:
    """Control variates of the clients of one node, for one run.

    Args:
        folder: of the run on this machine; holds one folder a client.
        durable: whether files must survive a loss of power, as a phone's should.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder, self._durable = folder, durable

    def load(self, client: int, counted_round: int, shape: tuple[int, ...]) -> FloatArray:
        """What a client remembers of the round that counted last.

        Args:
            client: its id.
            counted_round: that round; 0 for none, and zeros.
            shape: (K, d + 1).

        Raises:
            FedheadError: the file is missing or damaged.
        """
        if not counted_round:
            return np.zeros(shape, np.float32)
        path = self._file(client, counted_round)
        try:
            control: FloatArray = load_file(path)["control"]
        except FileNotFoundError as exc:
            raise FedheadError(
                f"client {client}: its state after round {counted_round} is gone ({path})"
            ) from exc
        except (SafetensorError, KeyError, OSError) as exc:
            raise FedheadError(f"client {client}: {path} is damaged ({exc})") from exc
        if control.shape != shape:
            raise FedheadError(f"client {client}: {path} is {control.shape}, expected {shape}")
        return control

    def save(
        self, client: int, round_number: int, control: FloatArray, *, counted_round: int
    ) -> None:
        """Keep what this round gave beside what counted last, and nothing else.

        Raises:
            FedheadError: the disk does not let it.
        """
        target = self._file(client, round_number)
        kept = {target, self._file(client, counted_round)}
        try:
            content = save({"control": control})
            write_atomic(target, content, durable=self._durable)
            for path in target.parent.glob("*.safetensors"):
                if path not in kept:
                    path.unlink()
        except OSError as exc:
            reason = exc.strerror or exc
            raise FedheadError(f"client {client}: {target} cannot be written: {reason}") from exc

    def _file(self, client: int, round_number: int) -> Path:
        return self._folder / str(client) / f"{round_number:08d}.safetensors"
