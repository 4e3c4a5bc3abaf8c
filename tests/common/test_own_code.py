"""Modules of a user's own are read anew where they, or what they use, have changed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest

import common
from common.own_code import found_in, imported, search_in, searching

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Writes modules; Python knows none of them afterwards."""
    path, modules = [*sys.path], {*sys.modules}

    def of(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)

    sys.path.append(str(tmp_path))
    yield of
    sys.path[:] = path
    for name in {*sys.modules} - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_file_that_two_modules_use_is_read_anew_for_both(write: Write) -> None:
    uses = "from shared_by_two import size\n"
    write(shared_by_two="size = 1", first_of_two=uses, second_of_two=uses)
    names = ("first_of_two", "second_of_two")
    assert [imported(name).size for name in names] == [1, 1]
    write(shared_by_two="size = 22")
    assert [imported(name).size for name in reversed(names)] == [22, 22]


def test_what_came_with_a_module_that_failed_is_read_anew_as_well(write: Write) -> None:
    write(part_of_failed="size = 1", failed_first="import part_of_failed\n1 / 0\n")
    with pytest.raises(ImportError, match="ZeroDivisionError"):
        imported("failed_first")
    write(part_of_failed="size = 22", failed_first="from part_of_failed import size\n")
    assert imported("failed_first").size == 22


def test_what_somebody_else_has_imported_stays(write: Write) -> None:
    write(of_a_notebook="size = 1", uses_notebooks="import of_a_notebook\n")
    others = __import__("of_a_notebook")
    assert imported("uses_notebooks").of_a_notebook is others
    write(of_a_notebook="size = 22", uses_notebooks="import of_a_notebook\nnew = True\n")
    assert imported("uses_notebooks").new
    assert sys.modules["of_a_notebook"] is others


def test_fedheads_own_modules_beside_a_users_file_stay(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a clone, where the user's file lies beside the packages."""
    (tmp_path / "common_part").mkdir()
    (tmp_path / "common_part" / "module_of_ours.py").write_text("size = 1\n")
    monkeypatch.setattr(common, "__path__", [*common.__path__, str(tmp_path / "common_part")])
    write(in_a_clone="from common.module_of_ours import size\n")
    imported("in_a_clone")
    ours = sys.modules["common.module_of_ours"]
    write(in_a_clone="from common.module_of_ours import size\nnew = True\n")
    assert imported("in_a_clone").new
    assert sys.modules["common.module_of_ours"] is ours


def test_a_function_is_the_one_in_the_folder_that_is_named(write: Write, tmp_path: Path) -> None:
    for folder, size in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twice_there.py").write_text(f"def size():\n    return {size}\n")
    before = [*sys.path]
    for folder, size in (("a", 1), ("b", 2)):
        assert found_in("twice_there", "size", tmp_path / folder)() == size
        sys.path[:] = before


def test_a_folder_is_searched_until_the_last_that_needs_it_ends(tmp_path: Path) -> None:
    before = [*sys.path]
    shared, own, users = (str(tmp_path / name) for name in ("shared", "own", "users"))
    with ExitStack() as first, ThreadPoolExecutor(1) as thread:
        first.enter_context(searching())
        search_in(shared)

        def second() -> None:
            with searching():
                search_in(shared)
                search_in(own)
                begun.set()
                assert ended.wait(10)

        begun, ended = Event(), Event()
        done = thread.submit(second)
        assert begun.wait(10)
        sys.path.append(users)
        first.close()
        assert sys.path == [*before, shared, own, users]
        ended.set()
        done.result()
    assert sys.path == [*before, users]
    with searching():
        search_in(users)
    assert sys.path == [*before, users]
    sys.path[:] = before
