"""A client's memory between rounds, in files on its own machine.

Nothing is kept in a Flower Context, because that lives in memory for one run and is pickled with
every message under Ray. Each file is named after the round that wrote it. The server tells a client
the last round in which its update counted, and the client starts from that round's file. So a
client agrees with the server even if an update was refused, came too late or was lost in a crash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from common.errors import DamagedError, FedheadError, ProtocolError
from common.fields import Memory
from common.messages import TrainRequest, content_id
from common.readback import ArraysFile
from common.types import FloatArray

__all__ = ["ClientMemory", "with_constant"]

_MEMORY = ArraysFile("memory of a client")
_CONSTANT = ArraysFile("constant arrays of a plan")


class ClientMemory:
    """Named arrays that the clients of one node remember, for one run.

    Args:
        folder: the run's folder on this machine; holds one folder per client.
        durable: whether files must survive a power failure, as on a phone.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder, self._durable = folder, durable

    def load(
        self, client: int, counted_round: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> Memory:
        """A client's memory of the last round that counted.

        Args:
            client: its id.
            counted_round: that round; 0: no round has counted, and all arrays are zeros.
            shapes: shapes of the arrays, by name.

        Raises:
            FedheadError: the file is missing or damaged, or holds other arrays.
        """
        if not (counted_round and shapes):
            return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        path = self._file(client, counted_round)
        try:
            memory: dict[str, FloatArray] = _MEMORY.read(path)
        except FileNotFoundError as exc:
            raise FedheadError(
                f"client {client}: its state after round {counted_round} is missing ({path})"
            ) from exc
        except DamagedError as exc:
            raise FedheadError(f"client {client}: {exc}") from exc
        except OSError as exc:
            raise FedheadError(f"client {client}: {path}: {exc.strerror}") from exc
        found = {name: array.shape for name, array in sorted(memory.items())}
        wanted = dict(sorted(shapes.items()))
        if found != wanted:
            raise FedheadError(f"client {client}: {path} holds {found}, expected {wanted}")
        return memory

    def save(
        self,
        client: int,
        round_number: int,
        memory: Memory,
        *,
        counted_round: int,
        oldest_round: int,
    ) -> None:
        """Write this round's memory; keep those that counted and remove the others.

        Args:
            client: its id.
            round_number: this round's number.
            memory: float32 arrays by name.
            counted_round: the last round that counted; 0: none.
            oldest_round: the oldest round that the server may still go back to; the files of
                earlier rounds are removed.

        Raises:
            FedheadError: the file cannot be written.
        """
        target = self._file(client, round_number)
        try:
            _MEMORY.write(target, memory, durable=self._durable)
            kept = (path.stem for path in target.parent.glob("*.safetensors"))
            rounds = sorted(int(stem) for stem in kept if stem.isdecimal())
            before = [number for number in rounds if number <= counted_round]
            last = max((number for number in before if number <= oldest_round), default=0)
            for number in set(rounds) - {round_number, *(n for n in before if n >= last)}:
                self._file(client, number).unlink()
        except OSError as exc:
            reason = exc.strerror or exc
            raise FedheadError(f"client {client}: {target} cannot be written: {reason}") from exc

    def _file(self, client: int, round_number: int) -> Path:
        return self._folder / str(client) / f"{round_number:08d}.safetensors"


def with_constant(request: TrainRequest, folder: Path, *, durable: bool) -> TrainRequest | None:
    """The request with its plan's constant arrays, from the request or from this machine's disk.

    Args:
        request: the received request.
        folder: the run's folder on this machine.
        durable: as in ``ClientMemory``.

    Returns:
        None if the arrays are in neither place, or damaged on disk.

    Raises:
        ProtocolError: the id does not match the arrays.
    """
    if not request.constant_id:
        return request
    if not re.fullmatch("[0-9a-f]{64}", request.constant_id):
        raise ProtocolError(f"constant-id {request.constant_id!r} is not a SHA-256")
    path = folder / f"constant-{request.constant_id}.safetensors"
    if request.has_constant:
        if content_id(request.plan.constant) != request.constant_id:
            raise ProtocolError("the plan's constant arrays do not match its constant-id")
        with suppress(OSError):  # if they cannot be kept, the server sends them again
            _CONSTANT.write(path, request.plan.constant, durable=durable)
            for other in folder.glob("constant-*.safetensors"):
                if other != path:  # a run has one plan's
                    other.unlink(missing_ok=True)
        return request
    try:
        constant = _constant(path, request.constant_id)
    except (DamagedError, OSError, ValueError):
        return None
    return replace(request, plan=replace(request.plan, constant=constant))


@lru_cache(maxsize=1)  # a simulated node is asked each round
def _constant(path: Path, identity: str) -> Mapping[str, FloatArray]:
    constant: dict[str, FloatArray] = _CONSTANT.read(path)
    if content_id(constant) != identity:
        raise ValueError(f"{path} holds other arrays")
    return constant
