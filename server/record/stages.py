"""How long a run's stages took."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.progress import stage

__all__ = ["Stages"]

_log = logging.getLogger("fedhead")


class Stages:
    """Wall seconds by stage, in the order they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, words: str = "") -> Iterator[None]:
        started = time.perf_counter()
        _log.debug("stage %s", name)
        with stage(words or name):
            yield
        self.seconds[name] = round(time.perf_counter() - started, 3)
