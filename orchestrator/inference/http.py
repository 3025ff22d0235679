"""
HTTP/1.1 to one server, as many connections as there are exchanges at a time.

What is asked ten times a second for every stream has to cost little: this is a third to a half of
what gRPC costs an exchange, and half of what a general HTTP client does (docs/log.md).
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
    REFUSED = 403  # what controls Triton, without its token (triton/restricted.py)
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


class Exchange:
    """A question on its way. `on_answer` is called with what came of it, once, and not by ask()."""

    def __init__(self, on_answer: Callable[[Answer | CallFailed], None]):
        self._on_answer = on_answer
        self.over = False
        self.connection: _Connection | None = None
        self.connecting: asyncio.Task[None] | None = None

    def finish(self, result: Answer | CallFailed) -> None:
        if not self.over:
            self.over = True
            self._on_answer(result)

    def give_up(self) -> None:
        """Nobody is told any more. Its connection is broken, which does this server no harm."""
        self.over = True
        if self.connection:
            self.connection.transport.abort()
        if self.connecting:
            self.connecting.cancel()


class _Connection(asyncio.Protocol):
    """A connection to the server, with one exchange at a time."""

    def __init__(self, client: "HttpClient"):
        self._client = client
        self._exchange: Exchange | None = None
        self._parser = HttpResponseParser(self)
        self._json = -1
        self._body = b""
        self.transport: asyncio.Transport

    def ask(self, request: bytes, exchange: Exchange) -> None:
        self._exchange, exchange.connection = exchange, self
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
        self._client.lost(self)
        if self._exchange:
            sentence = f"{self._client.url} broke the connection: {exc or 'it closed'}"
            self._exchange.finish(CallFailed(Code.UNAVAILABLE, sentence))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self._json = int(value)

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        status, keep = self._parser.get_status_code(), self._parser.should_keep_alive()
        json = len(self._body) if self._json < 0 else self._json
        if keep:
            self._client.free(self)
        else:
            self.transport.close()
        if exchange:
            exchange.connection = None
            view = memoryview(self._body)
            exchange.finish(Answer(status, bytes(view[:json]), view[json:]))


class HttpClient:
    """url: "host:port"."""

    def __init__(self, url: str):
        self.url = url
        self._host, _, port = url.rpartition(":")
        self._host = self._host.strip("[]")
        self._port = int(port)
        self._idle = deque[_Connection]()
        self._connections = set[_Connection]()
        self._closed = False

    def ask(self, request: bytes, on_answer: Callable[[Answer | CallFailed], None]) -> Exchange:
        """Send it. `on_answer` is told the answer, whatever its status, or why there is none."""
        exchange = Exchange(on_answer)
        if self._idle:
            self._idle.pop().ask(request, exchange)
        else:
            # Not about the session that happened to ask: not in its log lines and traces.
            anew = self._ask_anew(request, exchange)
            exchange.connecting = asyncio.create_task(anew, context=Context())
        return exchange

    def drop_idle(self) -> None:
        """Close idle connections, so that the next request goes over a new one."""
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

    async def _ask_anew(self, request: bytes, exchange: Exchange) -> None:
        connecting = asyncio.get_running_loop().create_connection(
            lambda: _Connection(self), self._host, self._port
        )
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await connecting
        except (OSError, TimeoutError) as error:
            sentence = f"no Triton at {self.url}: {error!r}"
            return exchange.finish(CallFailed(Code.UNAVAILABLE, sentence))
        exchange.connecting = None
        if self._closed:
            connection.transport.abort()
            return exchange.finish(CallFailed(Code.UNAVAILABLE, f"{self.url} was given up"))
        self._connections.add(connection)
        connection.ask(request, exchange)
