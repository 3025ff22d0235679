"""
The other side of a worker's WebSocket, gateway or client, as a session's handler wants it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed


async def frames(connection: ServerConnection) -> AsyncIterator[str | bytes]:
    """Until the other side closes, in order or not."""
    with contextlib.suppress(ConnectionClosed):
        async for frame in connection:
            yield frame


def sender(connection: ServerConnection) -> Callable[[str], Awaitable[None]]:
    """Waits as long as the other side does not read. Raises ConnectionError."""

    async def send(text: str) -> None:
        try:
            await connection.send(text)
        except ConnectionClosed as gone:
            raise ConnectionError(str(gone)) from None

    return send


async def close(connection: ServerConnection, code: int, patience_s: float) -> None:
    """Alone, the library would wait for ever for one that does not read: its keepalive too."""
    try:
        async with asyncio.timeout(patience_s):
            await connection.close(code)
    except TimeoutError:
        connection.transport.abort()
