"""Files and folders appear whole or not at all, also where several write or one is killed."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from common.files import is_empty, remove_temporary, write_atomic, write_folder, write_private


def fill(path: Path, size: int) -> None:
    with write_folder(path) as folder:
        for name in "ab":
            (folder / name).write_bytes(bytes([size]) * size)


def fill_for_ever(path: Path, size: int) -> None:
    while True:
        fill(path, size)


def write_for_ever(path: Path, size: int) -> None:
    while True:
        write_atomic(path, bytes([size]) * 1000 * size)


@pytest.mark.parametrize("write", [fill_for_ever, write_for_ever])
def test_two_writers_and_a_kill_leave_one_of_two_contents(
    tmp_path: Path, write: Callable[[Path, int], None]
) -> None:
    path = tmp_path / "target"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(path, size), daemon=True) for size in (100, 200)]
    for writer in writers:
        writer.start()
    seen: set[int] = set()
    reads = 0
    while reads < 2000 or seen != {100, 200}:  # one writer may start late: the test's time limit
        reads += 1
        try:
            content = (path if write is write_for_ever else path / "a").read_bytes()
        except FileNotFoundError:
            continue  # not yet there, or one folder makes room for the next
        assert len(content) in ({100, 200} if write is fill_for_ever else {100_000, 200_000})
        assert len(set(content)) == 1
        seen.add(content[0])
    for writer in writers:
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
    remove_temporary(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {"target"}
    if write is fill_for_ever:
        fill(path, 7)
        assert [(path / name).read_bytes() for name in "ab"] == [bytes([7]) * 7] * 2


def test_a_block_that_raises_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "target"
    fill(path, 3)
    with pytest.raises(IsADirectoryError), write_folder(path) as folder:
        folder.write_bytes(b"a file's content")
    assert (path / "a").read_bytes() == bytes([3]) * 3
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_what_a_killed_process_had_begun_is_no_content(tmp_path: Path) -> None:
    assert is_empty(tmp_path / "nowhere")
    (tmp_path / ".config.toml.abc.tmp").write_text("half")
    (tmp_path / ".000001.abc.tmp").mkdir()
    assert is_empty(tmp_path)
    (tmp_path / "draft.tmp").mkdir()  # somebody's
    assert not is_empty(tmp_path)
    remove_temporary(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["draft.tmp"]


def test_a_secret_that_cannot_be_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            write_private(tmp_path / "key", b"secret")
    assert not list(tmp_path.iterdir())
    write_private(tmp_path / "key", b"secret")
    assert (tmp_path / "key").read_bytes() == b"secret"
