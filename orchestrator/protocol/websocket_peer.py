"""
One end of a WebSocket: a worker's end to a gateway or a client, and a gateway's end to a worker.

Frames come as calls and leave without a wait. What happens ten times a second for every stream
has to cost little, and a task that waits for each frame costs more than all the rest
(docs/log.md). picows takes frames apart and makes them, in C.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSProtocolError,
    WSTransport,
    ws_connect,  # pyright: ignore[reportUnknownVariableType]
)

from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import Frame

# Of every connection, whoever makes it: uvloop is as fast as the library's own transports (whose
# listener spins when no descriptor is left), and an adapter spares a logger for each.
USUAL: dict[str, Any] = {
    "use_aiofastnet": False,
    "logger_name": logging.LoggerAdapter(logging.getLogger("picows")),
}

# Frames that are kept for an owner who does not listen yet, before no more are read.
FRAMES_KEPT = 4
# While nothing is read no ping is answered: the other side is told so often, unasked, that we live.
ALIVE_EVERY_S = 0.25


class PeerClosed(ConnectionError):
    """The other side has closed, or the connection is broken."""


class Peer(WSListener):
    """One end of a connection. Whoever makes it owns it: it takes frames by listen() or received(),
    and has to close it."""

    transport: WSTransport

    def __init__(self, longest: int):
        """longest: bytes of a message. One that is longer ends the connection with 1009."""
        self._longest = longest
        self._on_frame: Callable[[Frame], None] | None = None
        self._on_leave: Callable[[], None] | None = None
        self._kept = deque[Frame]()
        self._asking: asyncio.Future[None] | None = None  # for the next frame
        self._parts = list[bytes]()  # of a message in fragments
        self._kind = WSMsgType.TEXT
        self._gone = False  # it has closed, or the connection is broken
        self._closed = asyncio.Event()
        self.blocked = False  # what is sent waits in memory, since the other side does not read
        self._writable = asyncio.Event()
        self._writable.set()
        self.unblocked: Callable[[], None] | None = None  # called when what was sent has left
        self._reading = True
        self._saying_alive: asyncio.TimerHandle | None = None
        # Loop time: when it was asked whether it lives and has not answered, and when it last did.
        # Its owner may count frames that came as well.
        self.pinged_at: float | None = None
        self.heard_at = 0.0

    # What its owner does.

    def listen(self, on_frame: Callable[[Frame], None], on_leave: Callable[[], None]) -> None:
        """From now on `on_frame` is called with each frame, and `on_leave` once there are no
        more."""
        self._on_frame, self._on_leave = on_frame, on_leave
        while self._kept:
            on_frame(self._kept.popleft())
        self.resume()
        if self._gone:
            on_leave()

    async def received(self) -> Frame:
        """The next frame, for an owner who does not listen. Raises PeerClosed."""
        while not self._kept:
            if self._gone:
                raise PeerClosed
            self._asking = asyncio.get_running_loop().create_future()
            await self._asking
        frame = self._kept.popleft()
        if len(self._kept) < FRAMES_KEPT:
            self.resume()
        return frame

    def pause(self) -> None:
        """Read no more. What was read already is still heard: some 100 KB."""
        if self._reading and not self.transport.underlying_transport.is_closing():
            self._reading = False
            self.transport.underlying_transport.pause_reading()
            self._saying_alive = asyncio.get_running_loop().call_later(
                ALIVE_EVERY_S, self._say_alive
            )

    def resume(self) -> None:
        if not self._reading:
            self._reading = True
            if self._saying_alive:
                self._saying_alive.cancel()
            if not self.transport.underlying_transport.is_closing():
                self.transport.underlying_transport.resume_reading()

    def send_now(self, frame: Frame) -> None:
        """Send a frame without waiting. If the other side is gone, the frame is lost."""
        kind = WSMsgType.TEXT if isinstance(frame, str) else WSMsgType.BINARY
        self.transport.send(kind, frame)

    async def send(self, frame: Frame) -> None:
        """Send, and wait as long as the other side does not read. Raises PeerClosed."""
        if self._gone or self.transport.is_close_frame_sent:
            raise PeerClosed
        self.send_now(frame)
        if self.blocked:
            await self.drained()

    async def drained(self) -> None:
        """Wait until what was sent has left, but for a little. Raises PeerClosed."""
        await self._writable.wait()
        if self._gone:
            raise PeerClosed

    def ping(self, now: float) -> None:
        """Ask whether the other side lives."""
        self.pinged_at = now
        self.transport.send_ping()

    async def close(self, code: int, reason: str = "", patience_s: float = 1.0) -> None:
        """In order, or by force where the other side does not answer."""
        self.transport.send_close(code, reason)  # pyright: ignore[reportArgumentType]
        self.resume()
        try:
            async with asyncio.timeout(patience_s):
                await self._closed.wait()
        except TimeoutError:
            self.abort()

    async def ended(self) -> None:
        """Wait until the other side has closed."""
        await self._closed.wait()

    def abort(self) -> None:
        self.transport.disconnect(graceful=False)

    @property
    def close_code(self) -> int:
        """The other side's; CloseCode.ABNORMAL if it has said none."""
        told = self.transport.close_handshake
        return int(told.recv.code) if told and told.recv else CloseCode.ABNORMAL  # pyright: ignore[reportArgumentType]

    @property
    def close_reason(self) -> str:
        told = self.transport.close_handshake
        return (told.recv.reason or "") if told and told.recv else ""

    # What happens to it.

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, "no extension was agreed on")
        if kind is WSMsgType.BINARY and frame.fin and not self._parts:
            self._receive(frame.get_payload_as_bytes())
        elif kind is WSMsgType.PONG:
            self.pinged_at, self.heard_at = None, asyncio.get_running_loop().time()
        elif kind is WSMsgType.CLOSE:
            code = frame.get_close_code() or WSCloseCode.OK  # it may have told none
            transport.send_close(code, frame.get_close_message())
            transport.disconnect()
            self._on_gone()
        else:
            self._join(kind, frame)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._closed.set()
        self._on_gone()

    def pause_writing(self) -> None:
        self.blocked = True
        self._writable.clear()

    def resume_writing(self) -> None:
        self.blocked = False
        self._writable.set()
        if self.unblocked:
            self.unblocked()

    def _join(self, kind: WSMsgType, frame: WSFrame) -> None:
        """Take a text, or a fragment of a message."""
        if (kind is WSMsgType.CONTINUATION) is not bool(self._parts):
            raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, "a fragment out of place")
        if not self._parts:
            self._kind = kind
        self._parts.append(frame.get_payload_as_bytes())
        if sum(map(len, self._parts)) > self._longest:
            raise WSProtocolError(WSCloseCode.MESSAGE_TOO_BIG, f"{self._longest} bytes at most")
        if not frame.fin:
            return
        message, self._parts = b"".join(self._parts), []
        if self._kind is WSMsgType.BINARY:
            return self._receive(message)
        try:
            self._receive(message.decode())
        except UnicodeDecodeError as error:
            raise WSProtocolError(WSCloseCode.INVALID_TEXT, str(error)) from None

    def _receive(self, frame: Frame) -> None:
        if self.transport.is_close_frame_sent:
            return  # so it is too when the other side broke the protocol
        if self._on_frame:
            return self._on_frame(frame)
        self._kept.append(frame)
        self._wake()
        if len(self._kept) >= FRAMES_KEPT:
            self.pause()

    def _say_alive(self) -> None:
        """A pong that nobody asked for (RFC 6455, 5.5.3)."""
        if self._reading or self._gone or self.transport.is_close_frame_sent:
            return
        if not self.blocked:
            self.transport.send_pong()
        self._saying_alive = asyncio.get_running_loop().call_later(ALIVE_EVERY_S, self._say_alive)

    def _wake(self) -> None:
        if self._asking and not self._asking.done():
            self._asking.set_result(None)
        self._asking = None

    def _on_gone(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._wake()
        self._writable.set()
        if self._on_leave:
            self._on_leave()


async def connected(url: str, headers: dict[str, str], longest: int, patience_s: float) -> Peer:
    """A connection to a worker. Raises OSError, TimeoutError and WSHandshakeError."""
    wanted, made = True, list[Peer]()

    def begun() -> WSListener:
        # Whoever has stopped waiting for the answer: picows goes on and gets it.
        if not wanted:
            return _Unwanted()
        made.append(Peer(longest))
        return made[0]

    asking = asyncio.ensure_future(
        ws_connect(
            begun,
            url,
            extra_headers=headers,
            max_frame_size=longest,
            websocket_handshake_timeout=patience_s,
            **USUAL,
        )
    )
    try:
        async with asyncio.timeout(patience_s):
            await asyncio.shield(asking)
    except BaseException:
        wanted = False
        # Not cancelled: picows closes what is not answered in time, and would say so to nobody.
        asking.add_done_callback(lambda _: asking.cancelled() or asking.exception())
        for peer in made:
            peer.abort()
        raise
    if not made:  # picows takes a connection that ends before the answer for an answer
        raise ConnectionResetError("it closed the connection")
    return made[0]


class _Unwanted(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.disconnect(graceful=False)
