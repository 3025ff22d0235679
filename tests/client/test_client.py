"""
The client that people import, against a server that says what the test wants.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from websockets.asyncio.server import ServerConnection, serve

from dalston import client

Script = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def server(script: Script) -> AsyncGenerator[str]:
    async with serve(script, "127.0.0.1", 0) as running:
        yield f"ws://127.0.0.1:{next(iter(running.sockets)).getsockname()[1]}"


async def test_events_come_until_session_end() -> None:
    received: list[str | bytes] = []

    async def script(connection: ServerConnection) -> None:
        await connection.send('{"type":"session.begin"}')
        async for frame in connection:
            received.append(frame)
            if frame == '{"type": "end"}':
                await connection.send('{"type":"session.end","transcript":"hello"}')
                await connection.close()

    async with server(script) as url, client.connect(url) as session:
        await session.send(b"\1\2")
        await session.configure(language="es")
        await session.flush()
        await session.clear()
        await session.ping()
        await session.end()
        kinds = [event["type"] async for event in session]
    assert kinds == ["session.begin", "session.end"]
    assert session.ended == {"type": "session.end", "transcript": "hello"}
    assert received[0] == b"\1\2"
    assert [json.loads(frame)["type"] for frame in received[1:]] == [
        "config",
        "flush",
        "clear",
        "ping",
        "end",
    ]
    assert json.loads(received[1])["language"] == "es"


async def test_parameters_and_the_path_are_put_into_the_url() -> None:
    paths: list[str] = []

    async def script(connection: ServerConnection) -> None:
        assert connection.request is not None
        paths.append(connection.request.path)
        await connection.close()

    async with server(script) as url:
        for base in (url, f"{url}/elsewhere?model=accurate"):
            async with client.connect(base, language="en", word_timestamps=True, resume=False):
                pass
    first, second = (urlsplit(path) for path in paths)
    assert first.path == "/v1/audio/transcriptions/stream"
    assert dict(parse_qsl(first.query)) == {"language": "en", "word_timestamps": "true"}
    assert second.path == "/elsewhere"
    assert dict(parse_qsl(second.query))["model"] == "accurate"


async def test_lists_are_written_with_commas_in_the_url_and_as_lists_in_a_config() -> None:
    received: list[str] = []

    async def script(connection: ServerConnection) -> None:
        assert connection.request is not None
        received.append(connection.request.path)
        await connection.send('{"type":"session.begin"}')
        received.append(str(await connection.recv()))
        await connection.close()

    async with server(script) as url:
        parameters: dict[str, Any] = {
            "keywords": ["Zau al Makan", "Quilter"],
            "languages": ("en", "de"),
        }
        async with client.connect(url, resume=False, **parameters) as session:
            await session.configure(keywords=["kine"])
            with pytest.raises(client.SessionFailed):
                _ = [event async for event in session]
    query = dict(parse_qsl(urlsplit(received[0]).query))
    assert query == {"keywords": "Zau al Makan,Quilter", "languages": "en,de"}
    assert json.loads(received[1]) == {"type": "config", "keywords": ["kine"]}


async def test_a_session_that_is_refused_raises_with_the_servers_sentence() -> None:
    async def script(connection: ServerConnection) -> None:
        error = {"type": "error", "code": "no_capacity", "message": "All busy.", "retry_after": 5}
        await connection.send(json.dumps(error))
        await connection.close(1013)

    seen: list[client.Event] = []
    async with server(script) as url, client.connect(url) as session:
        with pytest.raises(client.SessionFailed, match="All busy") as failed:
            seen.extend([event async for event in session])
    assert failed.value.code == 1013
    assert failed.value.error is not None
    assert failed.value.error["retry_after"] == 5


async def test_a_connection_that_breaks_raises_if_it_is_not_to_be_replaced() -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.send('{"type":"session.begin"}')
        connection.transport.abort()

    async with server(script) as url, client.connect(url, resume=False) as session:
        with pytest.raises(client.SessionFailed, match="1006"):
            assert [event async for event in session] == []


async def test_nobody_listening_is_an_os_error() -> None:
    with pytest.raises(OSError, match="Connect call failed"):
        async with client.connect("ws://127.0.0.1:1"):
            pass


async def test_sending_and_receiving_are_independent() -> None:
    async def script(connection: ServerConnection) -> None:
        count = 0
        async for frame in connection:
            if isinstance(frame, bytes):
                count += 1
                partial = {"type": "transcript.partial", "segment_id": "seg_0000", "end": count}
                partial |= {"text": str(count), "stable_chars": 0}
                await connection.send(json.dumps(partial))
            else:
                await connection.send('{"type":"session.end"}')
                await connection.close()

    async with server(script) as url, client.connect(url) as session:

        async def speak() -> None:
            for _ in range(5):
                await session.send(bytes(3200))
                await asyncio.sleep(0.01)
            await session.end()

        speaking = asyncio.create_task(speak())
        first_came_before_the_end = False
        async for event in session:
            first_came_before_the_end |= event.get("text") == "1" and not speaking.done()
        await speaking
    assert first_came_before_the_end
