"""Whatever the program reads back is checked: flipped bytes end in words, or in the same result.

A kind of file joins by being made in the source (``JsonFile("kind")``, ``@own_check("kind")``, ...)
and fails here until it has a row in ``tests/readback/``: how to make a real file of it, and who
reads it.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import FedheadError
from tests.readback import caches, deployments, devices, runs

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for room in ("common", "client", "server", "simulations", "fedhead")
    for path in (ROOT / room).rglob("*.py")
)
FLIPS = 20
ROWS = runs.ROWS | caches.ROWS | devices.ROWS | deployments.ROWS


def damaged(data: bytes, seed: str) -> Iterator[bytes]:
    """The content with single bits flipped, with single bytes replaced, and cut off."""
    draw = random.Random(seed)
    for i in range(FLIPS):
        changed = bytearray(data)
        at = draw.randrange(len(data))
        changed[at] ^= 1 << draw.randrange(8) if i % 2 else draw.randrange(1, 256)
        yield bytes(changed)
    yield b""
    yield data[: len(data) // 2]


def plain(value: Any) -> Any:
    """Something that can be compared, with every bit of its arrays."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [plain(item) for item in vars(value).values()]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_a_damaged_file_is_rebuilt_or_refused_in_a_line_and_never_another_result(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = ROWS[kind](tmp_path, request)
    original = plain(made.read())
    for path in made.paths:
        data = path.read_bytes()
        for content in damaged(data, f"{kind} {path.name}"):
            path.write_bytes(content)
            try:
                found = made.read()
            except FedheadError as exc:
                problem = str(exc)
            else:
                problem = ""
                assert plain(found) == original or made.rebuilt(found), content[:500]
            assert not problem or path.name in problem or path.parent.name in problem
            assert "\n" not in problem
            path.write_bytes(data)
    assert plain(made.read()) == original


def kinds(path: Path) -> Iterator[str]:
    makers = {"JsonFile", "JsonLines", "ArraysFile", "own_check"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in makers:
            yield ast.literal_eval(node.args[0])  # a kind is named where it is made


def test_every_kind_of_file_has_its_bytes_flipped() -> None:
    found = [kind for path in SOURCES for kind in kinds(path)]
    assert sorted(found) == sorted(ROWS)
