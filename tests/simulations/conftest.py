"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import server.app
from server.targets.cards import ExportReport
from simulations.cli import main

Fedhead = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedhead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Fedhead:
    """Runs the command in this process: exit code, standard output, standard error."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["fedhead", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        code = caught.value.code
        return int(code) if code else 0, out, err

    return run


@pytest.fixture
def quick(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """As tiny, but without the export, which starts a process and has tests of its own."""

    def skip(*args: object) -> ExportReport:
        return ExportReport("model", Path(), 0, "")

    monkeypatch.setattr(server.app, "export", skip)
    return tiny
