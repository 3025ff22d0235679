"""
The network that the injector disturbs: what each disturbance looks like to both sides.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from support.certificates import certificate
from support.proxy import Proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Line:
    proxy: Proxy
    near: Streams
    far: Streams

    @property
    def port(self) -> int:
        return self.near[1].get_extra_info("sockname")[1]


@pytest_asyncio.fixture
async def line() -> AsyncGenerator[Line]:
    """Two ends of one connection, with a proxy between."""
    arrived: asyncio.Queue[Streams] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await arrived.put((reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    await proxy.open()
    near = await asyncio.open_connection("127.0.0.1", proxy.port)
    far = await arrived.get()
    try:
        yield Line(proxy, near, far)
    finally:
        near[1].close()
        far[1].close()
        await proxy.close()
        server.close()
        await server.wait_closed()


async def read(streams: Streams, size: int) -> bytes:
    async with asyncio.timeout(5):
        return await streams[0].readexactly(size)


async def test_undisturbed_it_carries_both_ways_and_passes_the_end_on(line: Line) -> None:
    line.near[1].write(b"hello")
    assert await read(line.far, 5) == b"hello"
    line.far[1].write(b"yes")
    assert await read(line.near, 3) == b"yes"
    line.near[1].close()
    async with asyncio.timeout(5):
        assert await line.far[0].read() == b""


async def test_a_reset_is_one_for_both_sides(line: Line) -> None:
    assert line.proxy.reset() == 1
    for streams in (line.near, line.far):
        with pytest.raises(ConnectionResetError):
            await read(streams, 1)


async def test_a_silent_connection_swallows_bytes_and_ends_alike(line: Line) -> None:
    assert line.proxy.silence() == 1
    line.near[1].write(b"hello")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(line.far[0].read(), 0.1)
    line.near[1].close()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(line.far[0].read(), 0.1)


async def test_a_truncated_frame_arrives_half_and_then_the_end(line: Line) -> None:
    assert line.proxy.truncate() == 1
    line.near[1].write(b"12345678")
    async with asyncio.timeout(5):
        assert await line.far[0].read() == b"1234"
        assert await line.near[0].read() == b""


async def test_what_is_delayed_comes_whole_and_in_order(line: Line) -> None:
    delaying = asyncio.create_task(line.proxy.delay(0.2, 0.5))
    await asyncio.sleep(0)
    began = asyncio.get_running_loop().time()
    for digit in b"123":
        line.near[1].write(bytes([digit]))
        await asyncio.sleep(0.01)
    assert await read(line.far, 3) == b"123"
    assert asyncio.get_running_loop().time() - began >= 0.2
    await delaying


async def test_only_the_connections_that_are_meant_are_disturbed(line: Line) -> None:
    assert line.proxy.reset([1]) == 0
    assert line.proxy.reset([line.port]) == 1


async def test_where_nobody_listens_a_connection_is_reset() -> None:
    proxy = Proxy(1)
    await proxy.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.close()
    await proxy.close()


async def test_with_a_certificate_it_ends_tls_and_passes_ends_on(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"heard " + await reader.readexactly(5))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    issued = certificate(tmp_path)
    proxy = Proxy(server.sockets[0].getsockname()[1], issued.server)
    await proxy.open()
    async with asyncio.timeout(10):
        near = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=issued.client)
        near[1].write(b"hello")
        assert await near[0].read() == b"heard hello"
        near[1].close()
        plain = await asyncio.open_connection("127.0.0.1", proxy.port)
        plain[1].write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP" not in await plain[0].read()
        plain[1].close()
    await proxy.close()
    server.close()
    await server.wait_closed()


async def test_a_throttled_or_lossy_connection_carries_everything_in_order(line: Line) -> None:
    said = bytes(range(256)) * 16
    slow = asyncio.create_task(line.proxy.throttle(100_000, 0.2))
    lossy = asyncio.create_task(line.proxy.lose(0.2))
    for at in range(0, len(said), 256):
        line.near[1].write(said[at : at + 256])
        await asyncio.sleep(0.005)
    assert await read(line.far, len(said)) == said
    await asyncio.gather(slow, lossy)
