"""Where a head starts: rows by the names of classes, on the same backbone only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from common.config import load_config
from common.errors import ConfigError, RunError
from common.types import Head
from server.export.trained import TrainedModel
from server.round.build import check_strategy
from server.round.first_head import FormerHead, first_head
from simulations.run import open_run, run_cell, run_in_process

Make = Callable[..., Path]
FORMER = ("ant", "bee", "cat")


@pytest.fixture
def kept(trained: TrainedModel, tmp_path: Path) -> Head:
    """A head of three classes, taken over into the test's folder."""
    rng = np.random.default_rng(0)
    features = trained.backbone.spec.num_features
    head = Head.from_matrix(rng.standard_normal((3, features + 1)).astype(np.float32))
    FormerHead(head, FORMER, trained.backbone.fingerprint, "runs/old").keep(tmp_path)
    return head


@pytest.mark.parametrize(
    ("classes", "rows", "words"),
    [
        (FORMER, [0, 1, 2], "3 of 3 classes"),
        (("cat", "ant", "bee"), [2, 0, 1], "3 of 3 classes"),
        (("ant", "asp", "bee", "cat"), [0, None, 1, 2], "new ones, which start at zero: asp"),
        (("bee", "ant"), [1, 0], "left out: cat"),
        (
            ("yak", "bee"),
            [None, 1],
            "1 of 2 classes; new ones, which start at zero: yak; left out:",
        ),
    ],
)
def test_rows_follow_the_names_of_classes(
    kept: Head, trained: TrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    classes: tuple[str, ...], rows: list[int | None], words: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "fedhead")
    head = first_head(tmp_path, trained.backbone, classes)
    zeros = np.zeros(kept.num_features + 1, np.float32)
    expected = [zeros if row is None else kept.matrix[row] for row in rows]
    np.testing.assert_array_equal(head.matrix, np.stack(expected))
    assert words in caplog.text


def test_without_a_former_run_a_head_is_zero(trained: TrainedModel, tmp_path: Path) -> None:
    assert not first_head(tmp_path, trained.backbone, FORMER).matrix.any()


def test_a_head_of_other_classes_altogether_is_refused(
    kept: Head, trained: TrainedModel, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="runs/old has other classes: ant, bee, cat; this run's"):
        first_head(tmp_path, trained.backbone, ("yak", "owl"))


def test_a_head_of_another_backbone_is_refused(trained: TrainedModel, tmp_path: Path) -> None:
    head = Head.zeros(3, trained.backbone.spec.num_features)
    FormerHead(head, FORMER, "0" * 64, "runs/old").keep(tmp_path)
    with pytest.raises(RunError, match=r"runs/old is for backbone 000000000000, this run's is"):
        first_head(tmp_path, trained.backbone, FORMER)


@pytest.mark.parametrize("position", [0, 7, 40, 200, 1000, -1])
def test_a_damaged_first_head_is_one_line(
    kept: Head, trained: TrainedModel, tmp_path: Path, position: int
) -> None:
    file = tmp_path / "first-head.safetensors"
    data = bytearray(file.read_bytes())
    data[position] ^= 4
    file.write_bytes(data)
    with pytest.raises(RunError, match=r"first-head\.safetensors is damaged"):
        first_head(tmp_path, trained.backbone, FORMER)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"name": "fed3r"}, "init-from does not apply"),
        ({"init": "fed3r"}, "exclude each other"),
    ],
)
def test_a_strategy_that_has_a_head_of_its_own_takes_no_other(
    strategy: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_strategy(load_config(None, {"strategy": {"init-from": "runs/old", **strategy}}))


def matrix(run: Path) -> np.ndarray:
    head = load_file(run / "head.safetensors")
    return np.concatenate([head["weight"], head["bias"][:, None]], axis=1)


def test_a_run_begins_with_the_former_head_and_backbone(quick: Make, tmp_path: Path) -> None:
    former = quick("train.rounds=2", name="former")
    before = run_in_process(former)
    # Other images to quantize with, but the head's own backbone.
    options = (f"strategy.init-from={former}", "data.seed=5", "train.lr=1e-9", "train.rounds=1")
    later = quick(*options, name="later")
    former.rename(tmp_path / "gone")  # it was taken over when the run was made
    after = run_in_process(later)
    assert after["fingerprint"] == before["fingerprint"]
    np.testing.assert_allclose(matrix(later), matrix(tmp_path / "gone"), atol=1e-6)
    again = quick(f"strategy.init-from={tmp_path / 'gone'}", *options[1:], name="again")
    assert run_in_process(again)["head_sha256"] == after["head_sha256"]


def test_stock_strategies_and_cells_of_a_comparison_start_there_too(
    quick: Make, tmp_path: Path
) -> None:
    former = quick("train.rounds=1", name="former")
    run_in_process(former)
    options = (f"strategy.init-from={former}", "train.lr=1e-9", "train.rounds=1")
    stock = quick(*options, "strategy.name=flwr.serverapp.strategy:FedAvg", name="stock")
    run_in_process(stock)
    cell = tmp_path / "cell"
    run_cell(cell, open_run(quick(*options, name="same")).to_toml())
    for run in (stock, cell):
        np.testing.assert_allclose(matrix(run), matrix(former), atol=1e-6)
    assert not (cell / "backbone.safetensors").exists()


@pytest.mark.slow
def test_a_head_of_another_backbone_section_is_refused_by_key(quick: Make, tmp_path: Path) -> None:
    former = quick("train.rounds=1", name="former")
    run_in_process(former)
    options = (f"strategy.init-from={former}", "backbone.input-size=32")
    with pytest.raises(RunError, match=r"backbone\.input-size=32, but 64 there"):
        quick(*options, name="later")
    assert not (tmp_path / "later").exists()


def test_a_run_without_a_round_gives_no_head(quick: Make, tmp_path: Path) -> None:
    former = quick(name="former")
    with pytest.raises(RunError, match="former has no finished round yet"):
        quick(f"strategy.init-from={former}", name="later")
    with pytest.raises(RunError, match=r"strategy\.init-from: .*nowhere is not a run"):
        quick(f"strategy.init-from={tmp_path / 'nowhere'}", name="later")
    assert not (tmp_path / "later").exists()
