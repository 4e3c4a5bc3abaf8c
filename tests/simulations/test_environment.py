"""A broken environment ends a run in one line; once it is mended, the run goes on."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import server.app
import server.round.loop
from server.export.runtime_cards import ExportReport
from server.record.checkpoint import load_latest
from simulations.run import run_in_process

Make = Callable[..., Path]
Fedhead = Callable[..., tuple[int, str, str]]

ROUNDS = 8
OPTIONS = ("strategy.name=scaffold", f"train.rounds={ROUNDS}")


@dataclass
class Disk:
    """A disk of its own, ``name`` below the test's folder."""

    folder: Path
    name: str = "disk"

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / Disk.name)
    made.folder.mkdir()
    if os.geteuid():
        pytest.skip("only root can mount a disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(made.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted: {done.stderr.strip()}")
    yield made
    subprocess.run(["umount", "--lazy", str(made.folder)], check=True)


@pytest.fixture
def whole(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The head of the undisturbed run."""
    run = tiny(*OPTIONS, name="whole")
    report = ExportReport("model", Path(), 0, "")
    with monkeypatch.context() as patch:
        patch.setattr(server.app, "export", lambda *_: report)  # nobody looks at its model
        run_in_process(run)
    return (run / "head.safetensors").read_bytes()


def refusal(result: tuple[int, str, str]) -> str:
    """The one line that a refused command ends with."""
    code, _, err = result
    assert code == 1
    assert "Traceback" not in err
    assert err.count("fedhead: ") == 1
    return " ".join(err[err.index("fedhead: ") :].split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "keep", "done"), [("2320k", 3, 2), ("3600k", 1, ROUNDS)], ids=["rounds", "export"]
)
def test_a_full_disk_is_one_line_and_with_space_the_run_goes_on(
    size: str, keep: int, done: int, disk: Disk, tiny: Make, fedhead: Fedhead, whole: bytes
) -> None:
    run = tiny(*OPTIONS, f"round.keep-checkpoints={keep}", name=f"{disk.name}/run")
    disk.remount(f"size={size}")
    line = refusal(fedhead("resume", run))
    if done < ROUNDS:
        assert line == (
            f"fedhead: {run}: No space left on device; finished rounds are safe: mend that, then "
            f"fedhead resume {run}"
        )
    else:
        assert "No space left on device; head and figures are safe; mend that, then" in line
    checkpoint = load_latest(run / "checkpoint")
    assert checkpoint is not None
    assert checkpoint.round_number == done
    assert not list(run.rglob(".*.tmp"))
    disk.remount("size=16m")
    assert fedhead("resume", run)[0] == 0
    assert (run / "head.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_a_read_only_run_folder_is_one_line_and_writable_the_run_goes_on(
    disk: Disk, tiny: Make, fedhead: Fedhead, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny(*OPTIONS, name=f"{disk.name}/run")
    save = server.round.loop.save_checkpoint

    def cut(*args: object, round_number: int, **kwargs: object) -> None:
        if round_number == ROUNDS // 2:
            raise KeyboardInterrupt
        save(*args, round_number=round_number, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(server.round.loop, "save_checkpoint", cut)
        code, _, err = fedhead("resume", run)
    assert code == 130
    assert f"fedhead resume {run}" in " ".join(err.split())
    disk.remount("ro")
    assert refusal(fedhead("resume", run)) == (
        f"fedhead: {run}/.lock: Read-only file system; finished rounds are safe: mend that, then "
        f"fedhead resume {run}"
    )
    file, other = run.parents[1] / "tiny.toml", disk.folder / "other"
    assert refusal(fedhead("run", file, "--out", other)).endswith("Read-only file system")
    disk.remount("rw")
    assert fedhead("resume", run)[0] == 0
    assert (run / "head.safetensors").read_bytes() == whole


def test_two_processes_do_not_work_on_one_run(tiny: Make, fedhead: Fedhead) -> None:
    run = tiny(*OPTIONS)
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        wanted = f"fedhead: {run}: another process is at work on this run"
        assert refusal(fedhead("resume", run)) == wanted
    assert not (run / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(
    tiny: Make, whole: bytes, set_clock: Callable[[int], None]
) -> None:
    run = tiny(*OPTIONS)
    command = [sys.executable, "-m", "fedhead", "resume", str(run), "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not list((run / "checkpoint").glob("[0-9]*")):
            assert process.poll() is None
            time.sleep(0.01)
        set_clock(-86_400)
    assert process.returncode == 0
    assert (run / "head.safetensors").read_bytes() == whole
    times = [json.loads(line)["time"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert times != sorted(times)
