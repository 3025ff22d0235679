"""
HTTP/1.1 to a server that answers, breaks the connection, or does neither.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from support.waiting import until

from dalston.orchestrator.inference.http import Answer, CallFailed, Code, HttpClient
from dalston.triton.process import free_port

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes, json: int | None = None, status: str = "200 OK") -> bytes:
    more = "" if json is None else f"Inference-Header-Content-Length: {json}\r\n"
    return f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def serving(script: Script) -> AsyncGenerator[tuple[HttpClient, list[int]]]:
    """A client of a server that does this with each connection, and how many there were."""
    connections = [0]

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[0] += 1
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    client = HttpClient(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield client, connections
    finally:
        client.abort()
        server.close()
        await asyncio.sleep(0.01)


async def answered(client: HttpClient) -> Answer | CallFailed:
    waiting: asyncio.Future[Answer | CallFailed] = asyncio.get_running_loop().create_future()
    client.ask(REQUEST, waiting.set_result)
    return await asyncio.wait_for(waiting, 5)


async def test_a_connection_is_used_again_and_json_is_cut_from_what_follows() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(b'{"a":1}tail', json=7))

    async with serving(echo) as (client, connections):
        for _ in range(3):
            result = await answered(client)
            assert isinstance(result, Answer)
            assert (result.status, result.json, bytes(result.binary)) == (200, b'{"a":1}', b"tail")
        assert connections == [1]
        client.drop_idle()
        await answered(client)
        assert connections == [2]


async def test_a_connection_that_breaks_in_the_middle_is_a_failure() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"0123456789")[:-5])

    async with serving(half) as (client, _):
        result = await answered(client)
    assert isinstance(result, CallFailed)
    assert result.code is Code.UNAVAILABLE


async def test_what_is_no_http_is_a_failure() -> None:
    async def gibberish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"what?\r\n\r\n")
        await reader.read()

    async with serving(gibberish) as (client, _):
        assert isinstance(await answered(client), CallFailed)


async def test_nobody_there_is_a_failure() -> None:
    result = await answered(HttpClient(f"127.0.0.1:{free_port()}"))
    assert isinstance(result, CallFailed)
    assert result.code is Code.UNAVAILABLE


async def test_what_is_given_up_is_told_to_nobody_and_its_connection_is_broken() -> None:
    broken = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            await reader.read()
        finally:
            broken.set()

    told = list[Answer | CallFailed]()
    async with serving(silent) as (client, connections):
        exchange = client.ask(REQUEST, told.append)
        await until(lambda: connections == [1] and exchange.connection)
        exchange.give_up()
        await asyncio.wait_for(broken.wait(), 5)
    assert told == []
