"""
A client for dalston's native protocol, to import.

    async with dalston.client.connect("ws://127.0.0.1:8000", language="en") as session:
        await session.send(pcm)      # 16 kHz mono int16 bytes, any size, as they come
        await session.end()
        async for event in session:  # a dict for each message; see docs/protocol.md
            if event["type"] == "transcript.final":
                print(event["text"])

Sending and receiving are independent: do them in two tasks to see text while sending. Depends on
the websockets package alone.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as _websocket
from websockets.exceptions import ConnectionClosed

PATH = "/v1/audio/transcriptions/stream"

Event = dict[str, Any]


class SessionFailed(Exception):
    """The server closed the session before its end. `code` is the WebSocket close code, `error`
    the last error message, if there was one."""

    def __init__(self, code: int, error: Event | None):
        sentence = error["message"] if error else f"the connection closed with code {code}"
        super().__init__(sentence)
        self.code, self.error = code, error


class Session:
    """One transcription: send audio, iterate over events."""

    def __init__(self, connection: ClientConnection):
        self._connection = connection
        self._error: Event | None = None
        self.ended: Event | None = None  # the session.end message, once it came

    async def send(self, audio: bytes) -> None:
        """Some audio in the encoding agreed on. Waits while the server is behind.

        Raises SessionFailed, as all that sends, once the server has closed.
        """
        await self._send(audio)

    async def flush(self) -> None:
        """End the utterance here: its final comes at once."""
        await self._message("flush")

    async def clear(self) -> None:
        """Forget the utterance that is being spoken."""
        await self._message("clear")

    async def configure(self, **settings: Any) -> None:
        """Change settings from here on, such as language="es"."""
        await self._message("config", **settings)

    async def ping(self) -> None:
        await self._message("ping")

    async def end(self) -> None:
        """No more audio: what was said is finished, then session.end comes."""
        await self._message("end")

    def abort(self) -> None:
        """Drop the connection without a word; the server takes its slot back."""
        self._connection.transport.abort()

    async def _message(self, kind: str, **fields: Any) -> None:
        await self._send(json.dumps({"type": kind, **fields}))

    async def _send(self, frame: str | bytes) -> None:
        try:
            await self._connection.send(frame)
        except ConnectionClosed:
            raise self._failure() from None

    def _failure(self) -> SessionFailed:
        return SessionFailed(self._connection.close_code or 1006, self._error)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events until session.end, which is the last. Raises SessionFailed if it never comes."""
        try:
            async for frame in self._connection:
                event: Event = json.loads(frame)
                if event["type"] == "error":
                    self._error = event
                elif event["type"] == "session.end":
                    self.ended = event
                yield event
        except ConnectionClosed:
            pass
        if self.ended is None:
            raise self._failure()


@asynccontextmanager
async def connect(url: str, **parameters: Any) -> AsyncGenerator[Session]:
    """A session with the server at `url` (ws:// or wss://, a path is optional).

    parameters: those of the stream, such as language, model, word_timestamps, sample_rate.
    Raises OSError when nobody listens there.
    """
    parts = urlsplit(url)
    written = {k: str(v).lower() if isinstance(v, bool) else v for k, v in parameters.items()}
    query = "&".join(part for part in (parts.query, urlencode(written)) if part)
    path = parts.path if parts.path not in ("", "/") else PATH
    address = urlunsplit((parts.scheme, parts.netloc, path, query, ""))
    async with _websocket(address, compression=None, max_size=None) as connection:
        yield Session(connection)
