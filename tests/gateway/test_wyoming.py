"""
Wyoming's own client before a real gateway: who is let in, who is sent away, and what each is told.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.fronted import FakeWorker, Gateway, gateway_over
from support.registered import BEGIN, final
from websockets.asyncio.server import ServerConnection
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info

from dalston.gateway.access.keys import RedisKeys, make
from dalston.gateway.settings import GatewaySettings
from dalston.triton.process import free_port


async def answer(connection: ServerConnection) -> None:
    """A worker that says a sentence at each flush: the number of bytes since the last."""
    await connection.send(BEGIN)
    number = heard = 0
    async for frame in connection:
        if isinstance(frame, bytes):
            heard += len(frame)
        elif json.loads(frame)["type"] == "flush":
            said = json.loads(final(number)) | {"text": f"{heard} bytes"}
            await connection.send(json.dumps(said))
            await connection.send('{"type":"flushed","at":1.0}')
            number, heard = number + 1, 0


@asynccontextmanager
async def served(redis_url: str, **settings: Any) -> AsyncGenerator[tuple[Gateway, int]]:
    port = free_port()
    async with gateway_over(redis_url, wyoming_port=port, **settings) as gateway:
        yield gateway, port


async def utterance(client: AsyncTcpClient, chunks: int) -> None:
    await client.write_event(Transcribe(language="en").event())
    await client.write_event(AudioStart(16_000, 2, 1).event())
    for _ in range(chunks):
        await client.write_event(AudioChunk(16_000, 2, 1, bytes(2048)).event())
    await client.write_event(AudioStop().event())


async def until_event(client: AsyncTcpClient, kind: str) -> Event:
    async with asyncio.timeout(10):
        while (event := await client.read_event()) is not None:
            if event.type == kind:
                return event
    pytest.fail(f"the connection ended without {kind}")


async def test_several_utterances_on_one_connection_have_a_transcript_each(redis_url: str) -> None:
    async with (
        served(redis_url) as (gateway, port),
        FakeWorker(gateway.slots, "a", answer).running(),
    ):
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Describe().event())
            info = Info.from_event(await until_event(client, "info"))
            assert info.asr[0].models[0].languages == ["en"]  # those of the worker
            for chunks in (3, 5):
                await utterance(client, chunks)
                said = Transcript.from_event(await until_event(client, "transcript"))
                assert said.text == f"{chunks * 2048} bytes"
            assert await gateway.held() == 1
        await gateway.until_held(0)


async def test_who_gets_no_slot_is_told_so(redis_url: str) -> None:
    async with served(redis_url) as (_, port), AsyncTcpClient("127.0.0.1", port) as client:
        await utterance(client, 1)
        assert Error.from_event(await until_event(client, "error")).code == "no_capacity"
        assert await client.read_event() is None


async def test_where_callers_need_keys_they_count_as_one(redis_url: str) -> None:
    text, key = make("home", 1)
    async with served(redis_url, api_keys="redis", wyoming_key=text) as (gateway, port):
        async with FakeWorker(gateway.slots, "a", answer).running():
            async with AsyncTcpClient("127.0.0.1", port) as client:  # before there is such a key
                await utterance(client, 1)
                assert Error.from_event(await until_event(client, "error")).code == "unauthorized"
            await RedisKeys(gateway.client).add(key)
            async with (
                AsyncTcpClient("127.0.0.1", port) as first,
                AsyncTcpClient("127.0.0.1", port) as second,
            ):
                await utterance(first, 1)
                await until_event(first, "transcript")
                await utterance(second, 1)
                assert Error.from_event(await until_event(second, "error")).code == "rate_limit"


def test_without_a_key_for_them_the_port_is_not_opened() -> None:
    with pytest.raises(ValueError, match="DALSTON_WYOMING_KEY"):
        GatewaySettings(redis_url="redis://x", api_keys="redis", wyoming_port=10300)  # pyright: ignore[reportCallIssue]


async def test_one_connection_too_many_is_told_so(redis_url: str) -> None:
    async with served(redis_url, connections=1) as (_, port):
        async with (
            AsyncTcpClient("127.0.0.1", port) as first,
            AsyncTcpClient("127.0.0.1", port) as second,
        ):
            await first.write_event(Describe().event())
            await until_event(first, "info")
            assert Error.from_event(await until_event(second, "error")).code == "rate_limit"


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\r\n\r\n", b"x" * 20_000])
async def test_what_is_no_event_is_told_and_ends_the_connection(
    redis_url: str, line: bytes
) -> None:
    async with served(redis_url) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(line)
        async with asyncio.timeout(10):
            assert b"not an event of Wyoming" in await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_an_event_that_is_too_long_ends_the_connection(redis_url: str) -> None:
    async with (
        served(redis_url, frame_bytes=20_000) as (gateway, port),
        FakeWorker(gateway.slots, "a", answer).running(),
        AsyncTcpClient("127.0.0.1", port) as client,
    ):
        await client.write_event(AudioStart(16_000, 2, 1).event())
        await client.write_event(AudioChunk(16_000, 2, 1, bytes(30_000)).event())
        assert "30" in Error.from_event(await until_event(client, "error")).text


async def test_a_drain_sends_away_who_has_not_begun(redis_url: str) -> None:
    async with served(redis_url, drain_seconds=0.0) as (gateway, port):
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Describe().event())
            await until_event(client, "info")
            gateway.stop.set()
            assert Error.from_event(await until_event(client, "error")).code == "no_capacity"


async def test_a_worker_that_dies_in_mid_utterance_costs_no_word(redis_url: str) -> None:
    async def die(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await connection.recv()
        connection.transport.abort()

    async with (
        served(redis_url) as (gateway, port),
        FakeWorker(gateway.slots, "a", die).running(),
        AsyncTcpClient("127.0.0.1", port) as client,
    ):
        await client.write_event(AudioStart(16_000, 2, 1).event())
        await client.write_event(AudioChunk(16_000, 2, 1, bytes(2048)).event())
        await gateway.until_held(1)
        async with FakeWorker(gateway.slots, "b", answer).running():
            await utterance(client, 2)
            said = Transcript.from_event(await until_event(client, "transcript"))
            assert said.text == f"{3 * 2048} bytes"
            await client.disconnect()
            await gateway.until_held(0)
