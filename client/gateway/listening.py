"""The service's end of the unix socket on which the bridge hands over messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from client.gateway.frames import framed, receive_async
from common.errors import FedheadError

__all__ = ["Listening"]

logger = logging.getLogger("fedhead.gateway")


Answer = Callable[[str, bytes], Awaitable[bytes]]


class Listening:
    """Answers messages at a socket that only its owner can reach.

    Args:
        answer: from a message's kind and content to the answer's content.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, path: Path) -> None:
        """Begin to listen.

        Args:
            path: the socket; its folder is made if it is missing. What another process has left
                there is replaced.

        Raises:
            OSError: the socket cannot be made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._begin, path)
        path.chmod(0o600)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            words, content = await receive_async(reader)
            writer.write(await _framed(self._answer, str(words.get("kind")), content))
            await writer.drain()
        except (OSError, ValueError, FedheadError, asyncio.IncompleteReadError) as exc:
            if not (isinstance(exc, asyncio.IncompleteReadError) and not exc.partial):
                logger.info("a connection of the bridge has ended: %s", exc)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def stop(self) -> None:
        """End all connections; the bridge sends its messages again."""
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


async def _framed(answer: Answer, kind: str, content: bytes) -> bytes:
    try:
        return framed({}, await answer(kind, content))
    except FedheadError as exc:
        logger.warning("%s: %s", kind, exc)
        return framed({"error": str(exc), "type": type(exc).__name__}, b"")
    except Exception as exc:  # a message must not end the service
        logger.exception("%s failed", kind)
        words = f"the gateway failed with {type(exc).__name__}; see its own log"
        return framed({"error": words, "type": "FedheadError"}, b"")
