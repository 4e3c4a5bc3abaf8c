"""Whatever fails once a head is trained: it is kept with its figures, and the advice works."""

from __future__ import annotations

import errno
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import server.app
import server.export.exporters
from common.errors import DataError, ExportError
from server.export.exporters import FILES
from server.export.runtime_cards import ExportReport
from server.export.trained import TrainedModel
from simulations.run import read_summary

Fedhead = Callable[..., tuple[int, str, str]]
Fail = Callable[..., None]


def write(trained: TrainedModel, target: str, path: Path, **_: object) -> ExportReport:
    """An export that works, without the process that checks it."""
    path.write_bytes(trained.head.matrix.tobytes())
    return ExportReport(target, path, path.stat().st_size, "")


def refuse(*_: object) -> None:
    raise ExportError("changes the class of 5 of 44 images")


def fill(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/tmp/fedhead-export-x/images")


def deny(*_: object) -> None:
    raise OSError(errno.ENOTSUP, "Operation not supported", "/proc/model.pt")


def lose(*_: object) -> None:
    raise DataError("cat/1.png: cannot be read (No such file or directory)")


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def experiment(tiny_toml: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_toml)
    return path


def advised(err: str) -> list[str]:
    """The arguments of the command that an error ends with."""
    lines = err.strip().splitlines()
    found = re.search(r"fedhead ((?:resume|export) .+)$", lines[-1])
    assert found, err
    assert "Traceback" not in err
    return shlex.split(found[1])


@pytest.mark.parametrize(
    ("stage", "fails", "code", "written"),
    [
        ("export", refuse, 1, "device-head.safetensors"),
        ("export", fill, 1, "model.pt"),
        ("export", deny, 1, "model.pt"),
        ("export", interrupt, 130, "model.pt"),
        ("trained_model", interrupt, 130, "model.pt"),
        ("trained_model", lose, 1, "model.pt"),
        ("ask_clients", interrupt, 130, "model.pt"),
        ("ask_clients", fill, 1, "model.pt"),
        ("summarize", fill, 1, "model.pt"),
    ],
)
def test_the_command_that_an_error_gives_ends_with_a_file(
    fedhead: Fedhead, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stage: str, fails: Fail, code: int, written: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(server.export.exporters, "export", write)
    monkeypatch.setattr(server.app, "export", write)
    run = tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr(server.app, stage, fails)
        found, out, err = fedhead("run", experiment, "--set", "train.rounds=1", "--out", run)
    assert (found, out) == (code, "")
    assert not (run / "model.pt").exists()
    assert (run / "head.safetensors").stat().st_size > 0
    if stage in ("export", "trained_model"):
        summary = read_summary(run)
        assert summary["accuracy"] > 0.5
        assert summary["model_path"] is None
    found, _, problem = fedhead(*advised(err))
    assert found == 0, problem
    assert (run / written).stat().st_size > 0
    assert read_summary(run)["accuracy"] > 0.5


@pytest.mark.parametrize("resumes", [False, True])
def test_baselines_that_fail_can_be_left_out(
    fedhead: Fedhead, experiment: Path, monkeypatch: pytest.MonkeyPatch, resumes: bool
) -> None:
    monkeypatch.setattr(server.app, "export", write)
    settings = ("--set", "train.rounds=1", "--out", "r", "--set", "baseline.enabled=true")
    if resumes:
        with monkeypatch.context() as patch:
            patch.setattr(server.app, "ask_clients", interrupt)
            assert fedhead("run", experiment, *settings)[0] == 130
    monkeypatch.setattr("server.baselines.ask", lambda *_: ({}, {}))
    command = ("resume", "r") if resumes else ("run", experiment, *settings)
    code, _, err = fedhead(*command)
    assert code == 1
    assert "the baselines could not be computed: no answer" in err
    found = re.search(r"(--set) (baseline\.enabled=false) leaves them out$", err.strip())
    assert found, err
    code, _, err = fedhead(*command, *found.groups())
    assert code == 0, err


def test_a_head_is_written_though_its_model_is_refused(
    fedhead: Fedhead, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server.app, "export", refuse)
        code, _, err = fedhead("run", experiment, "--set", "train.rounds=1")
    assert code == 1
    assert "model.pt: changes the class of 5 of 44 images" in err
    code, out, problem = fedhead(*advised(err))  # the real thing
    assert code == 0, problem
    assert "device-head" in out


def test_an_earlier_model_is_not_taken_for_the_one_that_was_refused(
    fedhead: Fedhead, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.app, "export", write)
    assert fedhead("run", experiment, "--set", "train.rounds=1", "--out", "r")[0] == 0
    monkeypatch.setattr(server.app, "export", refuse)
    code, _, err = fedhead("resume", "r", "--set", "train.rounds=2")
    assert code == 1
    assert "model.pt there is of an earlier head" in err
    assert read_summary(tmp_path / "r")["model_path"] is None


def test_one_refused_target_costs_the_others_nothing(
    fedhead: Fedhead, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(trained: TrainedModel, target: str, path: Path, **options: object) -> ExportReport:
        return refuse() or fill() if target == "device" else write(trained, target, path, **options)

    monkeypatch.setattr(server.app, "export", write)
    assert fedhead("run", experiment, "--set", "train.rounds=1", "--out", "r")[0] == 0
    monkeypatch.setattr(server.export.exporters, "export", some)
    targets = [word for target in ("device", "lite", "head") for word in ("--target", target)]
    code, out, err = fedhead("export", "r", *targets)
    assert (code, out) == (1, "")
    assert "r/device.pt: changes the class of 5 of 44 images; written: " in err
    assert not (tmp_path / "r" / FILES["device"]).exists()
    for target in ("lite", "head"):
        assert FILES[target] in err
        assert (tmp_path / "r" / FILES[target]).exists()


def test_a_missing_runtime_is_said_before_any_work(
    fedhead: Fedhead, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not(*_: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("server.export.other_runtime.find_spec", lambda _: None)
    monkeypatch.setattr("simulations.run.trained_run", must_not)
    code, _, err = fedhead("export", tiny(), "--target", "model", "--target", "onnx")
    assert code == 1
    assert "--target onnx needs the package 'onnx': pip install 'fedhead[onnx]'" in err


def test_a_file_may_go_into_a_folder_that_is_there(
    fedhead: Fedhead, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.app, "export", write)
    monkeypatch.setattr(server.export.exporters, "export", write)
    assert fedhead("run", experiment, "--set", "train.rounds=1", "--out", "r")[0] == 0
    (tmp_path / "there").mkdir()
    assert fedhead("export", "r", "--target", "head", "--out", "there")[0] == 0
    assert (tmp_path / "there" / FILES["head"]).exists()


@pytest.mark.parametrize(
    "command", [("probe", "nowhere"), ("quantize-report",), ("partition", "own.toml")]
)
def test_a_plot_that_cannot_be_drawn_is_said_before_any_work(
    fedhead: Fedhead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    (tmp_path / "own.toml").write_text('[data]\nsource = "folder:nowhere"\n')  # work would fail
    (tmp_path / "there" / "quantize.png").mkdir(parents=True)
    code, _, err = fedhead(*command, "--out", "there")
    assert code == 1
    assert "there" in err
    assert "is a folder, expected the file of a plot" in err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = fedhead(*command, "--out", "new")
    assert code == 1
    assert "needs the package 'matplotlib'" in err
