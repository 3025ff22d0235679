"""
A WebSocket client that can say what no library lets you say: any bits, any bytes, in any order.
"""

import asyncio
import base64
import contextlib
import json
import os
import struct
from dataclasses import dataclass, field
from typing import Any

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(
    opcode: int, payload: bytes, *, fin: bool = True, reserved: int = 0, masked: bool = True
) -> bytes:
    """One frame; control frames and lengths may break the rules."""
    first = (0x80 if fin else 0) | (reserved << 4) | opcode
    mask = 0x80 if masked else 0
    if len(payload) < 126:
        head = struct.pack("!BB", first, mask | len(payload))
    elif len(payload) < 1 << 16:
        head = struct.pack("!BBH", first, mask | 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, mask | 127, len(payload))
    # A mask of zeros changes nothing.
    return head + (bytes(4) if masked else b"") + payload


def masked(frame: bytes, mask: bytes) -> bytes:
    """A frame of frame() with another mask."""
    at = {126: 4, 127: 10}.get(frame[1] & 0x7F, 2)
    payload = frame[at + 4 :]
    return frame[:at] + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))


@dataclass
class Wire:
    """One connection. What the server says is collected as it comes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    close_code: int | None = None  # 1005: a close frame without a code
    finished: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, port: int, path: str) -> "Wire":
        """Raises ConnectionRefusedError when there is no WebSocket behind the path."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            writer.close()
            raise ConnectionRefusedError(head.split(b"\r\n")[0].decode())
        wire = cls(reader, writer)
        wire.finished = asyncio.create_task(wire._listen())
        return wire

    @property
    def ended(self) -> bool:
        return self.finished is not None and self.finished.done()

    async def send(self, data: bytes) -> None:
        """Nothing happens when the server has gone."""
        with contextlib.suppress(OSError):
            self.writer.write(data)
            await self.writer.drain()

    async def _listen(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                first, second = await self.reader.readexactly(2)
                length = second & 0x7F
                if length == 126:
                    (length,) = struct.unpack("!H", await self.reader.readexactly(2))
                elif length == 127:
                    (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
                payload = await self.reader.readexactly(length)
                match first & 0x0F:
                    case 1:
                        self.messages.append(json.loads(payload))
                    case 8:
                        self.close_code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                        await self.send(frame(CLOSE, payload[:2]))
                    case 9:
                        await self.send(frame(PONG, payload))
                    case _:
                        pass

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
        if self.finished:
            await self.finished
