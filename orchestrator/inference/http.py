"""
HTTP/1.1 to one server, as many connections as there are calls at a time.

What is asked ten times a second for every stream has to cost little: this is a third to a half of
what gRPC costs a call, and half of what a general HTTP client does (docs/log.md).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
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


class Call:
    """A question on its way. `answered` is called with what came of it, once, and not by ask()."""

    def __init__(self, answered: Callable[[Answer | CallFailed], None]):
        self._answered = answered
        self.over = False
        self.connection: _Connection | None = None
        self.connecting: asyncio.Task[None] | None = None

    def end(self, result: Answer | CallFailed) -> None:
        if not self.over:
            self.over = True
            self._answered(result)

    def give_up(self) -> None:
        """Nobody is told any more. Its connection is broken, which does this server no harm."""
        self.over = True
        if self.connection:
            self.connection.transport.abort()
        if self.connecting:
            self.connecting.cancel()


class _Connection(asyncio.Protocol):
    """One call at a time."""

    def __init__(self, wire: "Wire"):
        self._wire = wire
        self._call: Call | None = None
        self._parser = HttpResponseParser(self)
        self._json = -1
        self._body = b""
        self.transport: asyncio.Transport

    def ask(self, request: bytes, call: Call) -> None:
        self._call, call.connection = call, self
        self._json, self._body = -1, b""
        self.transport.write(request)

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
        if self._call:
            sentence = f"{self._wire.url} broke the connection: {exc or 'it closed'}"
            self._call.end(CallFailed(Code.UNAVAILABLE, sentence))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self._json = int(value)

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        call, self._call = self._call, None
        status, keep = self._parser.get_status_code(), self._parser.should_keep_alive()
        json = len(self._body) if self._json < 0 else self._json
        if keep:
            self._wire.free(self)
        else:
            self.transport.close()
        if call:
            call.connection = None
            view = memoryview(self._body)
            call.end(Answer(status, bytes(view[:json]), view[json:]))


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

    def ask(self, request: bytes, answered: Callable[[Answer | CallFailed], None]) -> Call:
        """Send it. `answered` is told the answer, whatever its status, or why there is none."""
        call = Call(answered)
        if self._idle:
            self._idle.pop().ask(request, call)
        else:
            # Not about the session that happened to ask: not in its log lines and traces.
            anew = self._ask_anew(request, call)
            call.connecting = asyncio.create_task(anew, context=Context())
        return call

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

    async def _ask_anew(self, request: bytes, call: Call) -> None:
        connecting = asyncio.get_running_loop().create_connection(
            lambda: _Connection(self), self._host, self._port
        )
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await connecting
        except (OSError, TimeoutError) as error:
            sentence = f"no Triton at {self.url}: {error!r}"
            return call.end(CallFailed(Code.UNAVAILABLE, sentence))
        call.connecting = None
        if self._closed:
            connection.transport.abort()
            return call.end(CallFailed(Code.UNAVAILABLE, f"{self.url} was given up"))
        self._connections.add(connection)
        connection.ask(request, call)
