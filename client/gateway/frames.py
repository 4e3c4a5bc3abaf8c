"""Messages between the gateway's service and its bridge: words and a content, over a unix socket.

A frame is two lengths, unsigned 32 and 64 bits, big-endian; then JSON, then bytes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

from common.errors import ProtocolError

__all__ = ["framed", "receive", "receive_async"]

_LENGTHS = struct.Struct(">IQ")
_MOST_WORDS, _MOST_CONTENT = 1 << 20, 1 << 32

Frame = tuple[dict[str, Any], bytes]


def framed(words: Mapping[str, object], content: bytes) -> bytes:
    """The bytes of a frame."""
    text = json.dumps(words).encode()
    return _LENGTHS.pack(len(text), len(content)) + text + content


def _lengths(head: bytes) -> tuple[int, int]:
    words, content = _LENGTHS.unpack(head)
    if words > _MOST_WORDS or content > _MOST_CONTENT:
        raise ProtocolError(f"a frame of {words} and {content} bytes")
    return words, content


def receive(connection: socket.socket) -> Frame:
    """Wait for a frame.

    Raises:
        OSError: the connection has ended, or its timeout is over.
        ProtocolError: it is no frame.
    """
    words, content = _lengths(_exactly(connection, _LENGTHS.size))
    return json.loads(_exactly(connection, words)), _exactly(connection, content)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(min(count - len(data), 1 << 20))
        if not part:
            raise ConnectionResetError("the service has closed the connection")
        data += part
    return bytes(data)


async def receive_async(reader: asyncio.StreamReader) -> Frame:
    """The same for asyncio.

    Raises:
        asyncio.IncompleteReadError: the connection has ended.
        ProtocolError: it is no frame.
    """
    words, content = _lengths(await reader.readexactly(_LENGTHS.size))
    return json.loads(await reader.readexactly(words)), await reader.readexactly(content)
