"""
A TCP port before another, through which a network does what networks do: connections are reset,
fall silent without a word, get slow, or end in the middle of a frame.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

_BLOCK = 1 << 16
# SO_LINGER with no time: closing sends RST, and what was not sent yet is lost.
_AT_ONCE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Side:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.writer.transport.abort()


@dataclass(eq=False)
class Passage:
    """One connection through the proxy."""

    proxy: "Proxy"
    near: _Side  # who connected
    far: _Side | None = None
    silent: bool = False  # bytes vanish, both ways, and nobody is told of anything
    truncating: bool = False  # the next bytes are cut short, and then the connection ends

    @property
    def port(self) -> int:
        """Of who connected."""
        return self.near.writer.get_extra_info("peername")[1]

    def sides(self) -> list[_Side]:
        return [self.near, self.far] if self.far else [self.near]

    def reset(self) -> None:
        for side in self.sides():
            side.reset()

    async def pump(self, source: _Side, sink: _Side) -> None:
        try:
            while data := await source.reader.read(_BLOCK):
                if self.proxy.delay_s:
                    await asyncio.sleep(self.proxy.delay_s)
                if self.silent:
                    continue
                if self.truncating:
                    sink.writer.write(data[: len(data) // 2])
                    for side in self.sides():
                        side.writer.close()
                    return
                sink.writer.write(data)
                await sink.writer.drain()
            if not self.silent and sink.writer.can_write_eof():
                sink.writer.write_eof()
        except OSError:
            if not self.silent:
                self.reset()


class Proxy:
    def __init__(self, target: int = 0):
        self.target = target
        self._passages: set[Passage] = set()
        self._server: asyncio.Server | None = None
        self.delay_s = 0.0
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server
        self._server.close()
        self.reset()
        while self._passages:
            await asyncio.sleep(0.01)
        await self._server.wait_closed()

    def __len__(self) -> int:
        return len(self._passages)

    def _chosen(self, ports: Collection[int] | None) -> list[Passage]:
        return [p for p in self._passages if ports is None or p.port in ports]

    # Each for connections from these ports, or for all; answers how many there were.

    def reset(self, ports: Collection[int] | None = None) -> int:
        chosen = self._chosen(ports)
        for passage in chosen:
            passage.silent = True  # whatever is still under way
            passage.reset()
        return len(chosen)

    def silence(self, ports: Collection[int] | None = None) -> int:
        chosen = self._chosen(ports)
        for passage in chosen:
            passage.silent = True
        return len(chosen)

    def truncate(self, ports: Collection[int] | None = None) -> int:
        chosen = self._chosen(ports)
        for passage in chosen:
            passage.truncating = True
        return len(chosen)

    async def delay(self, seconds: float, lasting_s: float) -> None:
        """Everything comes later for a while, in both directions."""
        self.delay_s = seconds
        await asyncio.sleep(lasting_s)
        self.delay_s = 0.0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passage = Passage(self, _Side(reader, writer))
        self._passages.add(passage)
        try:
            try:
                target = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                passage.reset()
                return
            near, far = passage.near, _Side(*target)
            passage.far = far
            # Silent ones last until both sides have given up by themselves.
            await asyncio.gather(passage.pump(near, far), passage.pump(far, near))
        finally:
            self._passages.discard(passage)
            for side in passage.sides():
                side.writer.close()
