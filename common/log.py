"""How fedhead's log is shown, and where a process of Flower's shows it."""

from __future__ import annotations

import logging

from common.words import printable

__all__ = ["OneLine", "start_log"]


class OneLine(logging.Formatter):
    """Keeps a message on one line and from steering a terminal, whoever's words are in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)


def start_log() -> bool:
    """Give fedhead's log a handler where the process has none, as in Flower's own engines.

    Returns:
        Whether it had none.
    """
    logger = logging.getLogger("fedhead")
    if logger.hasHandlers():
        return False
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("fedhead %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return True
