"""Work in a process of its own, where its result depends on all that a process did before.

TorchScript keeps the classes that a process has compiled: a later one of the same name is
numbered, and one that looks alike takes over methods it does not use. What a module computes stays
the same, the bytes of its file do not. Making torch forget those classes is no way out: modules in
use would compute with the new ones. A process of the command line exports once; a notebook runs one
experiment after the other, so it asks for a fresh process where it has compiled something before.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from common.errors import BackboneError, FedheadError

if TYPE_CHECKING:
    from multiprocessing.popen_spawn_posix import Popen

__all__ = ["LoneContext", "in_fresh_process", "is_reused", "reused"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("fedhead")

_REUSED: ContextVar[bool] = ContextVar("_REUSED", default=False)


@contextmanager
def reused() -> Iterator[None]:
    """Inside, in this thread, the process may have compiled what earlier runs needed."""
    token = _REUSED.set(True)
    try:
        yield
    finally:
        _REUSED.reset(token)


def is_reused() -> bool:
    """Whether bytes must not depend on what this process did before."""
    return _REUSED.get()


class _Lone(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # noqa: N802 - multiprocessing's name
        before = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # of no file
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = before


class LoneContext(SpawnContext):
    """Starts processes that do not run the main module of the one that starts them.

    Ours need nothing of it, and a script without ``if __name__ == "__main__"`` would begin once
    more in each of them.
    """

    Process = _Lone


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function returns in a process that has done nothing else.

    Args:
        function: at the top level of a module.
        args: can be pickled, as its result can.
        kwargs: likewise.

    Raises:
        BackboneError: with the message of any error of fedhead's there, or the process died.
    """
    context = LoneContext()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, args, kwargs), daemon=True)
    process.start()
    theirs.close()
    try:
        warnings, problem, result = ours.recv()
    except EOFError as exc:
        raise BackboneError(f"{function.__name__}: its process died") from exc
    finally:
        process.kill()
        process.join()
        ours.close()
    for message in warnings:
        logger.warning("%s", message)
    if problem:
        raise BackboneError(problem)
    return result  # type: ignore[no-any-return]


class _Kept(logging.Handler):
    """Keeps warnings, which the process that asked says."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _answer(
    pipe: Connection,
    function: Callable[P, object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> None:
    kept, problem, result = _Kept(), "", None
    logger.handlers, logger.propagate = [kept], False
    try:
        result = function(*args, **kwargs)  # type: ignore[arg-type]
    except FedheadError as exc:
        problem = str(exc)
    pipe.send((kept.messages, problem, result))
