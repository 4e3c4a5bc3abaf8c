"""Functions of a user's own, by ``module:function``: where they lie, and what they are."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any  # what a user's function takes and gives, its caller checks

from common.errors import DataError
from common.files import shown

__all__ = ["file_of", "folder_of", "found_in", "imported", "search_in"]


def folder_of(module: str, places: Sequence[Path]) -> Path | None:
    """The first of these folders that holds the module, or the package that it is in.

    Nothing is imported.
    """
    top = module.partition(".")[0]
    for place in places:
        if (place / f"{top}.py").is_file() or (place / top / "__init__.py").is_file():
            return place.resolve()
    return None


def search_in(folder: str) -> None:
    """Let modules in a folder be found, after all others; empty: nowhere."""
    path = str(Path(folder).expanduser().absolute()) if folder else ""
    if path and path not in sys.path:
        sys.path.append(path)


def imported(module: str) -> ModuleType:
    """Import a user's module; what it prints goes to standard error.

    Raises:
        ModuleNotFoundError: it, or one that it needs, is not there.
        ImportError: its code fails, or ends the program; one line.
    """
    importlib.invalidate_caches()  # the file may be newer than the last look into its folder
    try:
        with redirect_stdout(sys.stderr):  # a command's output may be one JSON object
            return importlib.import_module(module)
    except ModuleNotFoundError:
        raise
    except (Exception, SystemExit) as exc:  # whatever the user's code raises
        words = (str(exc).splitlines() or [""])[0]
        raise ImportError(f"{type(exc).__name__}: {words}") from exc


def found_in(
    module: str, name: str, folder: Path | None, *, root_key: str = "data.root"
) -> Callable[..., Any]:
    """Import a module and give one of its functions.

    Args:
        module: dotted.
        name: of the function.
        folder: where the module lies; None: wherever Python finds it. It is searched last, so that
            no file in it takes the place of another package's.
        root_key: of the configuration that says where it lies, for the error.

    Raises:
        DataError: there is no such module or function, another module has its name, or its code
            fails; one line.
    """
    path = f"{module}:{name}"
    search_in(str(folder or ""))
    try:
        found = imported(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
            raise DataError(f"{path}: {module} needs the package '{exc.name}'") from exc
        where = f" in {shown(folder)}" if folder else f"; {root_key} says in which folder"
        raise DataError(f"{path}: there is no module '{exc.name}'{where}") from exc
    except ImportError as exc:
        raise DataError(f"{path}: cannot be imported: {exc}") from exc
    file = getattr(found, "__file__", None)
    if folder is not None and not (file and Path(file).resolve().is_relative_to(folder.resolve())):
        raise DataError(
            f"{path}: '{module}' is also {file or 'a module of Python'}; give the one in "
            f"{shown(folder)} another name"
        )
    function = getattr(found, name, None)
    if not inspect.isfunction(function):
        raise DataError(f"{path}: no function '{name}' in {file or module}")
    return function


def file_of(function: Callable[..., Any]) -> Path:
    """The file that a user's function was read from."""
    return Path(inspect.unwrap(function).__code__.co_filename)
