"""The format of fedhead's log, and its handler in Flower's processes."""

from __future__ import annotations

import logging

from common.words import printable

__all__ = ["OneLine", "start_log"]


class OneLine(logging.Formatter):
    """Keeps a message on one line and without control characters, whoever wrote its text."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)


def start_log() -> bool:
    """Give fedhead's log a handler if the process has none, as in Flower's engines.

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
