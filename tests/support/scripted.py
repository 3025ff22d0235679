"""
A server that says what a test wants, one part for each connection.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

RATE = 8_000
CONFIG = {"sample_rate": RATE, "encoding": "pcm_s16le", "channels": 1}

Part = Callable[["Line"], Awaitable[None]]


class Line:
    """One connection as the server sees it."""

    def __init__(self, connection: ServerConnection):
        self._connection = connection
        assert connection.request
        self.headers = connection.request.headers
        self.query = dict(parse_qsl(urlsplit(connection.request.path).query))
        self.audio = b""
        self.messages: list[tuple[int, str]] = []  # bytes before it, type
        self.at = asyncio.get_running_loop().time()

    async def say(self, kind: str, **fields: Any) -> None:
        await self._connection.send(json.dumps({"type": kind, **fields}))

    async def begin(self, **fields: Any) -> None:
        await self.say("session.begin", session_id="sess_1", config=CONFIG, warnings=[], **fields)

    async def resume(self, offset_ms: float) -> None:
        await self.begin(resumed_from="sess_1", resume_offset_ms=offset_ms)

    async def ack(self, processed: float, finalised: float) -> None:
        await self.say("ack", received=processed, processed=processed, finalised=finalised)

    async def hear(self, size: int | None = None) -> None:
        """So many bytes, or until `end`."""
        while size is None or len(self.audio) < size:
            frame = await self._connection.recv()
            if isinstance(frame, bytes):
                self.audio += frame
                continue
            kind = json.loads(frame)["type"]
            self.messages.append((len(self.audio), kind))
            if kind == "end":
                return

    async def finish(self) -> None:
        await self.say("session.end", reason="client_end", total_duration=2.0)
        await self._connection.close()

    async def close(self, code: int) -> None:
        await self._connection.close(code)

    def freeze(self) -> None:
        """Read nothing more: not even pings."""
        self._connection.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]

    def cut(self) -> None:
        self._connection.transport.abort()


@asynccontextmanager
async def server(*parts: Part) -> AsyncGenerator[tuple[str, list[Line]]]:
    """Each connection is the next part."""
    lines = list[Line]()

    async def serve_one(connection: ServerConnection) -> None:
        lines.append(Line(connection))
        try:
            await parts[len(lines) - 1](lines[-1])
        except ConnectionClosed:
            pass

    def chosen(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        return offered[0] if offered else None

    async with serve(
        serve_one,
        "127.0.0.1",
        0,
        compression=None,
        close_timeout=0.2,
        select_subprotocol=chosen,
    ) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}", lines
