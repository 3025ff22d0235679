"""
A short way for what a caller sends.

uvicorn carries each frame through a queue to the task that serves its connection, and pauses and
resumes reading around it. For speech, ten frames a second of every caller, that is most of what a
gateway does (docs/log.md). Here a task can ask to be called with each frame instead, and frames are
read in rounds (read_rounds.py). What is sent, how a connection begins and ends, and everything
unusual is uvicorn's and the websockets library's business as before.
"""

import os
from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import apply_mask  # pyright: ignore[reportPrivateImportUsage]
from websockets.http11 import Request
from websockets.protocol import State

from dalston.gateway.transport.read_rounds import Rounds
from dalston.orchestrator.protocol.messages import Frame

_NAME = "dalston.direct"  # in a connection's scope
_BINARY = 0x82  # a whole message of bytes: final, no extension
_USUAL = bytes((_BINARY, 0xFE))  # masked, and its length in the next two bytes
# Bytes read at once, and how often in a round: a caller that is back and sends a minute of audio
# again does not have to wait.
_READ, _READS = 1 << 16, 4


class Cutter:
    """Cuts what a client sends where a frame ends. RFC 6455, section 5.2."""

    def __init__(self, longest: int):
        """longest: bytes of a frame. Before one that is longer cutting stops."""
        self._longest = longest
        self._rest = bytearray()  # the beginning of a frame
        self._wanted = 0  # bytes of it, as far as is known
        self.too_long = 0  # bytes that the frame says it has, at which cutting stopped
        self._passed_over = 0  # bytes of it that are still to come, with its head

    @property
    def between(self) -> bool:
        """What comes next is the beginning of a frame."""
        return not (self.too_long or self._rest or self._passed_over)

    def receive(self, data: bytes) -> tuple[list[bytes], bytes]:
        """The frames that are whole now, each by itself, and what follows them once cutting has
        stopped."""
        frames, at = list[bytes](), min(self._passed_over, len(data))
        self._passed_over -= at
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return frames, b""
            data, self._rest = bytes(self._rest), bytearray()
        while not self.too_long and at < len(data):
            end = at + self._size(data, at)
            if self.too_long:
                break
            if end > len(data):
                self._rest += data[at:]
                self._wanted = end - at
                return frames, b""
            frames.append(data[at:end])
            at = end
        return frames, data[at:]

    def pass_over(self, rest: bytes) -> tuple[list[bytes], bytes]:
        """Go on with what receive() has left, after the frame at which cutting stopped."""
        self._passed_over, self.too_long = self._size(rest, 0), 0
        return self.receive(rest)

    def _size(self, data: bytes, at: int) -> int:
        """The size of the frame that begins at `at`; while its head is incomplete, a size that is
        larger than what is there."""
        if len(data) < at + 2:
            return 2
        masked, length = data[at + 1] & 0x80, data[at + 1] & 0x7F
        head = 2
        if length >= 126:
            head = 4 if length == 126 else 10
            if len(data) < at + head:
                return head
            length = int.from_bytes(data[at + 2 : at + head])
        if length > self._longest:
            self.too_long = length
        return head + (4 if masked else 0) + length


def payload(frame: bytes) -> bytes | None:
    """The unmasked payload of a whole binary message; None for any other frame."""
    if frame[0] != _BINARY or not frame[1] & 0x80:
        return None
    length = frame[1] & 0x7F
    mask = 2 if length < 126 else 4 if length == 126 else 10
    return apply_mask(frame[mask + 4 :], frame[mask : mask + 4])


class DirectProtocol(WebSocketsSansIOProtocol):
    """To be given to uvicorn as its protocol for WebSockets."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._on_frame: Callable[[Frame], None] | None = None
        self._on_too_long: Callable[[int], None] | None = None
        self._cutter: Cutter | None = None  # once the request is read
        self._fragments = False  # a message has begun that has not ended
        self._simple = False  # the next byte begins a frame, and a message
        self._rounds: Rounds | None = None  # in which it is read, instead of by its transport
        self._socket = -1
        self.on_writable: Callable[[], None] | None = None  # called when the client reads again

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
    ) -> None:
        """From now on `on_frame` is called with each frame, in these rounds (once given, they stay)
        or as it comes. receive() tells only of the end.

        on_too_long: called with the size of a frame that is too long, instead of its bytes.
        """
        self._on_frame, self._on_too_long = on_frame, on_too_long
        if rounds and not self.transport.is_closing() and self.scheme == "ws":
            stopped = self.read_paused
            self.pause()
            self._rounds = rounds
            self._socket = self.transport.get_extra_info("socket").fileno()
            if not stopped:
                self.resume()
        waiting = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
        for message in waiting:
            if message["type"] == "websocket.receive":
                text = message.get("text")
                on_frame(message.get("bytes") or b"" if text is None else text)
            else:
                self.queue.put_nowait(message)

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

    def pause(self) -> None:
        """Read no more. What was read already is still heard."""
        if not self.read_paused and not self.transport.is_closing():
            self.read_paused = True
            if self._rounds:
                self._rounds.remove(self._socket)
            else:
                self.transport.pause_reading()

    def resume(self) -> None:
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            if self._rounds:
                self._rounds.add(self._socket, self._read)
            else:
                self.transport.resume_reading()

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
                about = {"message": "what a caller said", "exception": error}
                self.loop.call_exception_handler(about)
                return self.transport.abort()
            if len(data) < _READ or self.read_paused:
                return

    def _leave_rounds(self) -> None:
        rounds, self._rounds = self._rounds, None
        if rounds:
            rounds.remove(self._socket)
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # What uvicorn and its transport do.

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave_rounds()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.on_writable:
            self.on_writable()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            self.scope[_NAME] = self  # pyright: ignore[reportGeneralTypeIssues]

    def data_received(self, data: bytes) -> None:
        # Most of what comes is this: one message of 126 to 65,535 bytes, masked, and nothing else.
        # With a cold cache each step less is felt.
        if self._simple and self._on_frame and len(data) > 133 and data[:2] == _USUAL:
            if len(data) == 8 + (data[2] << 8) + data[3]:
                return self._on_frame(apply_mask(memoryview(data)[8:], data[4:8]))
        if self._cutter is None:
            self._cutter = Cutter(self.config.ws_max_size)
            super().data_received(data)
        else:
            self._cut(self._cutter, data)
        self._simple = (
            self._cutter.between and not self._fragments and self.conn.state is State.OPEN
        )

    def _cut(self, cutter: Cutter, data: bytes) -> None:
        frames, rest = cutter.receive(data)
        while True:
            for frame in frames:
                self._receive(frame)
            if not rest:
                return
            if self._on_frame is None:
                return super().data_received(rest)  # closes with 1009
            # Not kept, but read: its sender may look for an answer only once it has left.
            if self._on_too_long:
                self._on_too_long(cutter.too_long)
            frames, rest = cutter.pass_over(rest)

    def _receive(self, frame: bytes) -> None:
        if self._on_frame and not self._fragments and self.conn.state is State.OPEN:
            if (said := payload(frame)) is not None:
                return self._on_frame(said)
        if frame[0] & 0x0F < 0x8:  # no control frame: those may come in between
            self._fragments = not frame[0] & 0x80
        super().data_received(frame)

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
