"""Files that are read back later. Each has a checksum; a file that has changed is not used.

A kind of file is an object of this module, made once beside the code that writes and reads it. The
checksum is the beginning of SHA-256. It protects against accidents, not against attackers:

===========  ==========================================================================
``JsonFile``   its last member, ``checksum``, covers all bytes before it
``JsonLines``  the same for each line
``ArraysFile`` ``checksum`` in safetensors' metadata covers all other bytes
``own_check``  none: the file is checked in another way, by a hash or a signature
===========  ==========================================================================

Other tools can read these files as plain JSON, JSON lines and safetensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import DamagedError
from common.files import write_atomic

__all__ = [
    "KINDS",
    "ArraysFile",
    "JsonFile",
    "JsonLines",
    "checksum",
    "own_check",
    "seal",
    "unseal",
]

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")

KINDS: dict[str, object] = {}
"""All kinds of the modules imported so far, by name: the kind, or the function that reads it. A
test flips the bytes of each."""

_DIGITS = 16
_MARK = b'"checksum": "'
_WHOLE = re.compile(rb'"checksum": "[0-9a-f]{16}"}')  # a line's end, before its last newline
_ARRAYS_MARK = b'"checksum":"'  # as safetensors writes its metadata


def checksum(data: bytes) -> bytes:
    """16 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:_DIGITS].encode()


def own_check(kind: str) -> Callable[[F], F]:
    """Mark a function that reads files of a kind and checks them in its own way."""

    def mark(function: F) -> F:
        _register(kind, function)
        return function

    return mark


def _register(kind: str, reader: object) -> None:
    if kind in KINDS:
        raise ValueError(f"the kind {kind!r} exists already")
    KINDS[kind] = reader


def seal(text: str) -> bytes:
    """The text of a JSON object with its checksum as the last member.

    >>> seal('{"round": 1}')
    b'{"round": 1, "checksum": "2aadd6bb9b65549f"}'
    """
    body = text.rstrip().removesuffix("}").rstrip()
    comma = "" if body.endswith("{") else ","
    gap, end = ("\n ", "\n}\n") if "\n" in body else (" ", "}")
    start = f"{body}{comma}{gap}".encode() + _MARK
    return start + checksum(start) + b'"' + end.encode()


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The object that ``seal`` has sealed, without its checksum.

    Args:
        data: what was read.
        where: from where, for the error.

    Raises:
        DamagedError: it is something else.
    """
    start, mark, rest = data.rpartition(_MARK)
    stated, end = rest[:_DIGITS], rest[_DIGITS:]
    if not mark:
        raise DamagedError(where, "it has no checksum" if data.strip() else "it is empty")
    if stated != checksum(start + mark) or not re.fullmatch(rb'"[ \t\r\n]*}[ \t\r\n]*', end):
        raise DamagedError(where, "its checksum does not match")
    value: dict[str, Any] = json.loads(data)
    del value["checksum"]
    return value


class JsonFile:
    """A kind of small file that holds one JSON object.

    Args:
        kind: its name.
        indent: spaces of a level, for files that people look at.
    """

    def __init__(self, kind: str, *, indent: int | None = None) -> None:
        self._indent = indent
        _register(kind, self)

    def pack(self, value: Mapping[str, object]) -> bytes:
        """A file's content."""
        return seal(json.dumps(value, indent=self._indent))

    def write(self, path: Path, value: Mapping[str, object], *, durable: bool = True) -> None:
        """Put a file in place, as ``write_atomic`` does."""
        write_atomic(path, self.pack(value), durable=durable)

    def read(self, path: Path) -> dict[str, Any]:
        """What was written.

        Raises:
            DamagedError: the file has changed since.
            OSError: there is none, or it cannot be read.
        """
        return unseal(path.read_bytes(), str(path))


class JsonLines:
    """A kind of file that grows by lines, each a JSON object.

    Args:
        kind: its name.
    """

    def __init__(self, kind: str) -> None:
        _register(kind, self)

    def line(self, value: Mapping[str, object]) -> str:
        """A line, without its end."""
        return seal(json.dumps(value)).decode()

    def read(self, path: Path) -> Iterator[dict[str, Any] | DamagedError]:
        """The object of each line, or the error of a damaged line.

        An incomplete last line, left by a killed process, is ignored.

        Raises:
            OSError: the file cannot be read.
        """
        return self.read_as(path, lambda line, where, _: unseal(line, where))

    def read_as(
        self, path: Path, made: Callable[[bytes, str, int], T]
    ) -> Iterator[T | DamagedError]:
        """The same of what is made of each line, for who reads a line more than once.

        Args:
            path: the file.
            made: called with a line, where it is in words, and its number from 1; it calls
                ``unseal``.
        """
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield made(line, f"{path}, line {number}", number)
                except DamagedError as exc:
                    if line.endswith(b"\n") or _WHOLE.search(line):
                        yield exc


class ArraysFile:
    """A kind of safetensors file.

    Args:
        kind: its name.
    """

    def __init__(self, kind: str) -> None:
        _register(kind, self)

    def pack(self, arrays: Mapping[str, Array]) -> bytes:
        """A file's content."""
        import numpy as np  # imported late: the device's watching process reads JSON files only
        from safetensors.numpy import save

        contiguous = {name: np.require(a, requirements="C") for name, a in arrays.items()}
        blank = save(contiguous, {"checksum": "0" * _DIGITS})
        start, mark, rest = blank.partition(_ARRAYS_MARK)
        return start + mark + checksum(blank) + rest[_DIGITS:]

    def write(self, path: Path, arrays: Mapping[str, Array], *, durable: bool = True) -> None:
        """Put a file in place, as ``write_atomic`` does."""
        write_atomic(path, self.pack(arrays), durable=durable)

    def read(self, path: Path) -> dict[str, Array]:
        """What was written.

        Raises:
            DamagedError: the file has changed since.
            OSError: there is none, or it cannot be read.
        """
        from safetensors.numpy import load

        data = path.read_bytes()
        start, mark, rest = data.partition(_ARRAYS_MARK)
        blank = start + mark + b"0" * _DIGITS + rest[_DIGITS:]
        if not mark:
            raise DamagedError(str(path), "it has no checksum" if data else "it is empty")
        if rest[:_DIGITS] != checksum(blank):
            raise DamagedError(str(path), "its checksum does not match")
        return load(data)
