"""
A TCP port before another, through which a network does what networks do: connections are reset,
fall silent without a word, get slow, lose packets, or end in the middle of a frame. With a
certificate it is what ends TLS in front of a server.
"""

import asyncio
import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

_BLOCK = 1 << 16
# SO_LINGER with no time: closing sends RST, and what was not sent yet is lost.
_AT_ONCE = struct.pack("ii", 1, 0)
# A lost packet comes again after the sender's patience (RFC 6298: 200 ms or more, doubled each
# time), and everything after it waits: TCP keeps the order.
_LOST, _AGAIN_S = 0.15, (0.2, 0.8)
_HANDSHAKE_S, _TLS_CLOSE_S = 3.0, 0.5


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
                if wait_s := self.proxy.hold_s(len(data)):
                    await asyncio.sleep(wait_s)
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
            elif not self.silent:  # TLS: what has ended in one direction has ended
                sink.writer.close()
        except OSError:
            if not self.silent:
                self.reset()


class Proxy:
    def __init__(self, target: int = 0, tls: ssl.SSLContext | None = None):
        """tls: of a server, where those who connect speak TLS and the target does not."""
        self.target, self._tls = target, tls
        self._passages: set[Passage] = set()
        self._server: asyncio.Server | None = None
        self.delay_s = 0.0
        self.bytes_per_s = 0  # of each direction of a connection; 0: as fast as it goes
        self.lossy = False
        self.port = 0

    async def open(self) -> None:
        patience: dict[str, Any] = {}
        if self._tls:
            patience = {"ssl_handshake_timeout": _HANDSHAKE_S, "ssl_shutdown_timeout": _TLS_CLOSE_S}
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._tls, **patience
        )
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

    # Each for all connections, those to come included, in both directions, for a while.

    async def delay(self, seconds: float, lasting_s: float) -> None:
        """Everything comes later."""
        self.delay_s = seconds
        await asyncio.sleep(lasting_s)
        self.delay_s = 0.0

    async def throttle(self, bytes_per_s: int, lasting_s: float) -> None:
        """Not more than that comes through in a second."""
        self.bytes_per_s = bytes_per_s
        await asyncio.sleep(lasting_s)
        self.bytes_per_s = 0

    async def lose(self, lasting_s: float) -> None:
        """Packets get lost, and come again later."""
        self.lossy = True
        await asyncio.sleep(lasting_s)
        self.lossy = False

    def hold_s(self, size: int) -> float:
        """How long so many bytes are under way."""
        held_s = self.delay_s
        if self.bytes_per_s:
            held_s += size / self.bytes_per_s
        if self.lossy and random.random() < _LOST:
            held_s += random.uniform(*_AGAIN_S)
        return held_s

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
