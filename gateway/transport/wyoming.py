"""
A client's TCP connection that speaks in Wyoming's events, as a Transport.

A frame is a whole event: the line that it begins with, and as many bytes as the line says. A line
that says no such thing is a frame as well, the last one: nobody can tell where the next event
begins, and its protocol says what is wrong.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from dalston.gateway.transport.transport import Disconnected
from dalston.orchestrator.protocol.messages import LONGEST_TEXT, Frame

CLOSING_S = 5.0  # for a client to close after us


class _Lengths(msgspec.Struct):
    data_length: int | None = None
    payload_length: int | None = None


_lengths = msgspec.json.Decoder(_Lengths)


class Events:
    """Cuts what a client sends where an event ends."""

    def __init__(self, longest: int):
        """longest: bytes of an event."""
        self._longest = longest
        self._data = b""  # that is to be cut
        self._at = 0  # and from where on
        self._rest = bytearray()  # the beginning of an event
        self._wanted = 0  # bytes of it, as far as is known
        self._passed_over = 0  # bytes of one that was too long, still to come
        self._line: bytes = b""  # the last one: most are alike
        self._follows: int = 0  # bytes after it
        self._lost = False  # nobody knows where an event begins
        self.too_long = 0  # bytes of an event that is passed over; whoever has seen it sets it to 0

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def feed(self, data: bytes) -> None:
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data, self._rest = bytes(self._rest), bytearray()
        self._data, self._at = self._data[self._at :] + data if self.left else data, 0

    def next(self) -> bytes | None:
        """The next event, if it is whole, not too long, and is one."""
        data = self._data
        passed = min(self._passed_over, len(data) - self._at)
        self._passed_over -= passed
        self._at += passed
        if self._lost or not self.left:
            self._data, self._at = b"", 0
            return None
        at, end = self._at, data.find(b"\n", self._at, self._at + LONGEST_TEXT)
        if end < 0:
            if len(data) - at >= LONGEST_TEXT:
                return self._lose(data[at : at + LONGEST_TEXT])
            return self._wait(len(data) - at + 1)
        line = data[at : end + 1]
        if line != self._line:
            try:
                said = _lengths.decode(line)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                return self._lose(line)
            self._line, self._follows = line, (said.data_length or 0) + (said.payload_length or 0)
            if min(said.data_length or 0, said.payload_length or 0) < 0:
                return self._lose(line)
        size = len(line) + self._follows
        if size > self._longest:
            self.too_long = self._passed_over = size
            return None
        if at + size > len(data):
            return self._wait(size)
        self._at = at + size
        return data[at : self._at]

    def _wait(self, size: int) -> None:
        self._rest += self._data[self._at :]
        self._data, self._at, self._wanted = b"", 0, size

    def _lose(self, line: bytes) -> bytes:
        self._lost = True
        self._data, self._at = b"", 0
        return line


class WyomingTransport(asyncio.Protocol):
    def __init__(self, longest: int, begin: Callable[["WyomingTransport"], None]):
        """longest: bytes of an event. begin: called once it is connected."""
        self._begin = begin
        self._events = Events(longest)
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._receive: Callable[[Frame], None] | None = None
        self._on_too_long: Callable[[int], None] | None = None
        self._on_writable: Callable[[], None] | None = None
        self._paused = True
        self._resting: asyncio.Handle | None = None  # until what was read before is heard
        self._last: asyncio.TimerHandle | None = None  # moment of a connection that is being closed
        self._writable = asyncio.Event()
        self._writable.set()
        self._over = asyncio.Event()
        self._left = False  # the client has closed its side
        self.address = ""

    # What its socket does.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        self._transport.pause_reading()
        self._begin(self)

    def data_received(self, data: bytes) -> None:
        self._events.feed(data)
        self._hear()

    def _hear(self) -> None:
        self._resting = None
        events = self._events
        while not self._paused:
            event = events.next()
            if event is not None:
                if self._receive:
                    self._receive(event)
            elif size := events.too_long:
                events.too_long = 0
                if self._on_too_long:
                    self._on_too_long(size)
            else:
                break

    def eof_received(self) -> None:
        self._left = True

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._resting, self._last):
            if timer:
                timer.cancel()
        self._over.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._on_writable:
            self._on_writable()

    # What a call asks.

    def when_writable(self, call: Callable[[], None]) -> None:
        self._on_writable = call

    async def accept(self, subprotocols: Sequence[str]) -> None:
        if self._over.is_set():
            raise Disconnected

    async def deny(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.abort()  # its protocol has words for everything, and no HTTP

    def listen(
        self,
        receive: Callable[[Frame], None],
        on_too_long: Callable[[int], None] | None = None,
        on_part: Callable[[bool], None] | None = None,
    ) -> None:
        self._receive, self._on_too_long = receive, on_too_long

    def ignore(self) -> None:
        self._receive = self._on_too_long = self._on_writable = None

    def pause(self) -> None:
        self._paused = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._paused:
            return
        self._paused = False
        if self._events.left and not self._resting:
            self._resting = self._loop.call_soon(self._hear)  # not within what is heard now
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def ping(self) -> float:
        return 0.0  # clients need not answer

    @property
    def answers(self) -> bool:
        return False

    @property
    def lived_at(self) -> float:
        return -math.inf

    def send_now(self, frame: Frame) -> bool:
        if not self._writable.is_set() or self._transport.is_closing() or self._last:
            return False
        self._transport.write(frame.encode() if isinstance(frame, str) else frame)
        return True

    async def send(self, frame: Frame) -> None:
        await self._writable.wait()
        if not self.send_now(frame):
            raise Disconnected

    async def close(self, code: int, sentence: str = "") -> None:
        if self._transport.is_closing() or self._last:
            raise Disconnected
        self.ignore()
        self.resume()  # until the client has closed its side
        self._last = self._loop.call_later(CLOSING_S, self.abort)
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    async def answered(self) -> bool:
        await self._over.wait()
        return self._left

    async def until_disconnected(self) -> None:
        await self._over.wait()

    async def gone(self) -> None:
        """Wait until the client has closed after us, which it may take CLOSING_S for; drop one that
        was not told of a close."""
        if self._last is None:
            self.abort()
        await self._over.wait()

    def abort(self) -> None:
        self._transport.abort()
