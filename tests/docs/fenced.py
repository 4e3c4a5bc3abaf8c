"""The fenced blocks of a Markdown page, and what the comment before a block says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ROOT", "Block", "blocks", "commands", "pages"]

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+)(?P<info>[^`\n]*)$")
_COMMENT = re.compile(r"^\s*<!-- *(?P<key>not run|needs|file): *(?P<value>\S.*?) *-->\s*$")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: behind the fence; empty where there is none.
        text: what is between the fences, without their indentation.
        line: of the opening fence, from 1.
        notes: what comments just before it say: why it is "not run", what it "needs", which
            "file" it shows.
    """

    language: str
    text: str
    line: int
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        """Whether a test runs it: commands and Python that nothing excuses."""
        return self.language in ("sh", "python") and not self.notes.keys() & {"not run", "file"}


def blocks(markdown: str) -> Iterator[Block]:
    """All fenced blocks of a page, in its order.

    Raises:
        ValueError: a fence is never closed.
    """
    lines = iter(enumerate(markdown.splitlines(), start=1))
    notes: dict[str, str] = {}
    for number, line in lines:
        if comment := _COMMENT.match(line):
            notes[comment["key"]] = comment["value"]
        elif opening := _FENCE.match(line):
            content, indent = [], len(opening["indent"])
            closing = re.compile(rf"^ *{opening['fence'][0]}{{{len(opening['fence'])},}} *$")
            for _, inner in lines:
                if closing.match(inner):
                    break
                content.append(inner.removeprefix(" " * indent))
            else:
                raise ValueError(f"line {number}: the block is never closed")
            language = opening["info"].strip().partition(" ")[0]
            yield Block(language, "".join(f"{text}\n" for text in content), number, notes)
            notes = {}
        elif line.strip():
            notes = {}


def commands(block: Block) -> list[str]:
    """The lines of a block that call fedhead, continued lines joined.

    Output is told from commands by its language, ``text``: there a command follows a ``$``.
    """
    lines = block.text.replace("\\\n", " ").splitlines()
    prompt = r"\$ +" if block.language == "text" else r"(?:\$ +)?"
    call = re.compile(rf"^\s*{prompt}\(?((?:sudo +|\w+=\S* +)*(?:\.venv/bin/)?fedhead(?: .*)?)$")
    several = r" +(?:&&|\|\|) +" if block.language == "sh" else r"$^"
    words = [word for line in lines for word in re.split(several, line)]
    return [found[1].rstrip(")") for word in words if (found := call.match(word))]


def pages() -> list[Path]:
    """README, CONTRIBUTING and every page of docs/, from the repository's root."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(page.relative_to(ROOT) for page in found if page.exists())
