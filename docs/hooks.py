"""What mkdocs makes when it builds the pages: lists from the code itself, and notebooks as pages.

A page marks the place of a list with a comment, ``<!-- generated: keys -->``; so no list can age.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click
import typer

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

_PLACE = re.compile(r"<!-- generated: (\w+) -->\n\n[^\n]*stands here\.\n")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put each generated list in the place of its comment and of the line behind it.

    Raises:
        KeyError: there is no list of this name.
    """
    return _PLACE.sub(lambda found: "\n".join(GENERATED[found[1]]()) + "\n", markdown)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each notebook. They are kept without outputs, so their cells are all."""
    from mkdocs.structure.files import File

    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = notebook.src_uri.removesuffix(".ipynb") + ".md"
        content = notebook_page(notebook.content_string, notebook.src_uri.rpartition("/")[2])
        files.append(File.generated(config, name, content=content))
    return files


def notebook_page(notebook: str, name: str) -> str:
    """A notebook's JSON as Markdown, with a link to the notebook below its title."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"This page is the notebook [{name}]({name}), without its outputs.")
    return "\n\n".join(parts) + "\n"


def keys() -> Iterator[str]:
    """Every key of an experiment, a table for each section."""
    from common.config import describe_keys

    section = None
    for key, default, meaning in describe_keys():
        head, _, name = key.rpartition(".")
        if head != section:
            section = head
            yield f"\n### `[{head}]`\n" if head else "\n### At the top of the file\n"
            yield "| key | default | meaning |\n|---|---|---|"
        yield f"| `{name}` | `{default}` | {_cell(meaning)} |"


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    from fedhead.cli.main import cli

    yield from _group("fedhead", typer.main.get_command(cli))


def _group(name: str, command: click.Command) -> Iterator[str]:
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            yield from _group(f"{name} {word}", inner)
        return
    context = click.Context(command, info_name=name)
    arguments = " ".join(
        piece for one in command.params for piece in one.get_usage_pieces(context) if piece
    )
    yield f"\n### {name}\n"
    yield f"`{name} {arguments}`\n".replace(" `", "`")
    yield from (f"{_cell(text)}\n" for text in (command.help or "").split("\n\n"))
    options = [one for one in command.params if one.name != "help"]
    if options:
        yield "| option | meaning |\n|---|---|"
    for one in options:
        is_argument = isinstance(one, click.Argument)
        names = [one.make_metavar(context)] if is_argument else [*one.opts, *one.secondary_opts]
        has_value = not is_argument and not getattr(one, "is_flag", False)
        takes = f" {_code(one.make_metavar(context))}" if has_value else ""
        meaning = _cell(getattr(one, "help", "") or "")
        yield f"| {', '.join(map(_code, names))}{takes} | {meaning} |"


def _code(text: str) -> str:
    """Code in a table's cell, where a bar in backticks would keep its backslash."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    """Words for a table's cell: in one line, and no markup by accident."""
    plain = html.escape(" ".join(text.replace("\\[", "[").split()), quote=False)
    return re.sub(r"([|\[\]*_`])", r"\\\1", plain)


GENERATED: Mapping[str, Callable[[], Iterator[str]]] = {"keys": keys, "commands": commands}
