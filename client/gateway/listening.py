"""The service's end of the unix socket on which the bridge hands over messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from client.gateway.frames import framed, receive_async
from common.errors import FedheadError

__all__ = ["listen"]

logger = logging.getLogger("fedhead.gateway")


async def listen(path: Path, answer: Callable[[str, bytes], Awaitable[bytes]]) -> asyncio.Server:
    """Answer messages at a socket that only its owner can reach.

    Args:
        path: the socket; its folder is made if it is missing. What another process has left there
            is replaced.
        answer: from a message's kind and content to the answer's content.

    Raises:
        OSError: the socket cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            words, content = await receive_async(reader)
            writer.write(await _framed(answer, str(words.get("kind")), content))
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    path.chmod(0o600)
    return server


async def _framed(
    answer: Callable[[str, bytes], Awaitable[bytes]], kind: str, content: bytes
) -> bytes:
    try:
        return framed({}, await answer(kind, content))
    except FedheadError as exc:
        logger.warning("%s: %s", kind, exc)
        return framed({"error": str(exc), "type": type(exc).__name__}, b"")
    except Exception as exc:  # a message must not end the service
        logger.exception("%s failed", kind)
        words = f"the gateway failed with {type(exc).__name__}; see its own log"
        return framed({"error": words, "type": "FedheadError"}, b"")
