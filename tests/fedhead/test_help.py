"""What the command line prints is shown whole, brackets and all, on 80 columns."""

from __future__ import annotations

import re

import click
import pytest
import typer
from typer.testing import CliRunner

from fedhead.cli.main import cli
from fedhead.cli.run_tables import rows_table


def commands() -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    waiting: list[tuple[tuple[str, ...], click.Command]] = [((), typer.main.get_command(cli))]
    while waiting:
        path, command = waiting.pop()
        found[path] = command
        waiting += [((*path, k), c) for k, c in getattr(command, "commands", {}).items()]
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_is_shown_whole_on_80_columns(path: tuple[str, ...]) -> None:
    command = commands()[path]
    done = CliRunner().invoke(cli, [*path, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 80
    shown = set(re.split(r"[\s│]+", done.output))
    texts = [command.help, *(getattr(parameter, "help", "") for parameter in command.params)]
    words = {word for text in filter(None, texts) for word in text.split()}
    # A bracket that is no markup is written with a backslash before it.
    assert {word.replace("\\[", "[") for word in words} <= shown


def test_names_in_tables_keep_their_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    rows_table("runs/[a]", {"[red]": "runs/[/b]"})
    out = capsys.readouterr().out
    assert [word for word in ("runs/[a]", "[red]", "runs/[/b]") if word not in out] == []
