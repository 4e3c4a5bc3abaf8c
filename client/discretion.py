"""A device tells the server only the kind of a problem; the details stay in its own log.

An error's text may hold paths, names of folders or parts of the owner's configuration, and others
can read the server's log.
"""

from __future__ import annotations

import logging

from common.errors import (
    BackboneError,
    ConfigError,
    DataError,
    DeclinedError,
    FedheadError,
    ProtocolError,
    ReplyError,
    SignatureError,
)

__all__ = ["SPEAKABLE", "kind_of"]

logger = logging.getLogger("fedhead")

SPEAKABLE = (ReplyError, ProtocolError, DeclinedError)
"""Errors whose text may be sent: it holds only the server's own data, numbers or fixed text."""

# The first that fits is used.
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (DataError, "its images cannot be used"),
    (SignatureError, "the backbone is not signed as the device's owner demands"),
    (BackboneError, "the backbone cannot be used"),
    (ConfigError, "its configuration cannot be used"),
    (FedheadError, "its stored data of the run cannot be used"),
    (MemoryError, "it does not have enough memory"),
    (OSError, "a file cannot be read or written"),
    (Exception, "an unexpected error occurred"),
)


def kind_of(problem: Exception, *, has_log: bool = True) -> str:
    """A sentence without the owner's data; the full error is logged here.

    Args:
        problem: the error.
        has_log: whether the log is the owner's. Simulated clients share the server's, which in a
            private run must not tell of their data either.
    """
    if isinstance(problem, SPEAKABLE):
        return str(problem)
    ours = isinstance(problem, FedheadError | OSError)
    if has_log:
        logger.error("%s", problem, exc_info=None if ours else problem)
    kind = next(words for error, words in _KINDS if isinstance(problem, error))
    return f"{kind}; see its own log"
