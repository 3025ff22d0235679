"""
Connections that never say what they want.
"""

import asyncio
import contextlib
from typing import Any

import pytest
import uvicorn
from support.fronted import FakeWorker, echo, gateway_over
from support.waiting import until
from uvicorn.server import ServerState

from dalston.gateway.transport import handshake

REQUEST = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
UPGRADE = (
    b"GET /v1/audio/transcriptions/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
)


@pytest.mark.parametrize(
    "said", [b"", REQUEST, UPGRADE], ids=["nothing", "half", "half an upgrade"]
)
async def test_who_does_not_ask_in_time_is_closed(redis_url: str, said: bytes) -> None:
    async with gateway_over(redis_url, handshake_seconds=0.3) as gateway:
        reader, writer = await asyncio.open_connection(*gateway.url.split(":"))
        writer.write(said)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_who_begins_a_second_question_and_does_not_end_it_is_closed(redis_url: str) -> None:
    async with gateway_over(redis_url, handshake_seconds=0.3) as gateway:
        reader, writer = await asyncio.open_connection(*gateway.url.split(":"))
        writer.write(REQUEST + b"\r\n" + REQUEST)
        async with asyncio.timeout(10):
            answers = await reader.read()
        assert answers.count(b"HTTP/1.1 ") == 1
        writer.close()


async def test_who_asks_in_time_is_answered_and_a_stream_goes_on_for_longer(redis_url: str) -> None:
    async with gateway_over(redis_url, handshake_seconds=0.3) as gateway:
        reader, writer = await asyncio.open_connection(*gateway.url.split(":"))
        for piece in (REQUEST[:9], REQUEST[9:], b"\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 ")
        writer.close()
        async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
            await stream.recv()
            await asyncio.sleep(0.6)
            await stream.send(bytes(320))
            await stream.recv()


STREAM = b"GET /v1/audio/transcriptions/stream"
ASKED = (
    b"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
LONG = STREAM + b"?keyterms=%s HTTP/1.1\r\n" + ASKED + b"\r\n"
POST = b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
CHUNKED = POST.replace(b"Content-Length: 100000", b"Transfer-Encoding: chunked")
HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(1, 180))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (LONG % (b"a" * 8_500), b"414"),
        (LONG % (b"a" * 20_000), b"414"),
        (LONG % (b"a" * 60_000), b"414"),
        (LONG % (b"a" * 200_000), b""),
        (STREAM + b" HTTP/1.1\r\n" + ASKED + b"X: y\r\n" * 200 + b"\r\n", b"431"),
        (STREAM + b" HTTP/1.1\r\n" + ASKED + b"X: " + b"y" * 9000 + b"\r\n\r\n", b"431"),
        (STREAM.replace(b"GET", b"POST") + b" HTTP/1.1\r\n" + ASKED + b"\r\n", b"4"),
        (STREAM + b" HTTP/1.1\r\n" + ASKED + b"Content-Length: 9\r\n\r\n", b"400"),
        (UPGRADE + b"Connection: Upgrade\r\n\r\n", b"400"),
        (POST, b"405"),
        (POST + b"x" * 500, b"405"),
        (CHUNKED + b"5\r\nab", b"405"),
        (CHUNKED + b"z\r\n", b"4"),
        (POST.replace(b"health", b"v1/nothing"), b"404"),
        (HELLO, b""),
        (HELLO + b"\r\n\r\n", b"400"),
        (b"\0" * 3000, b""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"404"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nmore", b"40"),
    ],
)  # fmt: skip
async def test_whatever_is_said_the_connection_ends(
    redis_url: str, said: bytes, answer: bytes
) -> None:
    async with gateway_over(redis_url, handshake_seconds=0.3) as gateway:
        reader, writer = await asyncio.open_connection(*gateway.url.split(":"))
        writer.write(said)
        told = b""
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(10):
                while more := await reader.read(100_000):
                    told += more
        assert told.startswith(b"HTTP/1.1 " + answer if answer else b"")
        writer.close()


async def test_a_long_line_that_is_not_too_long_is_taken(redis_url: str) -> None:
    async with gateway_over(redis_url, handshake_seconds=0.3) as gateway:
        reader, writer = await asyncio.open_connection(*gateway.url.split(":"))
        writer.write(LONG % (b"a" * 8_000))
        assert (await reader.readline()).startswith(b"HTTP/1.1 101")
        writer.close()


async def test_of_those_who_ask_nothing_who_has_waited_longest_goes(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "MOST_WAITING", 3)
    async with gateway_over(redis_url) as gateway:
        silent, writers = list[asyncio.StreamReader](), list[asyncio.StreamWriter]()
        for _ in range(5):
            reader, writer = await asyncio.open_connection(*gateway.url.split(":"))
            writer.write(b"G")
            silent.append(reader)
            writers.append(writer)
        for reader in silent[:2]:
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
        assert (await gateway.http("/health"))[0] == 503  # there is no worker
        assert not silent[4].at_eof()
        for writer in writers:
            writer.close()


class Line(asyncio.Transport):
    """A connection whose other end is the test."""

    def __init__(self, protocol: asyncio.Protocol):
        super().__init__()
        self.protocol, self.reads = protocol, True

    def get_protocol(self) -> asyncio.Protocol:
        return self.protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


async def test_a_request_that_comes_byte_by_byte_is_read_in_rounds() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    config = uvicorn.Config(app, log_config=None)
    config.load()
    protocol = handshake.handshake_within(10)(config, ServerState(), {})
    line = Line(protocol)
    protocol.connection_made(line)
    for byte in b"GET / HT":
        protocol.data_received(bytes([byte]))
    assert line.reads  # as clients do that send a request in parts
    protocol.data_received(b"T")
    assert not line.reads
    await until(lambda: line.reads)
    protocol.data_received(b"P")
    assert not line.reads
    protocol.connection_lost(None)


async def _answer(body: bytes, pieces: int, every_s: float, patience_s: float) -> bytes:
    """Of an app that reads all of a body, which comes in pieces."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read, more = 0, True
        while more:
            part = await receive()
            if part["type"] == "http.disconnect":
                return
            read, more = read + len(part["body"]), part["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"read {read}".encode()})

    config = uvicorn.Config(app, log_config=None, lifespan="off")
    config.load()
    kind = handshake.handshake_within(patience_s)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: kind(config, ServerState(), {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n")
        writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode())
        each, answer = len(body) // pieces, b""
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(body), each):
                writer.write(body[at : at + each])
                await asyncio.sleep(every_s)
            async with asyncio.timeout(10):
                answer = await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answer


async def test_a_body_that_comes_steadily_has_as_long_as_it_takes() -> None:
    assert b"read 200000" in await _answer(bytes(200_000), 10, 0.1, patience_s=0.3)


async def test_a_body_that_comes_in_crumbs_is_not_waited_for() -> None:
    assert b"read" not in await _answer(bytes(100), 20, 0.1, patience_s=0.3)
