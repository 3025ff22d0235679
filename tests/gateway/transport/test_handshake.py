"""
Connections that never say what they want.
"""

import asyncio

import pytest
from support.fronted import FakeWorker, echo, gateway_over

REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n"
UPGRADE = b"GET /v1/audio/transcriptions/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"


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
