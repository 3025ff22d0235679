"""
HTTP/1.1 to one server, as many connections as there are calls at a time.

What is asked ten times a second for every stream has to cost little: this is a third to a half of
what gRPC costs a call, and half of what a general HTTP client does (docs/log.md).
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import cast

from httptools import HttpParserError, HttpResponseParser

CONNECT_S = 1.0  # for a connection


class Code(Enum):
    """Why there is no answer: the HTTP status that Triton gives, and two of our own."""

    INVALID_ARGUMENT = 400
    NOT_FOUND = 404
    INTERNAL = 500
    UNIMPLEMENTED = 501
    UNAVAILABLE = 503
    DEADLINE_EXCEEDED = 0  # told by our own side, so no sign of life


class CallFailed(Exception):
    """There is no answer, and there will be none."""

    def __init__(self, code: Code, sentence: str):
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Answer:
    status: int
    json: bytes
    binary: memoryview  # what follows the JSON of an inference


class _Connection(asyncio.Protocol):
    """One call at a time."""

    def __init__(self, wire: "Wire"):
        self._wire = wire
        self._answer: asyncio.Future[Answer] | None = None
        self._parser = HttpResponseParser(self)
        self._json = -1
        self._body = b""
        self.transport: asyncio.Transport

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        self._answer = asyncio.get_running_loop().create_future()
        self._answer.add_done_callback(self._given_up)
        self._json, self._body = -1, b""
        self.transport.write(request)
        return self._answer

    def _given_up(self, answer: asyncio.Future[Answer]) -> None:
        if answer.cancelled():
            self.transport.abort()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.lost(self)
        if self._answer and not self._answer.done():
            sentence = f"{self._wire.url} broke the connection: {exc or 'it closed'}"
            self._answer.set_exception(CallFailed(Code.UNAVAILABLE, sentence))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self._json = int(value)

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        answer, self._answer = self._answer, None
        status, keep = self._parser.get_status_code(), self._parser.should_keep_alive()
        json = len(self._body) if self._json < 0 else self._json
        if keep:
            self._wire.free(self)
        else:
            self.transport.close()
        if answer and not answer.done():
            view = memoryview(self._body)
            answer.set_result(Answer(status, bytes(view[:json]), view[json:]))


class Wire:
    """url: "host:port"."""

    def __init__(self, url: str):
        self.url = url
        self._host, _, port = url.rpartition(":")
        self._host = self._host.strip("[]")
        self._port = int(port)
        self._idle = deque[_Connection]()
        self._connections = set[_Connection]()
        self._closed = False

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        """Send it; the answer, whatever its status. CallFailed if there is none. If it is cancelled
        its connection is broken, which does this server no harm."""
        if self._idle:
            return self._idle.pop().ask(request)
        return asyncio.ensure_future(self._ask_anew(request))

    def drop_idle(self) -> None:
        """What is asked next goes over new connections."""
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()

    def abort(self) -> None:
        """Break all connections."""
        self._closed = True
        for connection in self._connections:
            connection.transport.abort()

    def free(self, connection: _Connection) -> None:
        self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def _ask_anew(self, request: bytes) -> Answer:
        connecting = asyncio.get_running_loop().create_connection(
            lambda: _Connection(self), self._host, self._port
        )
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await connecting
        except (OSError, TimeoutError) as error:
            raise CallFailed(Code.UNAVAILABLE, f"no Triton at {self.url}: {error!r}") from None
        if self._closed:
            connection.transport.abort()
            raise CallFailed(Code.UNAVAILABLE, f"{self.url} was given up")
        self._connections.add(connection)
        return await connection.ask(request)
