"""A secret is whole, its owner's alone, and gone when it is destroyed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from common.errors import DamagedError, RunError
from common.privacy.secret import destroy_secret, keep_secret

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "privacy.secret"


def test_it_is_made_once_and_read_back(path: Path) -> None:
    before = os.umask(0)  # even so
    try:
        secret = keep_secret(path)
    finally:
        os.umask(before)
    assert len(secret) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert keep_secret(path) == secret
    assert path.read_bytes() == secret + hashlib.sha256(secret).digest()[:16]
    assert secret != keep_secret(path.with_name("other"))
    assert [*path.parent.glob(".*")] == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601])
def test_one_that_others_may_read_is_refused_with_what_to_do(path: Path, mode: int) -> None:
    keep_secret(path)
    path.chmod(mode)
    with pytest.raises(RunError, match=f"privacy.secret: mode {mode:o} lets others.*chmod 600"):
        keep_secret(path)
    with pytest.raises(RunError, match="if others use this machine, begin a new run"):
        keep_secret(path)
    path.chmod(0o600)
    keep_secret(path)


def test_half_a_secret_or_another_is_damage_and_is_not_replaced(path: Path) -> None:
    keep_secret(path)
    whole = path.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for content in (*(whole[:cut] for cut in range(len(whole))), whole + b"x", *flipped):
        path.write_bytes(content)
        why = f"{len(content)} bytes that are no secret; begin a new run"
        with pytest.raises(DamagedError, match=f"privacy.secret is damaged .{why}"):
            keep_secret(path)
        assert path.read_bytes() == content


def test_an_unreadable_folder_is_told_as_it_is(path: Path) -> None:
    path.parent.write_text("a file where a folder should be")
    with pytest.raises(OSError, match="run"):
        keep_secret(path)


def killed_at(step: int, path: Path) -> None:
    """Make a secret, and die at one of the calls to the operating system."""
    calls = 0

    def dies(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    tempfile.mkstemp = dies(tempfile.mkstemp)
    for name in ("write_bytes", "hardlink_to", "unlink"):
        setattr(Path, name, dies(getattr(Path, name)))
    for name in ("close", "fsync", "urandom"):
        setattr(os, name, dies(getattr(os, name)))
    keep_secret(path)
    os._exit(0)


def test_a_kill_at_any_step_leaves_a_whole_secret_or_none_and_no_copy_outlives_it(
    tmp_path: Path,
) -> None:
    ends = set()
    for step in range(1, 20):
        path = tmp_path / f"{step}" / "privacy.secret"
        child = FORK.Process(target=killed_at, args=(step, path))
        child.start()
        child.join()
        ends.add((child.exitcode, path.exists()))
        if path.exists():
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.read_bytes().startswith(keep_secret(path))
        keep_secret(path)
        destroy_secret(path)
        assert [*path.parent.iterdir()] == []
    kill = -signal.SIGKILL
    assert ends == {(kill, False), (kill, True), (0, True)}


def send_secret(path: Path, start: Any, out: Connection) -> None:
    start.wait()
    out.send(keep_secret(path))


def test_two_that_make_it_at_once_get_the_same(path: Path) -> None:
    for turn in range(10):
        target = path.with_name(f"secret-{turn}")
        start = FORK.Barrier(2)
        pipes = [FORK.Pipe(duplex=False) for _ in range(2)]
        children = [
            FORK.Process(target=send_secret, args=(target, start, send)) for _, send in pipes
        ]
        for child in children:
            child.start()
        first, second = (receive.recv() for receive, _ in pipes)
        assert first == second == keep_secret(target)
        for child in children:
            child.join()


def test_destroying_leaves_nothing_and_touches_nothing_else(path: Path) -> None:
    keep_secret(path)
    keep_secret(path.with_name("privacy.secret2"))
    (path.parent / ".head.abc.tmp").touch()
    destroy_secret(path)
    assert {file.name for file in path.parent.iterdir()} == {"privacy.secret2", ".head.abc.tmp"}
    destroy_secret(path)  # a run that is resumed after its end


@pytest.mark.parametrize("exists", [True, False])
def test_one_that_lies_elsewhere_is_refused_since_it_would_outlive_the_run(
    path: Path, exists: bool
) -> None:
    path.parent.mkdir(exist_ok=True)
    elsewhere = path.with_name("elsewhere")
    if exists:
        keep_secret(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(RunError, match="is a link: what it leads to would outlive the run"):
        keep_secret(path)
    assert elsewhere.exists() == exists
