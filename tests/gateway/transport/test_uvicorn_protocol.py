"""
What callers send, however it is cut into frames, fragments and packets.
"""

import asyncio
import gc
import logging
import socket
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fronted import STREAM, FakeWorker, Gateway, echo
from support.waiting import until
from support.wire import BINARY, CLOSE, CONTINUATION, PING, TEXT, Wire, frame

from dalston.gateway.transport.frames import Cutter, payload
from dalston.gateway.transport.uvicorn_protocol import DirectProtocol

LONGEST = 70_000

FRAMES = st.builds(
    frame,
    st.sampled_from([CONTINUATION, TEXT, BINARY, PING, CLOSE]),
    st.sampled_from([0, 1, 125, 126, 3200, 65_535, 65_536, LONGEST]).map(bytes),
    fin=st.booleans(),
    reserved=st.integers(0, 7),
    masked=st.booleans(),
)


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """In pieces of these sizes, over and over."""
    pieces, at = list[bytes](), 0
    while at < len(stream):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(stream[at : at + size])
        at += size
    return pieces


def found(cutter: Cutter, data: bytes) -> list[bytes]:
    """The frames that are whole with this."""
    cutter.feed(data)
    return list(iter(cutter.next, None))


@settings(deadline=None)
@given(frames=st.lists(FRAMES, max_size=4), sizes=st.lists(st.integers(1, 9000), min_size=1))
def test_frames_are_found_however_they_arrive(frames: list[bytes], sizes: list[int]) -> None:
    cutter = Cutter(LONGEST)
    whole = list[bytes]()
    for piece in cut(b"".join(frames), [*sizes, 70_100]):
        whole += found(cutter, piece)
        assert not cutter.too_long
    assert whole == frames
    assert cutter.between


@pytest.mark.parametrize("at", range(1, 15))
def test_a_frame_may_be_cut_inside_its_head(at: int) -> None:
    for whole in (frame(BINARY, bytes(66_000)), frame(BINARY, bytes(200))):
        cutter = Cutter(LONGEST)
        assert found(cutter, whole[:at]) == []
        assert not cutter.between
        assert found(cutter, whole[at:]) == [whole]


def test_what_is_not_asked_for_stays_and_more_may_come() -> None:
    cutter, frames = Cutter(100), [frame(BINARY, bytes([number])) for number in range(4)]
    cutter.feed(frames[0] + frames[1] + frames[2][:3])
    assert cutter.next() == frames[0]
    assert cutter.left == frames[1] + frames[2][:3]
    assert found(cutter, frames[2][3:] + frames[3]) == frames[1:]
    assert cutter.between


def test_cutting_stops_before_a_frame_that_is_too_long() -> None:
    cutter = Cutter(100)
    good, long = frame(BINARY, b"good"), frame(BINARY, bytes(101))
    assert found(cutter, good + long[:20]) == [good]
    assert cutter.too_long == 101
    assert cutter.left == long[:20]
    assert found(cutter, long[20:]) == []
    assert not cutter.between


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_a_frame_that_is_too_long_can_be_passed_over(size: int) -> None:
    cutter, whole = Cutter(100), list[bytes]()
    good, long = frame(BINARY, b"good"), frame(BINARY, bytes(200))
    for piece in cut(good + long + long + good, [size]):
        whole += found(cutter, piece)
        while cutter.too_long:
            assert cutter.too_long == 200
            cutter.pass_over()
            whole += list(iter(cutter.next, None))
    assert whole == [good, good]
    assert cutter.between


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_a_message_of_bytes_is_read(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    mask = b"\x01\x80\x7f\x00"
    hidden = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    head = frame(BINARY, data)[: -size - 4] if size else frame(BINARY, data)[:-4]
    assert payload(head + mask + hidden) == data


@pytest.mark.parametrize(
    "other",
    [
        frame(TEXT, b"text"),
        frame(BINARY, b"a part", fin=False),
        frame(CONTINUATION, b"its end"),
        frame(PING, b""),
        frame(BINARY, b"naked", masked=False),
        frame(BINARY, b"compressed", reserved=4),
    ],
)
def test_nothing_else_is(other: bytes) -> None:
    assert payload(other) is None


# Through a gateway, whose worker tells the size of what it hears.


async def spoken(
    gateway: Gateway, *packets: bytes, begun: bool = True
) -> tuple[list[Any], int | None]:
    """What the worker heard of a caller who sends these, the first once the session has begun or
    before, and the code the call ended with."""
    async with FakeWorker(gateway.slots, "a", echo).running():
        caller = await Wire.open(int(gateway.url.split(":")[1]), STREAM)
        assert caller.finished
        for packet in packets:
            if begun:
                await until(lambda: caller.messages)
            await caller.send(packet)
            await asyncio.sleep(0.02)  # a packet of its own
            if packet is AUDIO:
                await until(lambda: len(caller.messages) > 1 or caller.ended)
        await asyncio.wait([caller.finished], timeout=5)
        heard = [m.get("bytes", m["type"]) for m in caller.messages if m["type"] != "session.begin"]
        await caller.close()
    await gateway.until_held(0)
    return heard, caller.close_code


END = frame(TEXT, b'{"type":"end"}')
AUDIO = frame(BINARY, bytes(3200))


async def test_a_frame_in_many_packets_and_many_frames_in_a_packet_are_heard(
    gateway: Gateway,
) -> None:
    stream = b"".join(frame(BINARY, bytes(size)) for size in (3200, 1, 70_000, 200, 126, 0, 10))
    packets = [AUDIO, stream[:3], stream[3:9000], stream[9000:], AUDIO + AUDIO[:5], AUDIO[5:], END]
    heard, code = await spoken(gateway, *packets)
    assert heard == [3200, 3200, 1, 70_000, 200, 126, 0, 10, 3200, 3200, "session.end"]
    assert code == 1000


async def test_a_message_in_fragments_is_one_and_a_ping_may_come_in_between(
    gateway: Gateway,
) -> None:
    first, last = frame(BINARY, bytes(200), fin=False), frame(CONTINUATION, bytes(300))
    between = frame(CONTINUATION, bytes(1000), fin=False)
    packets = [first, between, frame(PING, b"there?"), last, AUDIO, first + last + AUDIO, END]
    heard, code = await spoken(gateway, *packets)
    assert (heard, code) == ([1500, 3200, 500, 3200, "session.end"], 1000)


async def test_text_in_fragments_is_one_message(gateway: Gateway) -> None:
    packets = frame(TEXT, b'{"type":', fin=False), AUDIO[:0], frame(CONTINUATION, b'"end"}')
    assert await spoken(gateway, *packets) == (["session.end"], 1000)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (frame(BINARY, bytes(200), masked=False), 1002),
        (frame(BINARY, bytes(200), reserved=4), 1002),
        (frame(BINARY, bytes(200), fin=False) + AUDIO, 1002),
        (frame(CONTINUATION, bytes(200)), 1002),
        (frame(3, bytes(200)), 1002),
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(BINARY, bytes(1 << 20), fin=False) + frame(CONTINUATION, bytes(1)), 1009),
    ],
)
async def test_what_breaks_the_protocol_ends_the_call_and_what_came_before_is_heard(
    gateway: Gateway, broken: bytes, expected: int
) -> None:
    heard, code = await spoken(gateway, AUDIO, broken, AUDIO, END)
    assert (heard, code) == ([3200], expected)


async def test_a_frame_that_is_too_long_ends_the_session_with_what_came_before(
    gateway: Gateway,
) -> None:
    long = frame(BINARY, bytes((1 << 20) + 1))
    heard, code = await spoken(gateway, AUDIO + long[:9000], long[9000:] + AUDIO, AUDIO)
    assert (set(heard), heard[-1], code) == ({3200, "error", "session.end"}, "session.end", 1009)
    assert len(heard) == 3


async def test_a_frame_that_never_ends_is_not_waited_for(gateway: Gateway) -> None:
    endless = bytes([0x82, 0xFF]) + ((1 << 63) - 1).to_bytes(8) + bytes(200)
    heard, code = await spoken(gateway, AUDIO, endless, AUDIO)
    assert (heard, code) == ([3200, "error", "session.end"], 1009)


async def test_what_comes_behind_a_close_is_not_heard(gateway: Gateway) -> None:
    heard, _ = await spoken(gateway, AUDIO, frame(CLOSE, b"\x03\xe8") + AUDIO, AUDIO)
    assert heard == [3200]


async def test_what_comes_before_there_is_a_worker_is_heard_in_order(gateway: Gateway) -> None:
    sizes = [1, 300, 70_000, 2]
    together = b"".join(frame(BINARY, bytes(size)) for size in sizes) + END
    assert await spoken(gateway, together, begun=False) == ([*sizes, "session.end"], 1000)


async def test_who_is_refused_when_we_have_to_go_is_not_answered_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    leave = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await leave.wait()

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, ws=DirectProtocol, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve([listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(
        b"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await until(lambda: server.server_state.tasks)
    (protocol,) = server.server_state.connections
    leave.set()
    protocol.shutdown()  # as uvicorn does after the time for a drain
    assert (await reader.read()).count(b"HTTP/1.1 500") == 1
    writer.close()
    server.should_exit = True
    await serving
    gc.collect()  # what a task raised is told when it is collected
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
