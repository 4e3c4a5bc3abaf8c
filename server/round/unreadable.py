"""An unreadable reply counts as no answer of its node, instead of ending the run.

Flower's grid turns the bytes of all received replies into messages at once. An exception of one of
them would end the run and lose the other replies, because a SuperLink returns each only once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.superlink.grid import http_grid

from common.errors import RunError

__all__ = ["survive_unreadable_replies"]

logger = logging.getLogger("fedhead")

_INFLATE = "inflate_object_from_contents"
_UNREADABLE = Error(0, "its reply cannot be read")


def survive_unreadable_replies() -> None:
    """Make Flower's grid skip unreadable replies, by replacing an internal function.

    Raises:
        RunError: this version of Flower has no such name.
    """
    module: Any = http_grid
    if not hasattr(module, _INFLATE):
        raise RunError(f"this version of flwr is not supported: it has no {_INFLATE}")
    setattr(module, _INFLATE, _guarded(getattr(module, _INFLATE)))


def _guarded(inflate: Callable[..., Any]) -> Callable[..., Message]:
    def inflate_or_skip(*args: Any, **kwargs: Any) -> Message:
        try:
            message = inflate(*args, **kwargs)
            if message.has_error() or isinstance(message.content, RecordDict):
                return message  # type: ignore[no-any-return]
        except Exception:
            # Untrusted bytes may raise many kinds of exceptions.
            logger.debug("a reply cannot be read", exc_info=True)
        logger.warning("a reply cannot be read and is ignored, as if its device had not answered")
        return _nobodys()

    return inflate_or_skip


def _nobodys() -> Message:
    """A reply that answers no message, so that it is never counted."""
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type="query",
    )
    message: Any = Message
    skipped: Message = message(metadata=metadata, error=_UNREADABLE)
    return skipped
