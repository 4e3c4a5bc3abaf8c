"""A running device checks in now and then, and notices when other authorities are trusted."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.deploy import checking_in
from simulations.deploy.checking_in import CheckingIn


def until(what: Callable[[], bool], poll: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        poll()
        time.sleep(0.02)


@pytest.mark.parametrize("code", [0, 1])
def test_it_checks_in_again_sooner_if_it_failed_and_says_a_thing_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "ca.crt").write_text("one")
    times, said = tmp_path / "times", list[str]()
    # An hour and ten minutes, for a machine that has not that long.
    monkeypatch.setattr(checking_in, "_SECONDS", 0.0 if code == 0 else 1e6)
    monkeypatch.setattr(checking_in, "_AGAIN_SECONDS", 0.0 if code == 1 else 1e6)
    work = f"open({str(times)!r}, 'a').write('x'); print('trouble'); exit({code})"
    with CheckingIn(tmp_path, os.environ, tmp_path / "log", said.append) as device:
        monkeypatch.setattr(device, "_command", [sys.executable, "-c", work])
        device.remember()
        until(lambda: times.exists() and len(times.read_text()) >= 3, device.poll)
        assert device.poll() is None
        assert said == ["trouble"]
        (tmp_path / "ca.crt").write_text("two")
        assert device.poll() == 0
        device.remember()
        assert device.poll() is None
