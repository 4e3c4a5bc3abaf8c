"""docs/examples/reproduction: its experiment runs, and its table says what the curves say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from common.config import changed, load_config
from simulations.compare.parse import parse_comparison
from simulations.report import write_curves
from simulations.run import run_cell

FOLDER = Path(__file__).parents[2] / "docs" / "examples" / "reproduction"
SMALL = {
    "data": {"source": "digits", "calibration-examples": 64},
    "backbone": {"input-size": 64, "distill-steps": 0},
    "train": {"rounds": 2},
}


@pytest.fixture
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table", FOLDER / "table.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("tiny_toml")
def test_the_experiment_runs_with_what_the_command_sweeps(tmp_path: Path) -> None:
    config = load_config(FOLDER / "fedavg.toml")
    made = parse_comparison(
        changed(config, SMALL), strategies="fedavg", partitions="iid,shard:2", seeds="0",
        sweeps=["train.local-epochs=1,5", "train.batch-size=10,1000", "lr=0.1"],
        validation_fraction=0.2,
    )  # fmt: skip
    spec = made.strategies[0]
    assert len(made.sweeps["fedavg"]) == 4
    cell = made.sweep_cell(spec, made.partitions[1], made.sweeps["fedavg"][0])
    run_cell(tmp_path / "cell", cell.config.to_toml())
    lines = write_curves(tmp_path / "cell").read_text().splitlines()
    assert [line.split(",")[6] for line in lines] == ["round", "1", "2"]


def test_the_table_takes_each_cells_fastest_rate(table: ModuleType, tmp_path: Path) -> None:
    rows = [
        ("iid", 1, 1000, 0.1, 8, 0.9), ("iid", 1, 1000, 0.1, 9, 0.95), ("iid", 1, 1000, 1, 6, 0.9),
        ("iid", 5, 10, 0.1, 2, 0.91), ("iid", 5, 10, 1, 3, 0.92), ("shard:2", 1, 10, 1, 9, 0.5),
    ]  # fmt: skip
    lines = ["partition,hyperparameters,round,accuracy"]
    lines += [f"{p},lr={lr} local-epochs={e} batch-size={b},{r},{a}" for p, e, b, lr, r, a in rows]
    file = tmp_path / "curves.csv"
    file.write_text("\n".join(lines) + "\n")
    assert table.table(str(file), 0.9)[2:] == [
        "| iid | 1 | all | 6 | 1.0x | 1 |",
        "| iid | 5 | 10 | 2 | 3.0x | 0.1 |",
        "| shard:2 | 1 | 10 | never | - | - |",
    ]
