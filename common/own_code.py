"""Functions of a user's own, by ``module:function``: where they lie, and what they are."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any  # what a user's function takes and gives, its caller checks

from common.errors import DataError
from common.files import shown

__all__ = ["file_of", "folder_of", "found_in", "imported", "search_in", "searching"]


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
    if not path:
        return
    needed, is_new = _NEEDED.get(), path not in sys.path
    if needed is not None and path not in needed and (is_new or path in _blocks):
        needed.add(path)
        _blocks[path] += 1
    if is_new:
        sys.path.append(path)


_NEEDED: ContextVar[set[str] | None] = ContextVar("_NEEDED", default=None)
_blocks = Counter[str]()  # of ``searching`` that need a folder which one of them has added


@contextmanager
def searching() -> Iterator[None]:
    """What ``search_in`` adds in the block, in this thread, is searched until its end.

    Or longer: until the end of the last such block, in whatever thread, that needs the folder.
    """
    needed = set[str]()
    token = _NEEDED.set(needed)
    try:
        yield
    finally:
        _NEEDED.reset(token)
        for path in needed:
            _blocks[path] -= 1
            if not _blocks[path]:
                del _blocks[path]
                with suppress(ValueError):  # somebody else has taken it off
                    sys.path.remove(path)


def imported(module: str) -> ModuleType:
    """Import a user's module; what it prints goes to standard error.

    It is read anew where its file, or one that came with any module of a user's, has changed since,
    or where another of its name is meant by now: a notebook writes a strategy, runs it, writes it
    again.

    Raises:
        ModuleNotFoundError: it, or one that it needs, is not there.
        ImportError: its code fails, or ends the program; one line.
    """
    importlib.invalidate_caches()  # the file may be newer than the last look into its folder
    _forget_changed(module)
    before = frozenset(sys.modules)
    try:
        with redirect_stdout(sys.stderr):  # a command's output may be one JSON object
            found = importlib.import_module(module)
    except ModuleNotFoundError:
        raise
    except (Exception, SystemExit) as exc:  # whatever the user's code raises
        words = (str(exc).splitlines() or [""])[0]
        raise ImportError(f"{type(exc).__name__}: {words}") from exc
    finally:
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


# By name, modules of users and what came with them. Who of them uses whom is not known: a strategy
# and a loss may share a file, which came with the first of them.
_sources: dict[str, _Source] = {}

# A user's file may lie in a clone of fedhead, beside its packages.
_FEDHEAD = {"client", "common", "fedhead", "server", "simulations"}


def _remember(module: str, names: set[str]) -> None:
    """Note the files of modules that have just been imported, where they are a user's own."""
    top = module.partition(".")[0]
    file = Path(_file(top) or _file_to_import(top))
    folder = file.parent.parent if file.name == "__init__.py" else file.parent
    for name in names - _sources.keys():
        path = Path(_file(name))
        # An environment may lie in the user's folder: its packages are nobody's own code.
        is_installed = {"site-packages", "dist-packages"} & {*path.parts}
        if is_installed or name.partition(".")[0] in _FEDHEAD or path.suffix != ".py":
            continue
        if path.is_relative_to(folder) and (source := _Source.of(path)):
            _sources[name] = source


def _file(name: str) -> str:
    """That a module which is there was read from; empty: it is not there, or of no file."""
    return getattr(sys.modules.get(name), "__file__", None) or ""


def _file_to_import(name: str) -> str:
    """That Python would read for a module at the top level; empty: there is none."""
    specs = (finder.find_spec(name, None) for finder in sys.meta_path)
    spec = next(filter(None, specs), None)
    return (spec.origin if spec else None) or ""


def _forget_changed(module: str) -> None:
    for name, source in [*_sources.items()]:
        if _file(name) != str(source.path):
            del _sources[name]  # somebody else has taken it away, or imported another
    same = all(_Source.of(source.path) == source for source in _sources.values())
    top = module.partition(".")[0]
    if same and (top not in _sources or _file_to_import(top) == str(_sources[top].path)):
        return
    for name, source in _sources.items():
        sys.modules.pop(name, None)
        with suppress(OSError):  # its time stamp is of whole seconds: a quick change looks old
            Path(importlib.util.cache_from_source(str(source.path))).unlink()
    _sources.clear()


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
