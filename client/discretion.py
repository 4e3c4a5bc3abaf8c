"""What a device tells the server of a problem: its kind. The words stay in the device's own log.

An error's text may hold paths, names of folders, or whatever an owner has written into the
configuration, and the server's log is not the owner's.
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
"""Their words are of what the server has sent and of plain numbers, or a fixed sentence."""

# The first that fits.
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (DataError, "its images cannot be used"),
    (SignatureError, "the backbone is not signed as its owner asks"),
    (BackboneError, "the backbone cannot be used"),
    (ConfigError, "its configuration cannot be used"),
    (FedheadError, "what it keeps of the run cannot be used"),
    (MemoryError, "its memory does not suffice"),
    (OSError, "a file cannot be read or written"),
    (Exception, "something failed that should not"),
)


def kind_of(problem: Exception) -> str:
    """A sentence that holds nothing of the owner's; what it leaves out is logged here."""
    if isinstance(problem, SPEAKABLE):
        return str(problem)
    ours = isinstance(problem, FedheadError | OSError)
    logger.error("%s", problem, exc_info=None if ours else problem)
    kind = next(words for error, words in _KINDS if isinstance(problem, error))
    return f"{kind}: its own log says more"
