"""A crowd at the devices' port: connections that say nothing, and requests that never end.

A script, started with the port, the authority's certificate and how many of either. Whoever is put
out comes back. It ends with its input.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import ssl
import sys
from contextlib import suppress

# Those who come back must not take the machine's two cores for themselves.
_NEW_PER_SECOND = 50
_HEAD = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: localhost\r\nx: "


async def member(
    number: int, port: int, context: ssl.SSLContext, turn: asyncio.Lock, slow: bool
) -> None:
    """Be there, and come back."""
    while True:
        async with turn:
            await asyncio.sleep(1 / _NEW_PER_SECOND)
        with suppress(OSError, asyncio.IncompleteReadError):
            # Half of those who say nothing do not even shake hands.
            tls = {"ssl": context, "server_hostname": "localhost"} if slow or number % 2 else {}
            reader, writer = await asyncio.open_connection("127.0.0.1", port, **tls)
            try:
                if slow:
                    for byte in itertools.chain(_HEAD, itertools.repeat(ord("x"))):
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(0.5)
                await reader.read()
            finally:
                writer.close()


async def main(port: int, authority: str, silent: int, slow: int) -> None:
    context, turn = ssl.create_default_context(cafile=authority), asyncio.Lock()
    members = [
        asyncio.create_task(member(number, port, context, turn, slow=number < slow))
        for number in range(silent + slow)
    ]
    await asyncio.to_thread(sys.stdin.read)
    for task in members:
        task.cancel()
    await asyncio.gather(*members, return_exceptions=True)


if __name__ == "__main__":
    _, port, authority, silent, slow = sys.argv
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    asyncio.run(main(int(port), authority, int(silent), int(slow)))
