"""Where a process of Flower's shows what fedhead logs."""

from __future__ import annotations

import logging

__all__ = ["start_log"]


def start_log() -> bool:
    """Give fedhead's log a handler where the process has none, as in Flower's own engines.

    Returns:
        Whether it had none.
    """
    logger = logging.getLogger("fedhead")
    if logger.hasHandlers():
        return False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fedhead %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return True
