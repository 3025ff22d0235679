"""
Frames that cost more than they say: however many come at once, a round hears only so many, nobody
is sent more than they take, and after a close there is little left to do. Without a socket.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import uvicorn
from support.waiting import until
from support.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame
from uvicorn.server import ServerState

from dalston.gateway.transport import uvicorn_protocol
from dalston.gateway.transport.uvicorn_protocol import FRAMES, DirectProtocol
from dalston.orchestrator.protocol.messages import Frame

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Line(asyncio.Transport):
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.reads, self.closing, self.aborted = True, False, False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True


@dataclass
class Open:
    """A connection that is open, and what is heard of it."""

    line: Line
    protocol: DirectProtocol
    close: Callable[[], None]
    heard: list[Frame] = field(default_factory=list[Frame])
    parts: list[bool] = field(default_factory=list[bool])

    def listen(self) -> None:
        self.protocol.listen(self.heard.append, on_part=self.parts.append)
        self.protocol.resume()
        self.line.sent = b""


@asynccontextmanager
async def opened() -> AsyncGenerator[Open]:
    accepted, over = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        DirectProtocol.of(scope)
        await receive()
        await send({"type": "websocket.accept"})
        accepted.set()
        await over.wait()
        await send({"type": "websocket.close", "code": 1000})

    config = uvicorn.Config(app, log_config=None, ws=DirectProtocol, ws_per_message_deflate=False)
    config.load()
    line, protocol = Line(), DirectProtocol(config, ServerState(), {})
    protocol.connection_made(line)
    protocol.data_received(REQUEST)
    await accepted.wait()
    try:
        yield Open(line, protocol, over.set)
    finally:
        over.set()
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)


async def test_nothing_is_read_until_somebody_listens() -> None:
    async with opened() as call:
        assert not call.line.reads
        call.listen()
        assert call.line.reads


async def test_of_thousands_of_frames_a_round_hears_some_and_nothing_is_read_meanwhile() -> None:
    async with opened() as call:
        call.listen()
        call.protocol.data_received(frame(PING, b"") * 1000 + frame(BINARY, b"audio"))
        assert len(call.parts) == FRAMES
        assert not call.line.reads
        await until(lambda: call.heard)
        assert call.heard == [b"audio"]
        assert call.parts == [False] * 1000
        assert call.line.reads


async def test_who_is_paused_is_heard_no_more_and_later_all_of_it_in_order() -> None:
    async with opened() as call:
        call.listen()

        def hear(said: Frame) -> None:
            call.heard.append(said)
            call.protocol.pause()

        call.protocol.listen(hear)
        call.protocol.data_received(b"".join(frame(BINARY, bytes([n])) for n in range(5)))
        for number in range(5):
            await asyncio.sleep(0)
            assert call.heard == [bytes([n]) for n in range(number + 1)]
            assert not call.line.reads
            call.protocol.resume()
            count = number + 2
            await until(lambda count=count: len(call.heard) == count or count > 5)
        await until(lambda: call.line.reads)


async def test_each_fragment_counts_and_so_does_an_empty_one() -> None:
    async with opened() as call:
        call.listen()
        for kind in (TEXT, BINARY):
            first, last = frame(kind, b"a", fin=False), frame(CONTINUATION, b"b")
            empty = frame(CONTINUATION, b"", fin=False)
            call.protocol.data_received(first + 50 * empty + frame(PING, b"") + last)
        assert call.heard == ["ab", b"ab"]
        assert call.parts == ([True] * 51 + [False] + [True]) * 2


async def test_to_who_does_not_read_one_pong_waits_and_not_each() -> None:
    async with opened() as call:
        call.listen()
        call.protocol.pause_writing()
        for number in range(100):
            call.protocol.data_received(frame(PING, b"%d" % number))
        assert call.line.sent == b""
        call.protocol.send_keepalive_ping()
        assert call.line.sent == b""
        call.protocol.resume_writing()
        assert call.line.sent == frame(PONG, b"99", masked=False)


async def test_after_our_close_nothing_is_answered_and_theirs_ends_it() -> None:
    async with opened() as call:
        call.listen()
        call.close()
        await until(lambda: call.line.sent)
        assert call.line.reads
        call.line.sent = b""
        call.protocol.data_received(frame(PING, b"there?") + frame(BINARY, b"audio") * 10)
        call.protocol.data_received(frame(TEXT, b"\xff") + frame(3, b"?"))
        assert (call.line.sent, call.heard, call.line.closing) == (b"", [], False)
        call.protocol.data_received(frame(CLOSE, b"\x03\xe8"))
        assert call.line.closing


@pytest.mark.parametrize("how", ["by us", "by them", "by a fault"])
async def test_a_connection_that_is_being_closed_does_not_stay(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(uvicorn_protocol, "CLOSING_S", -0.9)  # the second besides is left
    async with opened() as call:
        call.listen()
        if how == "by us":
            call.close()
        elif how == "by them":
            call.protocol.data_received(frame(CLOSE, b"\x03\xe8"))
        else:
            call.protocol.data_received(frame(3, b"?"))
        await until(lambda: call.line.aborted)


async def test_a_ping_of_ours_is_asked_once_and_its_answer_is_known() -> None:
    async with opened() as call:
        call.listen()
        assert call.protocol.ping() == 0.0
        asked = call.line.sent
        assert asked[0] & 0x0F == PING
        assert call.protocol.ping() > 0.0
        assert call.line.sent == asked
        assert not call.protocol.answers
        call.protocol.data_received(frame(PONG, b"something else"))
        assert not call.protocol.answers
        call.protocol.data_received(frame(PONG, asked[2:]))
        assert call.protocol.answers
        assert call.protocol.ping() == 0.0


async def test_who_pings_is_known_to_look_for_answers() -> None:
    async with opened() as call:
        call.listen()
        call.protocol.data_received(frame(PING, b""))
        assert call.protocol.answers
        assert cast(Any, call.protocol).pending_ping_payload is None
