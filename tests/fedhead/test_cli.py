"""The command line as a person meets it: one clear line for what can be mended, exit codes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import server.app
from fedhead.cli.runs import Target
from server.export.exporters import FILES
from server.export.runtime_cards import ExportReport
from server.strategies import STRATEGIES

Fedhead = Callable[..., tuple[int, str, str]]


@pytest.fixture
def experiment(tiny_toml: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_toml)
    return path


def images(folder: Path, classes: int = 2, each: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for k in range(classes):
        for i in range(each):
            path = folder / f"class{k}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)
    return folder


def test_run_prints_a_table_of_80_columns(
    fedhead: Fedhead, experiment: Path, tmp_path: Path
) -> None:
    code, out, err = fedhead("run", experiment, "--set", "train.rounds=2")
    assert code == 0
    assert max(map(len, (out + err).splitlines())) <= 100
    assert max(map(len, out.splitlines())) <= 80
    for word in (
        "accuracy, fedavg",
        "uplink",
        "model.pt",
        "seconds",
        " ± ",
        "(n = ",
        "8 clients, ",
    ):
        assert word in out
    assert "round 2/2" in err
    assert "not shown: it takes 10 clients with 20 test images each, here" in " ".join(
        out.replace("│", " ").split()
    )


@pytest.mark.slow
def test_runs_number_their_folders_and_are_exported_again(
    fedhead: Fedhead, experiment: Path, tmp_path: Path
) -> None:
    code, _, _ = fedhead("run", experiment, "--set", "train.rounds=2")
    assert code == 0
    code, out, _ = fedhead("run", experiment, "--set", "train.rounds=2", "--json")
    assert code == 0
    summary = json.loads(out.strip().splitlines()[-1])
    assert summary["run"] == str(tmp_path / "runs" / "tiny-2")
    assert summary["rounds"] == 2
    image = tmp_path / "digit.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    code, out, _ = fedhead("predict", summary["model_path"], image)
    assert code == 0
    assert out.startswith(f"{image}  ")
    code, out, _ = fedhead("export", tmp_path / "runs" / "tiny", "--out", tmp_path / "again.pt")
    assert code == 0
    again = (tmp_path / "again.json").read_text()
    assert again == (tmp_path / "runs" / "tiny" / "model.json").read_text()
    targets = ("--target", "lite", "--target", "head", "--target", "lite")
    code, out, _ = fedhead("export", tmp_path / "runs" / "tiny", *targets, "--bytecode", "7")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for word in ("device.ptl", "bit-equal", "device-head.safetensors"):
        assert word in out
    code, out, _ = fedhead(
        "export", tmp_path / "runs" / "tiny", *targets, "--out", tmp_path / "phone", "--json"
    )
    assert [file["target"] for file in json.loads(out)["files"]] == ["lite", "head"]
    assert {path.name for path in (tmp_path / "phone").iterdir()} == {
        "device.ptl", "device.ptl.json", "device-head.safetensors", "device-head.safetensors.json",
    }  # fmt: skip


def test_the_command_line_offers_every_target_there_is() -> None:
    assert [target.value for target in Target] == list(FILES)


class _Mine:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("stolen", "w")


def _prepare_bad(name: str, tmp_path: Path) -> list[object]:
    """What is wrong, as arguments of ``fedhead run tiny.toml``."""
    folder = tmp_path / "data"
    if name == "missing folder":
        return ["--set", f"data.source=folder:{folder}"]
    if name == "empty class folder":
        images(folder)
        (folder / "zebra").mkdir()
        return ["--set", f"data.source=folder:{folder}"]
    if name == "one class":
        return ["--set", f"data.source=folder:{images(folder, classes=1)}"]
    if name == "text named png, strict":
        (images(folder) / "class0" / "note.png").write_text("not an image")
        return ["--set", f"data.source=folder:{folder}", "--set", "data.strict=true"]
    weights = tmp_path / "weights.pt"
    if name == "pickle with code":
        weights.write_bytes(pickle.dumps({"features": _Mine()}))
    if name == "not safetensors":
        weights = weights.with_suffix(".safetensors")
        weights.write_bytes(b"hello")
    return ["--set", f"backbone.weights=file:{weights}"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing folder", ["data", "no such folder"]),
        ("empty class folder", ["zebra"]),
        ("one class", ["1 class", "at least 2"]),
        ("text named png, strict", ["note.png"]),
        ("missing weights", ["weights.pt"]),
        ("pickle with code", ["weights.pt"]),
        ("not safetensors", ["weights.safetensors"]),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_1(
    fedhead: Fedhead, experiment: Path, tmp_path: Path, name: str, words: list[str]
) -> None:
    code, out, err = fedhead("run", experiment, *_prepare_bad(name, tmp_path))
    assert (code, out) == (1, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("fedhead: ")
    assert all(word in last for word in words), last
    assert "Traceback" not in err
    assert not (tmp_path / "stolen").exists()


@pytest.mark.slow
def test_a_broken_image_is_named_and_the_run_goes_on(
    fedhead: Fedhead, experiment: Path, tmp_path: Path
) -> None:
    folder = images(tmp_path / "data", each=30)
    (folder / "class0" / "note.png").write_text("not an image")
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(folder / "class1" / "dot.png")
    code, out, err = fedhead(
        "run", experiment, "--json", "--set", f"data.source=folder:{folder}",
        "--set", "partition.num-clients=2", "--set", "train.clients-per-round=0",
        "--set", "partition.scheme=iid", "--set", "data.calibration-examples=8",
    )  # fmt: skip
    assert code == 0, err
    assert "skipped 1 of 62 images" in err
    assert "note.png" in err
    assert json.loads(out)["clients"] == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "none.toml"], ["none.toml", "no such file", "known: attack, clipart, "]),
        (["run", "mnist5k", "--set", "train.lr=-1"], ["experiments/mnist5k.toml", "train.lr=-1"]),
        (["compare", "attack", "--set", "train.lr=-1"], ["experiments/attack.toml", "train.lr=-1"]),
        (["run", "tiny.toml", "--set", "train.rouns=3"], ["did you mean train.rounds"]),
        (["run", "tiny.toml", "--set", "train.lr=-1"], ["train.lr=-1"]),
        (
            ["run", "tiny.toml", "--set", "backbone.arch=resnet18"],
            ["backbone.arch", "mobilenet_v2"],
        ),
        (["run", "tiny.toml", "--set", "data.source=CIFAR11"], ["CIFAR10"]),
        (["run", "tiny.toml", "--set", "data.source=CIFAR10"], ["CIFAR10", "download"]),
        (["resume", "nowhere"], ["nowhere", "no run"]),
        (["export", "nowhere"], ["nowhere", "no run"]),
        (["predict", "nothing.pt", "a.png"], ["nothing.pt"]),
    ],
)
def test_wrong_arguments_are_one_clear_line(
    fedhead: Fedhead, experiment: Path, args: list[str], words: list[str]
) -> None:
    code, out, err = fedhead(*args)
    assert (code, out) == (1, "")
    last = err.strip().splitlines()[-1]
    assert all(word in last for word in words), last
    assert "Traceback" not in err


def test_partition_draws_a_plot(fedhead: Fedhead, experiment: Path, tmp_path: Path) -> None:
    code, out, _ = fedhead("partition", experiment, "--out", tmp_path / "who.png")
    assert code == 0
    assert "8 clients" in out
    with Image.open(tmp_path / "who.png") as plot:
        assert plot.size[0] > 300


def test_info_names_versions_and_engines(fedhead: Fedhead) -> None:
    code, out, _ = fedhead("info", "--json")
    assert code == 0
    assert "qnnpack" in json.loads(out)["quantized_engines"]


def test_finished_runs_are_reported_in_80_columns_as_json_and_in_files(
    fedhead: Fedhead, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))
    code, _, err = fedhead("report", tmp_path)
    assert (code, err) == (1, f"fedhead: no finished run in {tmp_path} (0 unfinished)\n")
    for seed in (0, 1):
        words = ("--set", f"seed={seed}", "--set", "data.seed=0", "--set", "train.rounds=1")
        assert fedhead("run", experiment, *words)[0] == 0
    code, out, _ = fedhead("report", "runs", "--target", 0.01)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "fedavg lr=0.01" in out
    assert "target 1.0 % (as asked for)" in out
    assert out.splitlines()[-1] == "runs/report.html"
    assert (tmp_path / "runs" / "report.html").exists()
    code, out, _ = fedhead("report", "runs/tiny", "runs/tiny-2", "--json")
    (row,) = json.loads(out)["leaderboard"]
    runs = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/summary.json")]
    assert row["accuracy"] == pytest.approx(np.mean([run["accuracy"] for run in runs]))
    assert row["worst_client"] is None  # eight clients are too few
    assert (tmp_path / "report" / "leaderboard.csv").exists()


def test_a_run_that_never_began_leaves_nothing_in_the_way(
    fedhead: Fedhead, experiment: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    bad = ("--set", "partition.num-clients=100000", "--set", "train.clients-per-round=0")
    code, _, err = fedhead("run", experiment, "--out", out, *bad)
    assert code == 1
    assert "100000 clients" in err
    assert not out.exists()


def test_every_key_and_every_strategy_is_explained(fedhead: Fedhead) -> None:
    code, out, _ = fedhead("config")
    assert code == 0
    for word in ("[availability]", "close-fraction = 1.0", "[train]", 'lr = "auto"'):
        assert word in out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    bare = [
        a
        for a, b in zip(lines, [*lines[1:], ""], strict=True)
        if " = " in a and not b.startswith("    ")
    ]
    assert bare == []
    code, out, _ = fedhead("strategies")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "fedprox(mu=0.01, server-lr=1.0)" in out
    assert out.count("arXiv") >= len(STRATEGIES)


def test_lost_rounds_and_absent_phones_are_in_the_table(fedhead: Fedhead, experiment: Path) -> None:
    code, out, _ = fedhead(
        "run", experiment, "--set", "train.rounds=6", "--set", "availability.dropout-rate=0.5",
        "--set", "train.clients-per-round=0", "--set", "availability.deadline-seconds=5",
    )  # fmt: skip
    assert code == 0
    assert "lost: too few valid updates" in out
    assert "never answered" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("address", ["9096", "localhost", "a b:1", "::1:9096", "localhost:65536"])
def test_health_wants_an_address(
    fedhead: Fedhead, experiment: Path, tmp_path: Path, address: str
) -> None:
    code, _, err = fedhead("run", experiment, "--out", "r", "--health", address)
    assert code == 1
    assert f"--health {address!r} must be HOST:PORT" in err
    assert not (tmp_path / "r").exists()


def test_the_version_is_that_of_the_package(fedhead: Fedhead) -> None:
    assert fedhead("--version") == (0, f"{version('fedhead')}\n", "")
