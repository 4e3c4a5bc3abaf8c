"""The lists of keys, commands and strategies in the pages have all that there are."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from common.config import describe_keys
from fedhead.cli.main import cli
from server.strategies import STRATEGIES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_keys_has_each_of_them_once(hooks: ModuleType) -> None:
    page = hooks.on_page_markdown((DOCS / "configuration.md").read_text())
    assert "generated:" not in page
    for section in {key.rpartition(".")[0] for key, _, _ in describe_keys()} - {""}:
        assert page.count(f"### `[{section}]`") == 1
    listed = page.partition("## Every key")[2]
    assert listed.count("\n| `") == len(describe_keys())


def test_the_page_of_commands_has_each_of_them(hooks: ModuleType) -> None:
    page = hooks.on_page_markdown((DOCS / "cli.md").read_text())
    assert "generated:" not in page
    for name in ("run", "delivery serve", "fleet revoke", "keys new", "bench simulation"):
        assert f"### fedhead {name}\n" in page
    assert "<code>--overwrite</code>" in page
    assert "<code>[in-process&#124;flower]</code>" in page
    assert cli.info.name == "fedhead"


def test_a_list_that_there_is_not_is_refused(hooks: ModuleType) -> None:
    with pytest.raises(KeyError, match="flowers"):
        hooks.on_page_markdown("<!-- generated: flowers -->\n\nIt stands here.\n")


def test_a_notebook_becomes_a_page_of_its_cells(hooks: ModuleType) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# A first run\n", "\n", "Text."]},
        {"cell_type": "code", "source": ["import fedhead\n", "1 + 1"], "outputs": []},
    ]
    page = hooks.notebook_page(json.dumps({"cells": cells}), "first.ipynb")
    assert page.startswith("# A first run\n\nText.\n\nThis page is the notebook [first.ipynb]")
    assert page.endswith("```python\nimport fedhead\n1 + 1\n```\n")


def test_the_table_of_strategies_has_each_of_them_once() -> None:
    table = (DOCS / "strategies.md").read_text().partition("| name | what it is |")[2]
    first = [row.split("|")[1] for row in table.partition("\n\n")[0].splitlines()[2:]]
    named = re.findall(r"`([\w:.]+)`", " ".join(first))
    assert sorted(name for name in named if ":" not in name) == sorted(STRATEGIES)
    assert f"{len(STRATEGIES)} strategies are there" in (DOCS.parent / "README.md").read_text()
