"""SIGKILL at random moments: every run goes on to the bytes of one that was left in peace."""

from __future__ import annotations

import json
import math
import multiprocessing.connection
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

import server.app
import server.round.loop
from common.files import simulated_state
from server.export.runtime_cards import ExportReport
from simulations.run import run_in_process

Make = Callable[..., Path]

MOMENTS = 20
ROUNDS = 40
COMMAND_LINES = 4  # of the moments; the others fork a process that has imported everything
STRATEGIES = {
    "scaffold": ("strategy.name=scaffold",),
    "fedadam": ("strategy.name=fedadam", "train.momentum=0.5"),
}
RESUME = str(Path(__file__).with_name("forked_resume.py"))
MEASURED = {"seconds", "train-seconds", "run", "model_path", "checksum"}


def steady(values: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if key not in MEASURED}


def outcome(run: Path) -> dict[str, object]:
    """Everything that a run leaves but what it measured."""
    names = ("head.safetensors", "model.pt", "model.json", "clients.json")
    files: dict[str, object] = {name: (run / name).read_bytes() for name in names}
    last = run / "checkpoint" / f"{ROUNDS:06d}"
    files["state"] = (last / "state.safetensors").read_bytes()
    meta = json.loads((last / "meta.json").read_text())
    files["counters"] = steady(meta.pop("counters"))
    files["meta"] = meta
    lines = (run / "metrics.jsonl").read_text().splitlines()
    files["metrics"] = [steady(json.loads(line)) for line in lines]
    files["summary"] = steady(json.loads((run / "summary.json").read_text()))
    return files


@dataclass(frozen=True)
class Timeline:
    """Seconds of an undisturbed run: before its first round, all rounds, what comes after."""

    configure: float
    rounds: float
    export: float

    def moment(self, x: float) -> tuple[int, float]:
        """A moment for each x in [0, 1): the round to wait for, and the seconds after its end.

        Counted from what the run has reached, so that a busy machine does not shift it. A fifth
        lies before the first round, and half in rounds.
        """
        if x < 0.2:
            return 0, x / 0.2 * self.configure
        if x < 0.7:
            part, number = math.modf((x - 0.2) / 0.5 * ROUNDS)
            return int(number), part * self.rounds / ROUNDS
        return ROUNDS, (x - 0.7) / 0.3 * self.export


def done(run: Path) -> int:
    return max((int(path.name) for path in (run / "checkpoint").glob("[0-9]*")), default=0)


def wait_for(run: Path, moment: tuple[int, float], ended: Callable[[], bool]) -> None:
    """Wait for a moment of a run, or until its process has ended."""
    number, seconds = moment
    while done(run) < number and not ended():
        time.sleep(0.001)
    time.sleep(seconds)


def has_ended(process: BaseProcess) -> bool:
    return bool(multiprocessing.connection.wait([process.sentinel], 0))


class Forks:
    """``fedhead resume RUN`` in processes of their own, at a tenth of a start's price."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            [
                "sklearn.datasets",
                "server.app",
                "client.app",
                "client.cohort.cohort",
                "simulations.engines.in_process",
                "simulations.deploy.launch",
                "fedhead.cli.main",
                "server.export.targets.torchscript",
            ]
        )
        self._starting = Lock()  # a process takes its command line from this one's

    def resume(self, run: Path) -> BaseProcess:
        process = self._context.Process(target=runpy.run_path, args=(RESUME, None, "__main__"))
        with self._starting, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["fedhead", "resume", str(run), "--json"])
            process.start()
        return process

    def to_the_end(self, run: Path) -> Timeline:
        process, times = self.resume(run), [time.monotonic()]
        for reached in (lambda: (run / "metrics.jsonl").exists(), lambda: done(run) == ROUNDS):
            while not reached() and not has_ended(process):
                time.sleep(0.001)
            times.append(time.monotonic())
        assert self._exit_code(process) == 0
        return Timeline(*np.diff([*times, time.monotonic()]).tolist())

    def kill(self, run: Path, moment: tuple[int, float]) -> bool:
        """Whether it was still at work then."""
        process = self.resume(run)
        wait_for(run, moment, lambda: has_ended(process))
        process.kill()
        return self._exit_code(process) == -signal.SIGKILL

    def _exit_code(self, process: BaseProcess) -> int | None:
        multiprocessing.connection.wait([process.sentinel])
        with self._starting:  # a start in another thread looks after all processes
            process.join()
        return process.exitcode


def kill_command(run: Path, moment: tuple[int, float]) -> bool:
    """The same by the command line, from the moment when it takes the run in hand."""
    command = [sys.executable, "-m", "fedhead", "resume", str(run), "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not (run / ".lock").exists():
            assert process.poll() is None
            time.sleep(0.01)
        wait_for(run, moment, lambda: process.poll() is not None)
        process.kill()
    return process.returncode == -signal.SIGKILL


def stage(run: Path) -> str:
    """What a killed process was at."""
    if not (run / "metrics.jsonl").exists():
        return "configure"
    if list((run / "checkpoint").glob(".*.tmp")):
        return "checkpoint"
    return "round" if done(run) < ROUNDS else "export"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_20_moments_it_ends_with_the_bytes_of_an_undisturbed_run(tiny: Make) -> None:
    forks, rng = Forks(), np.random.default_rng(6)
    options = (f"train.rounds={ROUNDS}", "round.keep-checkpoints=2")

    def make(strategy: str, name: str) -> Path:
        return tiny(*options, *STRATEGIES[strategy], name=name)

    whole = {strategy: make(strategy, f"whole-{strategy}") for strategy in STRATEGIES}
    forks.to_the_end(make("fedadam", "first"))  # fills the caches
    with ThreadPoolExecutor(2) as two:
        timelines = dict(zip(whole, two.map(forks.to_the_end, whole.values()), strict=True))
    expected = {strategy: outcome(run) for strategy, run in whole.items()}
    stages: Counter[str] = Counter()

    def one(number: int, strategy: str, draws: list[float]) -> None:
        run, x = make(strategy, str(number)), (number + draws[0]) / MOMENTS
        timeline = timelines[strategy]
        killed = kill_command if number % (MOMENTS // COMMAND_LINES) == 0 else forks.kill
        while not killed(run, timeline.moment(x)):
            # It was faster this time.
            run, x = make(strategy, f"{number}-{x:.3f}"), 0.95 * x
        stages[stage(run)] += 1
        if number % 2 and forks.kill(run, timeline.moment(x + (1 - x) * draws[1])):
            stages[stage(run)] += 1
        forks.to_the_end(run)
        assert outcome(run) == expected[strategy], (number, x)
        assert not [path for path in run.rglob(".*") if path.name != ".lock"]
        run_id = json.loads((run / "run.json").read_text())["run-id"]
        assert not (simulated_state() / run_id).exists()

    jobs = range(MOMENTS), cycle(STRATEGIES), rng.random((MOMENTS, 2)).tolist()
    with ThreadPoolExecutor(2) as two:
        list(two.map(one, *jobs))
    print(dict(stages))
    assert {"configure", "round", "export"} <= stages.keys()


def test_a_run_with_two_damaged_checkpoints_goes_back_further_to_the_same_bytes(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    report = ExportReport("model", Path(), 0, "")
    monkeypatch.setattr(server.app, "export", lambda *_: report)  # has tests of its own
    options = ("strategy.name=scaffold", "train.rounds=8", "train.clients-per-round=8")
    whole = run_in_process(tiny(*options, name="whole"))
    run = tiny(*options, name="cut")
    save = server.round.loop.save_checkpoint

    def cut(*args: object, round_number: int, **kwargs: object) -> None:
        if round_number == 7:
            raise KeyboardInterrupt
        save(*args, round_number=round_number, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(server.round.loop, "save_checkpoint", cut)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(run)
    for number in (5, 6):
        file = run / "checkpoint" / f"{number:06d}" / "meta.json"
        file.write_bytes(file.read_bytes()[:-9])
    resumed = run_in_process(run)
    assert "000005 is damaged" in caplog.text
    assert resumed["failed_updates"] == 0
    assert resumed["head_sha256"] == whole["head_sha256"]
