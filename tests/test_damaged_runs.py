"""What runs, devices and comparisons do about files that are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import load_file

from client.app import host_of
from common.config import load_config
from common.errors import DamagedError, RunError
from common.messages import DescribeRequest
from server.export.trained import TrainedModel
from server.record.checkpoint import load_latest
from server.record.runfolder import RunFolder, intact_rounds
from simulations.compare.pool import is_finished
from simulations.run import open_run
from tests.readback.devices import images
from tests.readback.runs import checkpoints, run_folder


def test_a_damaged_line_of_metrics_loses_no_round_unsaid(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    file = folder.path / "metrics.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    assert intact_rounds(folder.path)[0] == 2
    for content, intact, why in (
        (first[:9] + b"\xff" + first[10:] + second, 0, "line 1 is damaged"),
        (first + second[:-30], 1, "ends after round 1"),
        (second, 0, "line 1: round 2"),
        (b"", 0, "ends after round 0"),
    ):
        file.write_bytes(content)
        rounds, because = intact_rounds(folder.path)
        assert rounds == intact
        assert because.startswith(f"{file}")
        assert why in because


def test_a_resumed_run_goes_back_to_where_its_metrics_are_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints(tmp_path, 3, 4, 5)
    found = load_latest(tmp_path, rounds=4, because="metrics.jsonl, line 5 is damaged")
    assert found is not None
    assert found.round_number == 4
    assert "000005 is skipped (metrics.jsonl, line 5 is damaged)" in caplog.text
    with pytest.raises(RunError, match="line 3 is damaged, and the oldest checkpoint is of"):
        load_latest(tmp_path, rounds=2, because="metrics.jsonl, line 3 is damaged")


def test_other_tools_read_these_files_as_what_they_are(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    head = load_file(folder.head)
    assert {name: array.shape for name, array in head.items()} == {"weight": (2, 3), "bias": (2,)}
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]
    assert json.loads(folder.summary.read_text())["rounds"] == 2
    again = load_config(folder.path / "config.toml")
    assert (folder.path / "config.toml").read_text() == again.to_toml()


def test_a_changed_configuration_of_a_run_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    file = folder.path / "config.toml"
    file.write_text(file.read_text().replace("seed = 0", "seed = 1", 1))
    with pytest.raises(DamagedError, match="config.toml is damaged .* keeps its configuration"):
        open_run(folder.path)
    with pytest.raises(RunError, match="holds a run of another configuration"):
        RunFolder(folder.path, load_config(file))


def test_a_device_keeps_the_features_that_it_used_last(
    tmp_path: Path, trained: TrainedModel
) -> None:
    folder, state = images(tmp_path / "images"), tmp_path / "state"
    host = host_of({"data": f"folder:{folder}", "state": str(state), "client-id": 7}, {}, 7)
    for day in range(10):
        Image.new("RGB", (4, 4), (200, day, 0)).save(folder / "ant" / f"new{day}.png")
        host.describe(DescribeRequest("1a2b", ("ant", "bee"), 0.5, 3, "2026"))
        host.train_features(7, trained.backbone, "1a2b")
    assert len([*(state / "features").iterdir()]) == 8


def test_a_comparison_runs_a_damaged_cell_again(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    assert is_finished(folder.path)
    for path in (folder.summary, folder.clients, folder.path / "metrics.jsonl"):
        data = path.read_bytes()
        path.write_bytes(data[:-40])
        assert not is_finished(folder.path)
        path.write_bytes(data)
    assert is_finished(folder.path)
    folder.summary.unlink()
    assert not is_finished(folder.path)
