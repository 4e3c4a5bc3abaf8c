"""Every block of README and docs is run, excused, or shown elsewhere; all commands exist."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import pytest
import typer
from fenced import ROOT, blocks, commands, pages

from common.errors import FedheadError
from fedhead.cli.main import cli

RUN_PAGE = Path(__file__).with_name("run_page.py")
# What a page may be written in beside what is run; `text` is output.
LANGUAGES = {"cmake", "cpp", "diff", "ini", "json", "kotlin", "objectivec", "python", "sh", "swift"}
LANGUAGES |= {"text", "toml", "yaml"}


def names(found: list[Path]) -> list[str]:
    return [str(page) for page in found]


def calls() -> Iterator[tuple[str, int, str]]:
    for page in pages():
        for block in blocks((ROOT / page).read_text()):
            # A package that is patched has options of its own.
            for line in commands(block) if "git apply" not in block.text else ():
                yield str(page), block.line, line


def problem(words: list[str]) -> str:
    """Why the command line would refuse these words; empty: it would not."""
    command: click.Command | None = typer.main.get_command(cli)
    words = words[words.index(next(w for w in words if w.endswith("fedhead"))) + 1 :]
    try:
        while command is not None:
            with command.make_context(command.name, words) as context:
                if not isinstance(command, click.Group):
                    return ""
                _, command, words = command.resolve_command(
                    context, [*context._protected_args, *context.args]
                )
    except (click.exceptions.Exit, FedheadError):  # --help, --version; a folder that is not here
        return ""
    except click.UsageError as exc:
        return exc.format_message()
    return "there is no such command"


@pytest.mark.parametrize("page", pages(), ids=names(pages()))
def test_every_block_has_a_language_and_says_why_it_is_not_run(page: Path) -> None:
    found = list(blocks((ROOT / page).read_text()))
    strange = {b.line: b.language for b in found if b.language not in LANGUAGES}
    assert strange == {}
    assert {b.notes["needs"] for b in found if "needs" in b.notes} <= {"photos"}


@pytest.mark.parametrize("page", pages(), ids=names(pages()))
def test_a_page_begins_with_its_title_and_has_no_other(page: Path) -> None:
    text, inside = (ROOT / page).read_text(), False
    titles = []
    for line in text.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            inside = not inside
        elif line.startswith("# ") and not inside:
            titles.append(line)
    assert text.startswith("# ")
    assert len(titles) == 1


@pytest.mark.parametrize("page", pages(), ids=names(pages()))
def test_a_file_that_a_page_shows_is_as_it_lies_here(page: Path) -> None:
    for block in blocks((ROOT / page).read_text()):
        shown = ROOT / block.notes.get("file", "")
        if shown.is_file():
            assert block.text == shown.read_text(), f"{page}:{block.line}"


def test_every_command_line_in_any_block_is_one_that_the_commands_take() -> None:
    found = list(calls())
    assert len(found) > 30
    wrong = {
        f"{page}:{line} {text}": why
        for page, line, text in found
        if (why := problem(shlex.split(text, comments=True)))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("fedhead rum a.toml", "No such command 'rum'"),
        ("fedhead run a.toml --sett a=1", "No such option"),
        ("fedhead delivery serv garden", "No such command 'serv'"),
        ("fedhead fleet garden revoke", "Missing argument 'NAME'"),
        ("fedhead fleet garden", "^$"),
        ("fedhead run", "Missing argument"),
        ("fedhead run a.toml --engine ray", "is not one of"),
        ("A=1 fedhead run a.toml --set a=1", "^$"),
        ("fedhead --help", "^$"),
    ],
)
def test_a_command_line_that_would_be_refused_is_seen(line: str, why: str) -> None:
    assert re.search(why, problem(shlex.split(line, comments=True)))


RUN = [p for p in pages() if any(b.is_run for b in blocks((ROOT / p).read_text()))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=names(RUN))
def test_every_block_of_a_page_runs_in_a_fresh_copy(
    page: Path,
    copy: Path,
    environment: Mapping[str, str],
    make_needed: Mapping[str, Callable[[Path], None]],
    request: pytest.FixtureRequest,
) -> None:
    found = list(blocks((copy / page).read_text()))
    if any(b.is_run and "mnist5k" in b.text for b in found):
        request.getfixturevalue("prepared")
    for need in sorted({b.notes["needs"] for b in found if "needs" in b.notes}):
        make_needed[need](copy)
    process = subprocess.Popen(
        [sys.executable, RUN_PAGE, page], cwd=copy, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=280)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    print(output)
    assert process.returncode == 0, output[-3000:]
