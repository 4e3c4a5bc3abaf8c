"""The benchmark's own machinery; its runners really run in the slow tier."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from client.local import batch_orders
from client.sgd import train_head
from common.errors import FedheadError
from common.types import LocalTraining
from server.round.private import LEDGER
from simulations.bench import privacy, simulation
from simulations.bench.memory import PeakMemory
from simulations.bench.simulation import Measurement, bench_simulation, show, to_json
from simulations.bench.work import Data, Result, Work, head_file, read_work, write_data

ROOT = Path(__file__).parents[2]
FIGURES = [
    Measurement("fedhead", 10, Result((0.1, 0.3, 0.2), 0.9, 0.3, (0.1, 0.1)), 1_000),
    Measurement("flower", 10, Result((40.0,), 0.9), 5_000),
    Measurement("pfl", 10, Result((10.0, 30.0, 20.0), 0.905), 4_000),
    Measurement("fedhead", 100, Result((1.0,), 0.9, 1.5, (0.5,)), 2_000),
]


def test_figures_are_medians_and_ratios_of_them() -> None:
    figures = to_json(FIGURES)
    assert figures["ms_per_client"]["fedhead"] == {"10": pytest.approx(20.0), "100": 10.0}
    assert figures["speedup_vs_flower"] == {"10": pytest.approx(200.0)}
    assert figures["speedup_vs_pfl"] == {"10": pytest.approx(100.0)}
    assert figures["floor_ratio"] == {"10": pytest.approx(2.0), "100": pytest.approx(2.0)}
    assert figures["peak_rss_bytes"]["flower"] == {"10": 5_000}
    assert figures["gram_seconds"]["10"] == pytest.approx(0.3)
    assert figures["scaling"] == [{"clients": 10, "to": 100, "time_ratio": pytest.approx(5.0)}]
    json.dumps(figures)


def test_tables_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show(FIGURES)
    out = capsys.readouterr().out
    assert "200x" in out
    assert max(map(len, out.splitlines())) <= 80


def test_runners_whose_accuracies_differ_are_an_error(tmp_path: Path) -> None:
    wrong = [*FIGURES[:2], Measurement("pfl", 10, Result((1.0,), 0.5), 0)]
    with pytest.raises(FedheadError, match="did not do the same work"):
        simulation._check(wrong, tmp_path)


def train(work: Work, seed: int, *, epochs: int, batch_size: int = 10) -> np.ndarray:
    """Two rounds of FedAvg by the reference, in batch orders of its own."""
    data, matrix = Data(work), np.zeros((10, 1281), np.float32)
    training = LocalTraining(work.lr, epochs, batch_size)
    for number in (1, 2):
        deltas = []
        for client in range(work.clients):
            x, y = data.client(client)
            x = np.column_stack([x, np.ones(len(x), np.float32)])
            orders = batch_orders(len(x), training, seed=seed, round_number=number, client=client)
            start = torch.from_numpy(matrix)
            deltas.append(
                train_head(
                    torch.from_numpy(x), torch.from_numpy(y), start, training, orders
                ).delta.numpy()
            )
        matrix = matrix + np.mean(deltas, axis=0)
    return matrix


def test_heads_tell_whether_a_runner_did_the_same_work(tmp_path: Path) -> None:
    work = Work(str(tmp_path), clients=20, rounds=1)
    write_data(work)
    pair = [FIGURES[0], FIGURES[1]]
    np.save(head_file(tmp_path, "fedhead"), train(work, 0, epochs=5))
    np.save(head_file(tmp_path, "flower"), train(work, 1, epochs=5))
    simulation._check(pair, tmp_path)
    for less in ({"epochs": 3}, {"epochs": 5, "batch_size": 25}):
        np.save(head_file(tmp_path, "flower"), train(work, 1, **less))
        with pytest.raises(FedheadError, match="flower did not do the same work: its head is"):
            simulation._check(pair, tmp_path)


def test_sizes_that_would_take_hours_are_refused() -> None:
    with pytest.raises(FedheadError, match="at most 10000 in --sizes"):
        bench_simulation([100_000], [], rounds=1)


@pytest.mark.slow
def test_a_runner_that_fails_is_named(tmp_path: Path) -> None:
    file = tmp_path / "work.json"
    file.write_text("{}")
    with pytest.raises(FedheadError, match="fedhead with 3 clients failed"):
        simulation._run("fedhead", file, 3)


def test_data_are_the_same_for_all_runners_and_can_be_learned(tmp_path: Path) -> None:
    work = Work(str(tmp_path / "a"), clients=40, rounds=1)
    file = write_data(work)
    assert read_work(str(file)) == work
    data = Data(work)
    assert data.q.shape == (2000, 1280)
    x, y = data.client(39)
    np.testing.assert_array_equal(y, data.labels[1950:])
    assert abs(float(x.mean())) < 0.2
    assert 0.8 < float(x.std()) < 1.2
    means = np.stack([data.affine(data.q[data.labels == k]).mean(0) for k in range(10)])
    assert (
        data.score("test", means.astype(np.float32), -0.5 * (means**2).sum(1)) > 0.5
    )  # chance: 0.1


def test_memory_of_children_counts() -> None:
    child = "import time; x = b'1' * 80_000_000; time.sleep(1)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with (
        subprocess.Popen([sys.executable, "-c", code]) as process,
        PeakMemory(process.pid) as memory,
    ):
        process.wait()
    assert 80_000_000 < memory.peak_bytes < 250_000_000


@pytest.mark.slow
def test_our_runner_gives_the_mean_of_everybodys_training(tmp_path: Path) -> None:
    work = Work(str(tmp_path), clients=40, rounds=1)
    done = subprocess.run(
        [sys.executable, "-m", "simulations.bench.run_fedhead", str(write_data(work))],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["round_seconds"]) == 1
    assert len(result["floor_seconds"]) == 1
    assert result["accuracy"] > 0.5  # chance: 0.1
    # The warm-up and one timed round.
    head, want = np.load(head_file(tmp_path, "fedhead")), train(work, work.seed, epochs=5)
    assert np.abs(head - want).max() <= 1e-4 * np.abs(want).max()


def test_rounds_with_and_without_privacy_train_on_the_same(tmp_path: Path) -> None:
    work = Work(str(tmp_path), clients=20, rounds=2, features=16, local_epochs=1, batch_size=0)
    write_data(work)
    plain, private = privacy.measured(work)
    assert (plain.kind, private.kind) == ("none", "epsilon 4")
    assert len(plain.seconds) == len(private.seconds) == 2
    assert all(0 < rows.payload_bytes - 4 * 10 * 17 < 300 for rows in (plain, private))
    # The ledger has all rounds, also the one that is not timed.
    assert len((tmp_path / LEDGER).read_text().splitlines()) == 3


@pytest.mark.slow
def test_all_runners_do_the_same_work() -> None:
    measurements = bench_simulation([40], [80], rounds=1)
    assert [(m.runner, m.clients) for m in measurements] == [
        ("fedhead", 40), ("flower", 40), ("pfl", 40), ("fedhead", 80),
    ]  # fmt: skip
    assert all(m.peak_bytes > 50_000_000 for m in measurements)
