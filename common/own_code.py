"""Functions of a user's own, by ``module:function``: where they lie, and what they are."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
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

    It is read anew where its file, or one beside it that came with it, has changed since, or where
    another of its name is meant by now: a notebook writes a strategy, runs it, writes it again.

    Raises:
        ModuleNotFoundError: it, or one that it needs, is not there.
        ImportError: its code fails, or ends the program; one line.
    """
    importlib.invalidate_caches()  # the file may be newer than the last look into its folder
    _forget_changed(module)
    before = _before.setdefault(module, frozenset(sys.modules))
    try:
        with redirect_stdout(sys.stderr):  # a command's output may be one JSON object
            found = importlib.import_module(module)
    except ModuleNotFoundError:
        raise
    except (Exception, SystemExit) as exc:  # whatever the user's code raises
        words = (str(exc).splitlines() or [""])[0]
        raise ImportError(f"{type(exc).__name__}: {words}") from exc
    _remember(module, {module, *sys.modules} - (before - {module}))
    return found


@dataclass(frozen=True)
class _Source:
    """A file of a user's own code, as it was when it was imported."""

    path: Path
    modified_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> _Source | None:
        """None: the file is gone."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(path, status.st_mtime_ns, status.st_size)


_before: dict[str, frozenset[str]] = {}  # what was imported before a user's module first was
_sources: dict[str, dict[str, _Source]] = {}  # by that module: its own and those that came with it


def _remember(module: str, names: set[str]) -> None:
    top = sys.modules[module.partition(".")[0]]
    file = getattr(top, "__file__", None)
    if module in _sources or not file:
        return
    folder = Path(file).parent.parent if hasattr(top, "__path__") else Path(file).parent
    sources = {}
    for name in names:
        path = Path(getattr(sys.modules.get(name), "__file__", None) or "")
        # An environment may lie in the user's folder: its packages are nobody's own code.
        is_installed = {"site-packages", "dist-packages"} & {*path.parts}
        if path.suffix == ".py" and path.is_relative_to(folder) and not is_installed:
            source = _Source.of(path)
            if source:
                sources[name] = source
    _sources[module] = sources


def _forget_changed(module: str) -> None:
    sources = _sources.get(module, {})
    top = module.partition(".")[0]
    present = getattr(sys.modules.get(top), "__file__", None)
    if top in sources and present != str(sources[top].path):
        del _sources[module]  # somebody else has taken it away, or imported another
        return
    same = all(_Source.of(source.path) == source for source in sources.values())
    if top in sources:
        specs = (finder.find_spec(top, None) for finder in sys.meta_path)
        spec = next(filter(None, specs), None)
        same &= spec is not None and spec.origin == str(sources[top].path)
    if same:
        return
    del _sources[module]
    for name, source in sources.items():
        sys.modules.pop(name, None)
        with suppress(OSError):  # its time stamp is of whole seconds: a quick change looks old
            Path(importlib.util.cache_from_source(str(source.path))).unlink()


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
