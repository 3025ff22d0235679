"""
A short way for what a caller sends, and a narrow one for what they should not send.

uvicorn carries each frame through a queue to the task that serves its connection, and pauses and
resumes reading around it. For speech, ten frames a second of every caller, that is most of what a
gateway does (docs/log.md). Here a task can ask to be called with each frame instead, and frames are
read in rounds (read_rounds.py). What is sent, how a connection begins and ends, and everything
unusual is uvicorn's and the websockets library's business as before.

Somebody who sends thousands of tiny frames gets no more of a round than FRAMES of them: what was
read and not heard is kept, and nothing more is read meanwhile. Nothing is read before somebody
listens. Once a close is sent, nothing but the client's own close is looked for, and not for long.
"""

import asyncio
import math
import os
import random
import struct
from asyncio import Handle, TimerHandle
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame as WireFrame
from websockets.frames import apply_mask  # pyright: ignore[reportPrivateImportUsage]
from websockets.http11 import Request
from websockets.protocol import State

from dalston.gateway.transport.frames import BINARY, CLOSE, TEXT, Cutter, message
from dalston.gateway.transport.read_rounds import ROUND_S, Rounds
from dalston.orchestrator.protocol.messages import Frame

_NAME = "dalston.direct"  # in a connection's scope
_USUAL, _TEXT = (bytes((kind, 0xFE)) for kind in (BINARY, TEXT))  # masked, length in two bytes
# Bytes read at once, and how often in a round: a caller that is back and sends a minute of audio
# again does not have to wait.
_READ, _READS = 1 << 16, 4
# Frames heard in a round, unless each comes by itself. A browser sends 15.
FRAMES = 64
CLOSING_S = 5.0  # for a client to close after us, and a second more to take what it is sent


class DirectProtocol(WebSocketsSansIOProtocol):
    """To be given to uvicorn as its protocol for WebSockets."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.close_timeout = CLOSING_S
        self._on_frame: Callable[[Frame], None] | None = None
        self._on_too_long: Callable[[int], None] | None = None
        self._on_part: Callable[[bool], None] | None = None
        self._cutter: Cutter | None = None  # once the request is read
        self._fragments = False  # a message has begun that has not ended
        self._simple = False  # the next byte begins a frame, and a message
        self._rounds: Rounds | None = None  # in which it is read, instead of by its transport
        self._socket = -1
        self._reading = True  # by the transport, or in rounds
        self._resting: Handle | None = None  # until what was read before is heard
        self._last: TimerHandle | None = None  # moment of a connection that is being closed
        self._pong = b""  # that waits for the client to read
        self.answers = False  # the client has answered a ping of ours, or sent one
        self.lived_at = -math.inf  # when it did so last, by the loop's clock
        self.on_writable: Callable[[], None] | None = None  # called when the client reads again
        self._over: asyncio.Future[None] | None = None  # that somebody waits for

    @classmethod
    def of(cls, scope: Scope) -> "DirectProtocol":
        """The protocol of a connection, which is in its scope no longer: together they would stay
        in memory until Python's collector finds them."""
        return scope.pop(_NAME)

    def listen(
        self,
        on_frame: Callable[[Frame], None],
        rounds: Rounds | None = None,
        on_too_long: Callable[[int], None] | None = None,
        on_part: Callable[[bool], None] | None = None,
    ) -> None:
        """From now on `on_frame` is called with each message, in these rounds (once given, they
        stay) or as it comes. receive() tells only of the end.

        on_too_long: called with the size of a frame that is too long, instead of its bytes.
        on_part: called for each frame that is no message: True for a fragment of one, False for a
        control frame.
        """
        self._on_frame, self._on_too_long, self._on_part = on_frame, on_too_long, on_part
        if rounds and not self.transport.is_closing() and self.scheme == "ws":
            self._read_or_not(False)
            self._rounds = rounds
            self._socket = self.transport.get_extra_info("socket").fileno()
            self._read_or_not()
        waiting = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
        for event in waiting:
            if event["type"] == "websocket.receive":
                text = event.get("text")
                on_frame(event.get("bytes") or b"" if text is None else text)
            else:
                self.queue.put_nowait(event)

    def send_now(self, frame: Frame) -> bool:
        """Send it at once. False: it was not, since the client does not read, or is leaving; then
        ASGI's way is the one to take."""
        open = self.conn.state is State.OPEN and not self.disconnected
        if not (open and self.writable.is_set()):
            return False
        if isinstance(frame, str):
            self.conn.send_text(frame.encode())
        else:
            self.conn.send_binary(frame)
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    def ping(self) -> float:
        """Ask the client whether it lives, unless it was asked and has not answered: the seconds
        since then."""
        if self.pending_ping_payload is not None:
            return self.loop.time() - self.ping_sent_at
        if self.conn.state is State.OPEN and self.writable.is_set() and not self.disconnected:
            self.pending_ping_payload = struct.pack("!I", random.getrandbits(32))
            self.ping_sent_at = self.loop.time()
            self.conn.send_ping(self.pending_ping_payload)
            self.transport.write(b"".join(self.conn.data_to_send()))
        return 0.0

    # Reading.
    async def answered(self) -> bool:
        """Wait until the client has sent a close, or is gone; whether it has sent one."""
        if not self.conn.close_rcvd and not self.disconnected:
            self._over = self.loop.create_future()
            await self._over
        return self.conn.close_rcvd is not None

    def _is_over(self) -> None:
        if self._over and not self._over.done():
            self._over.set_result(None)

    def pause(self) -> None:
        """Read no more, and hear no more of what was read."""
        self.read_paused = True
        self._read_or_not()

    def resume(self) -> None:
        if self.read_paused:
            self.read_paused = False
            if self._cutter and self._cutter.left and not self._resting:
                self._resting = self.loop.call_soon(self._go_on)  # not within what is heard now
            self._read_or_not()

    def _read_or_not(self, wanted: bool = True) -> None:
        wanted = wanted and not self.read_paused and self._resting is None
        if wanted is self._reading or self.transport.is_closing():
            return
        self._reading = wanted
        if self._rounds and wanted:
            self._rounds.add(self._socket, self._read)
        elif self._rounds:
            self._rounds.remove(self._socket)
        elif wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def _read(self) -> None:
        """Read in a round, as the transport would."""
        for _ in range(_READS):
            try:
                data = b"" if self.transport.is_closing() else os.read(self._socket, _READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:  # it has ended or is broken: the transport finds out how
                return self._leave_rounds()
            try:
                self.data_received(data)
            except Exception as error:
                return self._fault(error)
            if len(data) < _READ or not self._reading:
                return

    def _fault(self, error: Exception) -> None:
        about = {"message": "what a caller said", "exception": error}
        self.loop.call_exception_handler(about)
        self.transport.abort()

    def _leave_rounds(self) -> None:
        rounds, self._rounds = self._rounds, None
        if rounds:
            rounds.remove(self._socket)
            if not self.transport.is_closing():
                self._reading = True
                self.transport.resume_reading()

    def _go_on(self) -> None:
        """Hear the rest of what was read."""
        self._resting = None
        if self.transport.is_closing():
            return
        try:
            self._hear()
        except Exception as error:
            return self._fault(error)
        self._read_or_not()

    def _hear(self) -> None:
        """Hear what was read, as far as anybody wants to and as much as is due in a round."""
        cutter = self._cutter
        assert cutter
        for _ in range(FRAMES):
            if self.read_paused:
                break
            frame = cutter.next()
            if frame is not None:
                self._receive(frame)
            elif not cutter.too_long:
                break
            elif self._on_frame is None:
                return super().data_received(cutter.left)  # closes with 1009
            else:
                # Not kept, but read: its sender may look for an answer only once it has left.
                if self._on_too_long:
                    self._on_too_long(cutter.too_long)
                cutter.pass_over()
        else:
            if self._resting is None:
                self._resting = self.loop.call_later(ROUND_S, self._go_on)
            self._read_or_not()
        self._simple = cutter.between and not self._fragments and self.conn.state is State.OPEN

    def _receive(self, frame: bytes) -> None:
        kind = frame[0] & 0x0F
        if self.conn.state is not State.OPEN and kind != CLOSE:
            return  # after our close only theirs matters
        if kind < CLOSE:
            if self._on_frame and not self._fragments and (said := message(frame)) is not None:
                return self._on_frame(said)
            part, self._fragments = self._fragments, not frame[0] & 0x80
            if self._on_part and (part or self._fragments):
                self._on_part(True)
        elif self._on_part:
            self._on_part(False)
        super().data_received(frame)

    # What uvicorn and its transport do.

    async def run_asgi(self) -> None:
        served = self.app

        async def unless_left(scope: Scope, receive: Receive, send: Send) -> None:
            await served(scope, receive, send)
            if self.transport.is_closing() and not self.handshake_complete:
                raise ClientDisconnected  # else uvicorn answers once more, which fails

        self.app = unless_left
        try:
            await super().run_asgi()
        finally:
            self.app = served  # or they would hold each other in memory

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave_rounds()
        for timer in (self._resting, self._last):
            if timer:
                timer.cancel()
        super().connection_lost(exc)
        self._is_over()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._pong and self.conn.state is State.OPEN:
            self.transport.write(self._pong)
        self._pong = b""
        if self.on_writable:
            self.on_writable()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            self.scope[_NAME] = self  # pyright: ignore[reportGeneralTypeIssues]
            self.pause()

    def handle_ping(self) -> None:
        self.answers, self.lived_at = True, self.loop.time()
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)
        else:
            self._pong = pong  # only the last has to be answered: RFC 6455, 5.5.3

    def handle_pong(self, event: WireFrame) -> None:
        asked = self.pending_ping_payload is not None
        super().handle_pong(event)
        if asked and self.pending_ping_payload is None:
            self.answers, self.lived_at = True, self.loop.time()

    def send_keepalive_ping(self) -> None:
        self.ping_timer = None
        if not (self.close_sent or self.transport.is_closing()):
            self.ping()
            self.schedule_ping()

    def data_received(self, data: bytes) -> None:
        # Most of what comes is this: one message of 126 to 65,535 bytes, masked, and nothing else.
        # With a cold cache each step less is felt. Of other services' clients some send audio as
        # text, and their frames are as many.
        if self._simple and self._on_frame and len(data) > 133:
            if (head := data[:2]) == _USUAL or head == _TEXT:
                if len(data) == 8 + (data[2] << 8) + data[3]:
                    if head == _USUAL:
                        return self._on_frame(apply_mask(memoryview(data)[8:], data[4:8]))
                    if (said := message(data)) is not None:
                        return self._on_frame(said)
        if self._cutter:
            self._cutter.feed(data)
            return self._hear()
        self._cutter = Cutter(self.config.ws_max_size)
        super().data_received(data)
        if not self.handshake_initiated:
            self._refuse_request()

    def _refuse_request(self) -> None:
        """The library has refused it, and uvicorn says nothing."""
        said = b"".join(self.conn.data_to_send())
        if not said:
            refused = self.conn.handshake_exc
            why = str(refused and (refused.__cause__ or refused)) or "no valid request"
            said = (
                "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
                "Content-Type: text/plain; charset=utf-8\r\n"
                f"Content-Length: {len(why.encode())}\r\n\r\n{why}"
            ).encode()
        self.handshake_complete = self.close_sent = True
        self.transport.write(said)
        self.transport.close()
        self._end_soon()

    def send_receive_event_to_app(self) -> None:
        if self._on_frame is None or self.close_sent:
            return super().send_receive_event_to_app()
        data, self.frames = b"".join(self.frames), []
        if self.curr_msg_data_type == "bytes":
            return self._on_frame(data)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self.conn.send_close(1007)
            return self.handle_parser_exception()
        self._on_frame(text)

    async def receive(self) -> ASGIReceiveEvent:
        return await self.queue.get()  # who listens says when to read

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close":
            self.resume()  # or uvicorn would, in its own way
        await super().send(message)
        if self.close_sent:
            self._end_soon()

    def handle_close(self, event: WireFrame) -> None:
        super().handle_close(event)
        self._is_over()
        self._end_soon()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self._end_soon()

    def on_task_complete(self, task: Any) -> None:
        super().on_task_complete(task)
        self._end_soon()

    def _end_soon(self) -> None:
        """What is written leaves within CLOSING_S and a second, or is dropped."""
        if self._last is None and not self.disconnected:
            self._last = self.loop.call_later(CLOSING_S + 1, self.transport.abort)
