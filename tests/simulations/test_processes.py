"""Processes end with the one that started them, and a run with its operator's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import simulations.engines.stream
from common.errors import RunError
from server.record.lease import follow, held
from simulations.deploy.processes import alone, first_end, is_held, own_folder, run, running

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = dict(os.environ) | {"PYTHONPATH": str(ROOT)}

# A command with a child that it does not wait for.
COMMAND = "(sleep 3600 & echo $! >&2); echo $$ >&2; sleep 3600"
OWNER = """
import os, sys
from simulations.deploy.processes import running, terminable
with terminable(), running(["sh", "-c", sys.argv[1]], dict(os.environ)) as process:
    process.wait()
"""


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("number", "command"),
    [
        (signal.SIGTERM, COMMAND),
        (signal.SIGHUP, COMMAND),
        (signal.SIGINT, COMMAND),
        (signal.SIGKILL, f"trap '' TERM; {COMMAND}"),  # none of them ends when it is asked to
    ],
)
def test_a_command_and_its_descendants_end_with_their_owner(
    number: signal.Signals, command: str
) -> None:
    arguments = [sys.executable, "-c", OWNER, command]
    with subprocess.Popen(
        arguments,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's `&` has what it starts ignore Ctrl-C, and these tests may be started so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as owner:
        assert owner.stderr
        # A gRPC server of an earlier test may have words of its own in the forked process.
        lines = (line for line in owner.stderr if line.strip().isdecimal())
        pids = [int(next(lines)) for _ in range(2)]
        assert all(map(runs, pids))
        owner.send_signal(number)
        owner.wait(30)
        wait_until(lambda: not any(map(runs, pids)))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process")
def test_a_command_ends_with_its_keeper(tmp_path: Path) -> None:
    with running(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 3600"], ENVIRONMENT) as keeper:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        pid = int((tmp_path / "pid").read_text())
        assert runs(pid)
        keeper.kill()
        wait_until(lambda: not runs(pid))


def test_what_a_command_started_ends_with_it(tmp_path: Path) -> None:
    said: list[str] = []
    script = f"sleep 3600 & echo $! > {tmp_path}/pid; exit 7"
    assert run(["sh", "-c", script], ENVIRONMENT, said.append) == 7
    wait_until(lambda: not runs(int((tmp_path / "pid").read_text())))
    assert said == [f"$ sh -c '{script}'"]
    assert run(["sh", "-c", "kill -9 $$"], ENVIRONMENT, said.append) == 128 + 9


def test_the_first_of_two_to_end_is_noticed() -> None:
    with (
        running(["sleep", "3600"], ENVIRONMENT) as lasting,
        running(["true"], ENVIRONMENT) as short,
    ):
        first_end(lasting, short)
        assert (lasting.poll(), short.poll()) == (None, 0)
    assert lasting.returncode == 128 + signal.SIGTERM


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(RunError, match="the command no-such is not on the PATH"):
        run(["no-such"], ENVIRONMENT, lambda _: None)


def test_one_of_a_kind_runs_from_a_folder(tmp_path: Path) -> None:
    taken = f"fedhead device runs already, as process {os.getpid()}"
    with alone(tmp_path, "fedhead device"), pytest.raises(RunError, match=taken):
        alone(tmp_path, "fedhead device").__enter__()
    assert not is_held(tmp_path)
    with alone(tmp_path, "fedhead device"):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    assert not is_held(tmp_path / "none")
    with pytest.raises(RunError, match="No such file"), alone(tmp_path / "none", "fedhead device"):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from server.record.lease import held
with held(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(3600)
"""
FOLLOWER = """
import signal, sys, time
from pathlib import Path
from server.record.lease import follow
follow(Path(sys.argv[1]))
if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(3600)
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.readline()
    return process


def test_a_run_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    holder = python(HOLDER, lease)
    followers = [python(FOLLOWER, lease), python(FOLLOWER, lease, "deaf")]
    time.sleep(1)
    assert [follower.poll() for follower in followers] == [None, None]
    holder.kill()
    assert [follower.wait(30) for follower in followers] == [-signal.SIGTERM, 1]
    with held(lease):  # who goes on with the run has it now
        pass
    for process in (holder, *followers):
        process.communicate()


def test_a_second_operator_is_told_that_one_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.record.lease._LEFT_SECONDS", 0.1)
    taken = "another process is at work on this run"
    with held(tmp_path / "lease"), pytest.raises(RunError, match=taken):
        held(tmp_path / "lease").__enter__()


def test_a_lease_that_cannot_be_read_ends_the_run_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("server.record.lease._FAREWELL_SECONDS", 0)
    monkeypatch.setattr("os.kill", lambda pid, number: ended.append(number))
    monkeypatch.setattr("os._exit", ended.append)
    follow(tmp_path / "none")
    wait_until(lambda: ended[:2] == [signal.SIGTERM, 1])
    assert f"{tmp_path}/none: No such file or directory" in caplog.text
    assert "has ended" not in caplog.text


FLWR = """#!/bin/sh
case "$1" in
run) echo 'Successfully started run 7'; exec sleep 3600;;
ls) echo '{"runs": [{"run-id": 7, "status": "'"$(cat STATUS)"'", "status-details": ""}]}';;
stop) echo finished:stopped > STATUS;;
esac
"""


def test_a_run_that_does_not_start_is_said_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    status = tmp_path / "status"
    status.write_text("pending")
    (tmp_path / "flwr").write_text(FLWR.replace("STATUS", str(status)))
    (tmp_path / "flwr").chmod(0o700)
    environment = ENVIRONMENT | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    monkeypatch.setattr(simulations.engines.stream, "_WARN_SECONDS", 0.5)
    monkeypatch.setattr(simulations.engines.stream, "_GIVE_UP_SECONDS", 1.5)
    error, run_id = simulations.engines.stream.stream(tmp_path, (), environment, tmp_path / "log")
    assert (error, run_id) == (
        "the server has not started the run within 1.5 s (pending): do its SuperExec and its "
        "ServerApp start?",
        "7",
    )
    assert "has not started the run within 0.5 s (pending)" in caplog.text
    assert status.read_text() == "finished:stopped\n"


def test_folders_of_killed_processes_are_removed_by_the_next_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = """
import os, signal
from simulations.deploy.processes import own_folder
with own_folder("flower") as folder:
    (folder / "bin").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    unlocked = tmp_path / "fedhead-flower-new"  # another process is making it
    unlocked.mkdir()
    with own_folder("device") as other:
        assert left.exists()  # of another kind
        with own_folder("flower") as first, own_folder("flower") as second:
            assert {*tmp_path.iterdir()} == {unlocked, other, first, second}
    assert [*tmp_path.iterdir()] == [unlocked]
