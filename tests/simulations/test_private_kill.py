"""SIGKILL between file operations of private runs: ledger, release, checkpoint, secret, summary."""

from __future__ import annotations

import json
import multiprocessing
import runpy
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from common.privacy.ledger import Ledger
from common.privacy.secret import keep_secret
from server.round.private import LEDGER, SECRET

Make = Callable[..., Path]

MOMENTS = 20
ROUNDS = 6
SCRIPT = str(Path(__file__).with_name("killed_run.py"))
RUNS = {
    "everyone": ("strategy.name=fedadam", "train.clients-per-round=0"),
    "adaptive": ("train.clients-per-round=0", "privacy.clip=adaptive"),
    "poisson": ("privacy.mechanism=poisson", "train.clients-per-round=4"),
    "min-separation": (
        "strategy.name=fedavgm", "privacy.mechanism=min-separation", "train.clients-per-round=4",
    ),
}  # fmt: skip
MEASURED = {"seconds", "train-seconds", "run", "model_path", "checksum"}


def steady(values: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if key not in MEASURED}


def outcome(run: Path) -> dict[str, object]:
    """Everything that a run leaves but what it measured."""
    last = run / "checkpoint" / f"{ROUNDS:06d}"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {
        "head": (run / "head.safetensors").read_bytes(),
        "state": (last / "state.safetensors").read_bytes(),
        "scalars": json.loads((last / "meta.json").read_text())["scalars"],
        "ledger": (run / LEDGER).read_bytes(),
        "metrics": [steady(json.loads(line)) for line in lines],
        "summary": steady(json.loads((run / "summary.json").read_text())),
    }


class Processes:
    """Real processes, in which everything is imported already."""

    def __init__(self, told: Path) -> None:
        self._told = told
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["sklearn.datasets", "server.app", "client.app", "client.cohort.cohort",
             "simulations.engines.in_process", "common.privacy.accounting"]
        )  # fmt: skip

    def go_on(self, run: Path, at: int = 0) -> int | None:
        """The exit code of a process that is killed before the file operation ``at``."""
        names = {"RUN": str(run), "AT": at, "TOLD": str(self._told)}
        process = self._context.Process(target=runpy.run_path, args=(SCRIPT, names, "__main__"))
        process.start()
        process.join()
        return process.exitcode

    def operations(self, run: Path) -> int:
        """How many file operations a run has, from its beginning to its end."""
        assert self.go_on(run) == 0
        return int(self._told.read_text())


def stage(run: Path) -> str:
    """What a killed process was at."""
    if (run / "checkpoint" / f"{ROUNDS:06d}").exists():
        return "end" if (run / SECRET).exists() else "summary"
    charged = len(Ledger(run / LEDGER).entries) if (run / LEDGER).exists() else 0
    kept = max((int(path.name) for path in (run / "checkpoint").glob("[0-9]*")), default=0)
    return "charged" if charged > kept else "round" if kept else "begin"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_20_moments_each_release_is_charged_once_and_all_bytes_are_the_same(
    tiny: Make, tmp_path: Path
) -> None:
    pytest.importorskip("dp_accounting", reason="pip install 'fedhead[privacy]'")
    processes, rng = Processes(tmp_path / "told"), np.random.default_rng(20)
    options = (
        "privacy.epsilon=30.0", "privacy.noise=secret", f"train.rounds={ROUNDS}", 'train.lr="auto"',
        "round.keep-checkpoints=2",
    )  # fmt: skip

    def made(mechanism: str, name: str) -> Path:
        """Another run of the same secret, so that its bytes can be compared."""
        run = tiny(*options, *RUNS[mechanism], name=name)
        if not (secret := tmp_path / f"{mechanism}.secret").exists():
            keep_secret(secret)
        shutil.copy2(secret, run / SECRET)
        return run

    for mechanism in RUNS:
        assert processes.go_on(made(mechanism, f"first-{mechanism}")) == 0  # fills the caches
    whole = {mechanism: made(mechanism, f"whole-{mechanism}") for mechanism in RUNS}
    lengths = {mechanism: processes.operations(run) for mechanism, run in whole.items()}
    expected = {mechanism: outcome(run) for mechanism, run in whole.items()}
    stages: Counter[str] = Counter()
    for number, mechanism in zip(range(MOMENTS), cycle(RUNS), strict=False):
        run = made(mechanism, f"{mechanism}-{number}")
        # Evenly over the run, so that each of its parts has its share.
        at = 1 + int((number + rng.random()) / MOMENTS * (lengths[mechanism] - 1))
        assert processes.go_on(run, at) == -signal.SIGKILL, (number, at)
        stages[stage(run)] += 1
        if number % 2:
            again = int(rng.integers(1, 60))  # soon after it goes on
            if processes.go_on(run, again) == -signal.SIGKILL:
                stages[stage(run)] += 1
        assert processes.go_on(run) == 0
        assert outcome(run) == expected[mechanism], (number, at)
        assert [e.round for e in Ledger(run / LEDGER).entries] == list(range(1, ROUNDS + 1))
        assert not (run / SECRET).exists()
        assert not [path for path in run.rglob(".*") if path.name != ".lock"]
    print(lengths, dict(stages))
    assert {"begin", "charged", "round", "summary"} <= stages.keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_while_its_secret_is_made_a_run_has_one_secret_in_the_end(
    tiny: Make, tmp_path: Path
) -> None:
    processes = Processes(tmp_path / "told")
    options = ("privacy.epsilon=30.0", "privacy.noise=secret", "train.rounds=2")

    def made(name: str) -> Path:
        return tiny(*options, *RUNS["adaptive"], name=name)

    assert processes.go_on(made("first")) == 0  # fills the caches
    length, seen = processes.operations(made("whole")), set[str]()
    for at in range(2, length, 3):
        run = made(f"at-{at}")
        assert processes.go_on(run, at) == -signal.SIGKILL
        seen |= {path.name for path in run.iterdir() if SECRET in path.name}
        assert processes.go_on(run) == 0
        entries = Ledger(run / LEDGER).entries
        assert [entry.round for entry in entries] == [1, 2]
        assert len({entry.secret for entry in entries}) == 1
        assert not [path for path in run.iterdir() if SECRET in path.name]
    assert SECRET in seen
