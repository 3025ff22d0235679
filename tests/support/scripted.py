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

    async def begin_apart(self, **fields: Any) -> None:
        """A session for each of two channels; one that is resumed by its own id."""
        for channel, id in enumerate(("sess_0", "sess_1")):
            told = fields | ({"resumed_from": id} if "resume_offset_ms" in fields else {})
            begin = {"session_id": id, "config": CONFIG, "warnings": [], "channel": channel}
            await self.say("session.begin", **begin, **told)

    async def end_apart(self) -> None:
        for channel in (1, 0):
            end = {"reason": "client_end", "total_duration": 1.0, "channel": channel}
            await self.say("session.end", **end)
        await self._connection.close()

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


async def apart_broken(line: Line) -> None:
    """Two channels, of which the first has a final and the second speaks, when it breaks."""
    await line.begin_apart()
    await line.say("vad.speech_start", timestamp=0.5, channel=1)
    await line.say("transcript.eager", channel=1, **_final("seg_0000", "two", 0.5))
    await line.hear(4 * 6000)
    await line.say("transcript.final", channel=0, **_final("seg_0000", "one", 0.1))
    for channel, finalised in ((0, 0.6), (1, 0.4)):
        ack = {"received": 0.7, "processed": 0.7, "finalised": finalised, "channel": channel}
        await line.say("ack", **ack)
    await asyncio.sleep(0.1)
    line.cut()


async def apart_resumed(line: Line) -> None:
    await line.begin_apart(resume_offset_ms=400.0)
    await line.say("transcript.final", channel=0, **_final("seg_0000", "one", 0.1))
    await line.say("vad.speech_start", timestamp=0.5, channel=1)
    await line.hear()
    await line.say("transcript.final", channel=1, **_final("seg_0000", "two", 0.5))
    await line.end_apart()


def _final(segment: str, text: str, start: float) -> dict[str, Any]:
    return {"segment_id": segment, "text": text, "start": start, "end": start + 0.3}


# What an application is told of both, and of which channel.
APART_TOLD = [
    ("session.begin", 0),
    ("session.begin", 1),
    ("vad.speech_start", 1),
    ("transcript.eager", 1),
    ("transcript.final", 0),
    ("connection.lost", None),
    ("transcript.withdrawn", 1),
    ("connection.resumed", None),
    ("vad.speech_end", 1),
    ("transcript.final", 1),
    ("session.end", 1),
    ("session.end", 0),
]
