"""Looks for values that no noise covers in all that a run has written and sent."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load

__all__ = ["Planted", "Seen", "of_content", "of_folder", "of_text"]

Numbers = npt.NDArray[np.float64]

_WORD = re.compile(r"[\w.+-]+")
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d+)?([eE][+-]?\d{1,3})?")
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d.])")
_TEXT = re.compile(rb"[ -~]{4,}")
_RELATIVE = 3e-7  # what float32 makes of a number
_DIGITS = 6  # a decimal number with fewer may be equal by chance
_FEW = 100  # among more floats, one is near another number by chance
_COSINE = 1 - 1e-6  # of two arrays that are multiples of each other: noise makes it far smaller


@dataclass(frozen=True, eq=False)
class Seen:
    """What a place holds, read as far as a reader could.

    Attributes:
        place: file or message.
        data: its bytes.
        streams: its numbers in their order, text and arrays apart.
        views: long arrays of floats, and what else the bytes may be, where nothing says what they
            are: among so many numbers single ones are there by chance, but no array is.
    """

    place: str
    data: bytes
    streams: tuple[Numbers, ...]
    views: tuple[Numbers, ...] = ()


@dataclass(frozen=True, eq=False)
class Planted:
    """Values of clients that no noise covers.

    Attributes:
        numbers: by name, counts and means.
        rows: by name, numbers that stand behind each other.
        arrays: by name, arrays, found if one of the same size is nearly a multiple.
        blobs: by name, bytes, found as they are or as hexadecimal digits.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, Sequence[float]] = field(default_factory=dict)
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*self.numbers, *self.rows, *self.arrays, *self.blobs]

    def found(self, places: Iterator[Seen] | Sequence[Seen]) -> dict[str, list[str]]:
        """For each of them that is found, the places."""
        hits: dict[str, list[str]] = {}
        for seen in places:
            for name in self._in(seen):
                hits.setdefault(name, []).append(seen.place)
        return hits

    def _in(self, seen: Seen) -> Iterator[str]:
        every = np.concatenate(seen.streams) if seen.streams else np.zeros(0)
        for name, value in self.numbers.items():
            if len(every) and _is_there(every, value):
                yield name
        for name, row in self.rows.items():
            if any(_holds(stream, np.asarray(row, np.float64)) for stream in seen.streams):
                yield name
        for name, array in self.arrays.items():
            flat = array.ravel().astype(np.float64)
            every_one = (*seen.streams, *seen.views)
            same = (stream for stream in every_one if stream.shape == flat.shape)
            if any(_cosine(stream, flat) > _COSINE for stream in same):
                yield name
        for name, blob in self.blobs.items():
            if blob in seen.data or blob.hex().encode() in seen.data:
                yield name


def _cosine(a: Numbers, b: Numbers) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), np.finfo(np.float64).tiny))


def _is_there(every: Numbers, value: float) -> bool:
    if float(value).is_integer():
        return bool((every == value).any())
    return bool((np.abs(every - value) <= _RELATIVE * abs(value)).any())


def _holds(stream: Numbers, row: Numbers) -> bool:
    """Whether a row's numbers stand behind each other in a stream."""
    starts = np.flatnonzero(stream[: max(0, len(stream) - len(row) + 1)] == row[0])
    return any(np.array_equal(stream[i : i + len(row)], row) for i in starts)


def of_text(place: str, data: bytes) -> Seen:
    """The numbers of a text; of "4,211" also 4211."""
    text = data.decode(errors="replace")
    words = (word.rstrip(".") for word in _WORD.findall(text))
    plain = [float(word) for word in words if _NUMBER.fullmatch(word) and _is_exact(word)]
    grouped = [float(match.replace(",", "")) for match in _GROUPED.findall(text)]
    return Seen(place, data, (np.array(plain), np.array(grouped)))


def _is_exact(word: str) -> bool:
    digits = re.sub(r"[eE].*|\D", "", word).lstrip("0")
    return "." not in word or len(digits) >= _DIGITS or float(word).is_integer()


def _of_binary(place: str, data: bytes, *, is_small: bool = False) -> Iterator[Seen]:
    """Arrays if they are safetensors, else what the bytes are as numbers of any kind.

    Args:
        place: file or message.
        data: its bytes.
        is_small: whether single numbers are looked for, too, where nothing says what they are.
    """
    try:
        arrays = list(load(data).values())
    except SafetensorError:
        kinds = {"<f4": 4, "<i4": 4, "<u4": 4, "<f8": 8, "<i8": 8}
        arrays = [np.frombuffer(data[: len(data) // n * n], kind) for kind, n in kinds.items()]
    else:
        is_small = True
        yield of_text(f"{place}, header", data[8 : 8 + int.from_bytes(data[:8], "little")])
    told = [is_small and (array.dtype.kind in "iu" or array.size <= _FEW) for array in arrays]
    numbers = [_floats(array) for array in arrays]
    streams, views = (
        tuple(one for one, is_told in zip(numbers, told, strict=True) if is_told is wanted)
        for wanted in (True, False)
    )
    yield Seen(place, data, streams, views)


def _floats(array: npt.NDArray[Any]) -> Numbers:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.nan_to_num(array.ravel().astype(np.float64))


def of_folder(folder: Path) -> Iterator[Seen]:
    """Every file of a folder, by what it is."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        place, data = str(path.relative_to(folder)), path.read_bytes()
        if path.parent.name == "tensorboard":
            yield _of_events(place, data)
        elif path.suffix == ".wandb":  # JSON texts between lengths and tags
            yield of_text(place, b"\n".join(_TEXT.findall(data)))
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield from _of_any(f"{place}/{name}", archive.read(name))
        else:
            yield from _of_any(place, data)


def _of_any(place: str, data: bytes) -> Iterator[Seen]:
    if b"\0" in data:
        yield from _of_binary(place, data)
    else:
        yield of_text(place, data)


def _of_events(place: str, data: bytes) -> Seen:
    """The values of TensorBoard's events: records with a length before and a checksum behind."""
    from tensorboardX.proto.event_pb2 import Event

    values, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        values += [value.simple_value for value in event.summary.value]
        at += 16 + size
    return Seen(place, data, (np.array(values, np.float64),))


def of_content(place: str, content: RecordDict) -> Iterator[Seen]:
    """A message's records, its arrays and its texts."""
    for record_name, record in content.items():
        where = f"{place}, {record_name}"
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                numbers = array.numpy().ravel().astype(np.float64)
                yield Seen(f"{where}.{key}", array.data, (numbers,))
            continue
        for key, value in record.items():
            values = value if isinstance(value, list) else [value]
            plain = [float(one) for one in values if isinstance(one, int | float)]
            yield Seen(f"{where}.{key}", b"", (np.array(plain),))
            for one in values:
                if isinstance(one, bytes):
                    is_backbone = key == "data"
                    yield from _of_binary(f"{where}.{key}", one, is_small=not is_backbone)
                elif isinstance(one, str):
                    yield of_text(f"{where}.{key}", one.encode())
