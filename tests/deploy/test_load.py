"""A thousand phones on twenty real SuperNodes: every update counts once, memory stays."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from numpy.linalg import norm
from safetensors.numpy import load_file

from common.config import load_config, parse_overrides
from common.experiment import client_shares
from simulations.deploy.launch import connection, device_command
from simulations.engines.flower import flower_environment, run_app
from simulations.run import run_in_process

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment

NODES, CLIENTS, ROUNDS = 20, 1000, 10
OPTIONS = (
    "partition.scheme=iid",
    "partition.min-examples=1",
    f"partition.num-clients={CLIENTS}",
    f"train.clients-per-round={CLIENTS}",
    f"train.rounds={ROUNDS}",
    "simulation.trainer=reference",
)
MODULE = "client.supernode"
FORKED_NODES = str(Path(__file__).with_name("forked_nodes.py"))
PROCESSES = ("simulations.deploy.superlink", "flwr-serverapp")
WARM_UP = 3  # rounds in which buffers find their size
# A process that kept the replies of a round would grow by 20 heads, 1,000 kB, beside what its
# buffers do: 300 to 600.
MOST_KB_A_ROUND = 900


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_update_of_a_thousand_phones_is_lost_or_counted_twice(
    deployment: Callable[..., Deployment],
    tiny: Callable[..., Path],
    tmp_path: Path,
) -> None:
    names = [f"n{i:02}" for i in range(NODES)]
    deployed = deployment(*names)
    run = tiny(*OPTIONS, name="deployed")
    deployed.start_server(fault="hosts")  # or it would take registered devices only
    start_hosts(deployed, names, run)
    for name in names:
        deployed.wait_for(name, "SuperNode ID")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_hosts, deployed, run)
        memory = watch(deployed, run, running)
        summary = running.result()

    shares = client_shares(load_config(run / "config.toml", parse_overrides([])))
    examples = sum(len(share.train) for share in shares)
    rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rounds) == ROUNDS
    for line in rounds:
        assert (line["cohort"], line["valid"], line["num-examples"]) == (CLIENTS, CLIENTS, examples)
        assert (line["rejected"], line["failed"], line["late"], line["dropped"]) == (0, 0, 0, 0)
    with (run / "devices.csv").open() as file:
        accounts = {int(row["client"]): int(row["valid"]) for row in csv.DictReader(file)}
    assert accounts == dict.fromkeys(range(CLIENTS), ROUNDS)
    assert summary["valid_updates"] == CLIENTS * ROUNDS

    reference = tiny(*OPTIONS, f"simulation.nodes={NODES}", name="reference")
    run_in_process(reference)
    head, same = (load_file(path / "head.safetensors") for path in (run, reference))
    for key, expected in same.items():
        assert norm(head[key] - expected) <= 1e-5 * norm(expected), key

    growth = {name: slope(np.array(memory[name])[WARM_UP:]) for name in PROCESSES}
    report = {name: {"rss-kb": memory[name], "kb-a-round": growth[name]} for name in PROCESSES}
    (tmp_path / "memory.json").write_text(json.dumps(report))
    print(json.dumps(report))
    for name, (likely, _, _) in growth.items():
        assert likely < MOST_KB_A_ROUND, f"{name} grows: {report[name]}"


def start_hosts(deployed: Deployment, names: Sequence[str], run: Path) -> None:
    """The processes of devices, each hosting fifty simulated phones in place of images."""
    nodes = []
    for number, name in enumerate(names):
        own = deployed.folder.parent / name
        own.mkdir()
        *supernode, _ = device_command(deployed.device(name), own)
        supernode += [f"partition-id={number} num-partitions={NODES}"]
        log = deployed.folder.parent / f"{name}.log"
        nodes.append((str(log), {"FLWR_HOME": str(own)}, supernode[supernode.index(MODULE) + 1 :]))
        log.touch()
        deployed.logs[name] = log
    orders = deployed.folder.parent / "nodes.json"
    orders.write_text(json.dumps({"experiment": str(run / "config.toml"), "nodes": nodes}))
    with orders.open("rb") as file:
        deployed.start("nodes", [sys.executable, FORKED_NODES], flower_environment(), stdin=file)


def run_hosts(deployed: Deployment, run: Path) -> dict[str, Any]:
    with connection(deployed.folder) as environment:
        return run_app(run, environment)


def watch(deployed: Deployment, run: Path, running: Future[object]) -> dict[str, list[int]]:
    """Resident kilobytes of the server's processes in each round: the least, between messages."""
    memory: dict[str, list[int]] = {name: [] for name in PROCESSES}
    metrics = run / "metrics.jsonl"
    while not running.done():
        rounds = metrics.read_text().count("\n") if metrics.exists() else 0
        if metrics.exists() and rounds < ROUNDS:
            found = psutil.Process(deployed.processes["server"].pid).children(recursive=True)
            lines = {p: " ".join(p.cmdline()) for p in found}
            for name, least in memory.items():
                (process,) = (p for p, c in lines.items() if name in c and "keeper.py" not in c)
                now = process.memory_info().rss // 1024
                if rounds < len(least):
                    least[rounds] = min(least[rounds], now)
                else:
                    least.append(now)
        sleep(0.2)
    return memory


def slope(values: np.ndarray) -> tuple[float, float, float]:
    """Least squares: growth a step, and the ends of its 95 % confidence interval."""
    from scipy import stats

    steps = np.arange(len(values))
    fit = stats.linregress(steps, values)
    half = stats.t.ppf(0.975, len(values) - 2) * fit.stderr
    return float(fit.slope), float(fit.slope - half), float(fit.slope + half)
