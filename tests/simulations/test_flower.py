"""Flower's own simulation, with a real SuperLink and Ray: the same head, and clean ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

from client.app import app as client_app
from common.errors import FedheadError, MissingExtraError
from fedhead.cli.main import cli
from server.app import app as server_app
from simulations.engines.flower import run_flower, superlink
from simulations.engines.in_process import InProcessGrid
from simulations.run import run_in_process

Make = Callable[..., Path]

ROOT = Path(__file__).parent.parent.parent
FEDHEAD = [sys.executable, "-m", "fedhead"]
FEDAVG = "flwr.serverapp.strategy:FedAvg"


def processes_with(variable: str) -> dict[int, str]:
    """Command lines of the other living processes whose environment holds the variable."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            if variable.encode() in environment and int(folder.name) != os.getpid():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it has just ended, or is another user's
    return found


# They belong to pytest's own process, and end with it.
OF_PYTEST = ("multiprocessing.resource_tracker", "wandb-core")


def assert_alone(cache: Path) -> None:
    deadline = time.monotonic() + 20
    while others := {
        number: command
        for number, command in processes_with(f"FEDHEAD_CACHE={cache}").items()
        if not any(name in command for name in OF_PYTEST)
    }:
        assert time.monotonic() < deadline, others
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def nothing_stays_behind(cache: Path) -> Iterator[None]:
    """No process that a test started outlives it."""
    yield
    assert_alone(cache)


def matrix(run: Path) -> np.ndarray:
    head = load_file(run / "head.safetensors")
    return np.concatenate([head["weight"], head["bias"][:, None]], axis=1).astype(np.float64)


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_head(run: Path, reference: Path) -> None:
    a, b = matrix(run), matrix(reference)
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
    for one, other in zip(lines(run), lines(reference), strict=True):
        for key in ("accuracy", "balanced-accuracy"):
            assert one[key] == other[key]
    files = [folder / "confusion.json" for folder in (run, reference)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_flower_gives_the_head_and_the_figures_of_the_in_process_engine(tiny: Make) -> None:
    overrides = ("strategy.name=scaffold", "train.rounds=3", "baseline.enabled=true")
    reference, run = tiny(*overrides, name="reference"), tiny(*overrides, name="flower")
    ours, theirs = run_in_process(reference), run_flower(run, num_supernodes=2)
    assert_same_head(run, reference)
    for key in (
        "accuracy", "centralized_accuracy", "ridge_accuracy", "client_accuracy_mean", "rounds",
        "clients", "valid_updates", "uplink_bytes", "downlink_bytes", "fingerprint",
    ):  # fmt: skip
        assert theirs[key] == ours[key] is not None, key


@pytest.mark.slow
def test_flower_brings_what_a_codec_has_made(tiny: Make) -> None:
    overrides = ("codec.up=drive", "train.rounds=2", "train.clients-per-round=0")
    reference, run = tiny(*overrides, name="reference"), tiny(*overrides, name="flower")
    ours, theirs = run_in_process(reference), run_flower(run, num_supernodes=2)
    # Rounding turns a sign here and there, which is as large as all of a number.
    a, b = matrix(run), matrix(reference)
    assert np.linalg.norm(a - b) <= 0.02 * np.linalg.norm(b)
    for key in ("valid_updates", "rejected_updates", "uplink_bytes", "downlink_bytes"):
        assert theirs[key] == ours[key] is not None, key


@pytest.mark.slow
def test_flower_opens_the_same_backdoor(tiny: Make) -> None:
    # Clients in other processes derive the trigger and the poisoned examples by themselves.
    overrides = (
        "attack.kind=backdoor", "attack.fraction=0.25", "attack.target=3", "train.rounds=3",
        "train.clients-per-round=0",
    )  # fmt: skip
    reference, run = tiny(*overrides, name="reference"), tiny(*overrides, name="flower")
    ours, theirs = run_in_process(reference), run_flower(run, num_supernodes=2)
    assert_same_head(run, reference)
    assert theirs["backdoor_success"] == ours["backdoor_success"] > 0.2


@pytest.mark.slow
def test_stock_fedavg_gives_the_same_head_with_a_supernode_for_each_client(tiny: Make) -> None:
    overrides = (f"strategy.name={FEDAVG}", "train.rounds=3")
    reference, run = tiny(*overrides, name="reference"), tiny(*overrides, name="flower")
    run_in_process(reference)
    run_flower(run, num_supernodes=8)
    assert_same_head(run, reference)


@pytest.mark.slow
def test_plain_flwr_run_of_a_fresh_checkout(tiny: Make, tmp_path: Path) -> None:
    app, run = tmp_path / "checkout", tmp_path / "plain"
    for name in ("client", "common", "fedhead", "server", "simulations"):
        shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, app)
    (app / "runs").mkdir()
    (app / "runs" / "notes.md").write_text("mine")
    reference = tiny("train.rounds=2", name="reference")
    run_in_process(reference)

    def flwr(*arguments: str) -> str:
        done = subprocess.run(
            ["flwr", *arguments], cwd=app, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with superlink() as environment:
        config = f"experiment='{tmp_path / 'tiny.toml'}' overrides='train.rounds=2; out={run}'"
        nodes = "num-supernodes=2 client-resources-num-cpus=1"
        log = flwr("run", ".", "--run-config", config, "--federation-config", nodes, "--stream")
        assert json.loads(flwr("ls", "--format", "json"))["runs"][0]["status"] == (
            "finished:completed"
        )
        (bundle,) = (Path(environment["FLWR_HOME"]) / "apps").iterdir()
        assert_nobody_else_is_answered(environment)
        top = {path.name for path in bundle.iterdir()} - {".info"}
        assert top == {
            "client", "common", "fedhead", "server", "simulations", "pyproject.toml", "LICENSE",
        }  # fmt: skip
    assert "fedhead INFO: round 2/2" in log
    assert (run / "model.pt").exists()
    assert_same_head(run, reference)


def assert_nobody_else_is_answered(environment: Mapping[str, str]) -> None:
    """Another user of this machine reaches the SuperLink's port, and has no secret."""
    home = Path(environment["FLWR_HOME"])
    connection = tomllib.loads((home / "config.toml").read_text())["superlink"]["fedhead"]
    for path in ("/docs", "/health", "/v1/control/start-run", "/v1/runtime/acquire-task"):
        answer = httpx.post(f"http://{connection['address']}{path}")
        assert (answer.status_code, answer.content) == (401, b"")
    assert home.stat().st_mode & 0o77 == 0


@pytest.mark.slow
def test_a_failing_run_is_one_clear_line_and_a_non_zero_exit_code(
    tiny: Make, tmp_path: Path
) -> None:
    run = tiny(f"backbone.weights=file:{tmp_path / 'nowhere'}")
    done = subprocess.run(
        [*FEDHEAD, "resume", str(run), "--engine", "flower"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    # A slow machine says in between that it is still at it.
    (line,) = re.sub(r"fedhead .*: \d+ s\n", "", done.stderr).splitlines()
    assert line.startswith("fedhead: ")
    assert "nowhere" in line
    log = (run / "flower.log").read_text().splitlines()
    assert [text for text in log if text.startswith("fedhead ")] == [
        line.replace("fedhead: ", "fedhead ERROR: ")
    ]


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing_running_and_can_be_resumed(
    tiny: Make, cache: Path
) -> None:
    reference, run = (tiny("train.rounds=60", name=name) for name in ("reference", "cut"))
    process = subprocess.Popen(
        [*FEDHEAD, "resume", str(run), "--engine", "flower"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    _, log = process.communicate()
    assert_alone(cache)
    assert process.returncode == 130
    assert f"continue with: fedhead resume {run} --engine flower" in log.splitlines()[-1]
    assert not (run / "summary.json").exists()
    # Clients' state and checkpoints are files: the other engine goes on as well.
    run_in_process(run)
    run_in_process(reference)
    assert_same_head(run, reference)


@pytest.mark.slow
def test_a_killed_fedhead_takes_its_superlink_along(tmp_path: Path, cache: Path) -> None:
    code = (
        "import time; from simulations.engines.flower import superlink\n"
        "with superlink(): print('up', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert any("private_superlink" in c for c in processes_with(f"FEDHEAD_CACHE={cache}").values())
    process.kill()
    process.communicate()
    assert_alone(cache)


def test_too_few_nodes_for_a_stock_strategy_are_one_clear_line(tiny: Make) -> None:
    values = {"experiment": str(tiny(f"strategy.name={FEDAVG}") / "config.toml"), "overrides": ""}
    grid = InProcessGrid(client_app, 2, values)
    context = Context(1, 1, {}, RecordDict(), dict(values))
    with pytest.raises(FedheadError, match="8 clients are on 2 nodes .* set num-supernodes=8"):
        server_app(grid, context)


def test_without_ray_the_error_names_the_extra_and_no_run_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment.toml").touch()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"'ray': pip install 'fedhead\[flower\]'"):
        cli(
            ["run", str(tmp_path / "experiment.toml"), "--out", str(tmp_path / "run"),
             "--engine", "flower"],
            standalone_mode=False,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
