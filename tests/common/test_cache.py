import os
import time
from pathlib import Path

import numpy as np
import pytest

from common.cache import entries, keep_newest, note_use, prune

DAY = 86400


def put(path: Path, days: float) -> Path:
    """A folder of ten bytes that was used so many days ago."""
    path.mkdir(parents=True)
    (path / "features.npy").write_bytes(bytes(10))
    used(path, days)
    return path


def used(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * DAY,) * 2)


def name(digit: str) -> str:
    return digit * 64


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    for kind, digit, days in (
        ("features", "a", 40), ("features", "b", 2), ("backbones", "c", 31),
        ("clients", "d", 400), ("data", "e", 400),
    ):  # fmt: skip
        put(tmp_path / kind / name(digit), days)
    put(tmp_path / "features" / f".{name('f')}.x1.tmp", 0.5)  # one that is being written
    put(tmp_path / "features" / f".{name('f')}.x2.tmp", 40)  # of a process that was killed
    put(tmp_path / "features" / "mine", 400)
    keys = tmp_path / "backbones" / "keys"
    keys.mkdir()
    (keys / name("9")).write_bytes(b"c")
    partition = tmp_path / "partitions" / f"{name('1')}.safetensors"
    partition.parent.mkdir()
    partition.write_bytes(bytes(7))
    used(partition, 50)
    return tmp_path


def left(cache: Path) -> set[str]:
    return {f"{path.parent.name} {path.name.lstrip('.')[0]}" for path in cache.glob("*/*")}


def test_what_can_be_made_again_and_was_not_used_for_long_goes(filled: Path) -> None:
    gone = prune(filled, 30)
    assert sum(entry.size_bytes for entry in gone) == 10 + 10 + 10 + 7
    assert left(filled) == {
        "features b", "features f", "features m", "clients d", "data e", "backbones k",
    }  # fmt: skip
    assert [path.name[66:] for path in (filled / "features").glob(".*")] == ["x1.tmp"]


def test_nothing_that_clients_remember_or_that_is_being_written_ever_goes(filled: Path) -> None:
    prune(filled, 0)
    assert left(filled) == {"features f", "features m", "clients d", "data e", "backbones k"}
    assert prune(filled, 0) == []
    assert prune(filled / "nowhere", 0) == []


def test_the_last_used_are_kept(tmp_path: Path) -> None:
    for digit, days in {"a": 4, "b": 3, "c": 2, "d": 1}.items():
        put(tmp_path / name(digit), days)
    note_use(tmp_path / name("a"))
    keep_newest(tmp_path, 2)
    assert {path.name[0] for path in tmp_path.iterdir()} == {"a", "d"}
    assert [entry.path.name[0] for entry in entries(tmp_path)] == ["d", "a"]


def test_who_has_mapped_what_goes_keeps_it(tmp_path: Path) -> None:
    folder = put(tmp_path / name("a"), 3)
    np.save(folder / "features.npy", np.arange(5))
    put(tmp_path / name("b"), 1)
    mapped = np.load(folder / "features.npy", mmap_mode="r")
    keep_newest(tmp_path, 1)
    assert not folder.exists()
    assert mapped.tolist() == [0, 1, 2, 3, 4]
