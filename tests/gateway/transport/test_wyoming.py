"""
Events as they come over TCP: however they are cut, too long, or none at all.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.waiting import until

from dalston.gateway.transport.transport import Disconnected
from dalston.gateway.transport.wyoming import Events, WyomingTransport
from dalston.orchestrator.protocol.messages import LONGEST_TEXT, Frame

LONGEST = 60_000


def event(kind: str, data: bytes = b"", payload: bytes = b"") -> bytes:
    head = {"type": kind, "data_length": len(data), "payload_length": len(payload)}
    return json.dumps(head).encode() + b"\n" + data + payload


def cut(*parts: bytes, longest: int = LONGEST) -> tuple[list[bytes], list[int]]:
    """The events, and the sizes of those that are too long."""
    events, heard, too_long = Events(longest), list[bytes](), list[int]()
    for part in parts:
        events.feed(part)
        while True:
            if (one := events.next()) is not None:
                heard.append(one)
            elif events.too_long:
                too_long.append(events.too_long)
                events.too_long = 0
            else:
                break
    return heard, too_long


@given(
    said=st.lists(
        st.tuples(
            st.sampled_from(["audio-chunk", "audio-stop", "ping"]),
            st.binary(max_size=30),
            st.binary(max_size=60),
        ),
        max_size=6,
    ),
    cuts=st.lists(st.integers(0, 1000), max_size=12),
)
def test_it_does_not_matter_how_events_are_cut(
    said: list[tuple[str, bytes, bytes]], cuts: list[int]
) -> None:
    events = [event(*one) for one in said]
    wire = b"".join(events)
    places = sorted({0, len(wire), *(place % (len(wire) + 1) for place in cuts)})
    parts = [wire[a:b] for a, b in zip(places, places[1:], strict=False)]
    assert cut(*parts) == (events, [])


def test_an_event_that_is_too_long_is_told_and_passed_over() -> None:
    long, short = event("audio-chunk", payload=bytes(LONGEST)), event("ping")
    wire = short + long + short
    assert cut(*(wire[at : at + 7_000] for at in range(0, len(wire), 7_000))) == (
        [short, short],
        [len(long)],
    )


@pytest.mark.parametrize(
    "line",
    [
        b"POST / HTTP/1.1\r\n",
        b"[]\n",
        b'{"type":"ping","data_length":-5}\n',
        b'{"type":"ping","payload_length":"5"}\n',
        b"\xff\xfe\n",
        b"[" * 9_000 + b"\n",
        b"x" * LONGEST_TEXT,
    ],
)
def test_a_line_that_is_no_event_is_the_last(line: bytes) -> None:
    assert cut(event("ping") + line + event("ping"), event("ping"))[0] == [event("ping"), line]


def test_nothing_is_kept_of_what_comes_after_it() -> None:
    events = Events(LONGEST)
    events.feed(b"no\n")
    assert events.next() == b"no\n"
    for _ in range(3):
        events.feed(bytes(9_000))
        assert events.next() is None
        assert not events.left


@dataclass
class Open:
    transport: WyomingTransport
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: list[Frame] = field(default_factory=list[Frame])

    def listen(self, receive: Callable[[Frame], None] | None = None) -> None:
        self.transport.listen(receive or self.heard.append)
        self.transport.resume()


@pytest.fixture
async def line() -> AsyncGenerator[Open]:
    made: asyncio.Future[WyomingTransport] = asyncio.get_running_loop().create_future()
    server = await asyncio.get_running_loop().create_server(
        lambda: WyomingTransport(LONGEST, made.set_result), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    yield Open(await made, reader, writer)
    writer.close()
    (await made).abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await (await made).until_disconnected()
    server.close()


async def test_nothing_is_heard_before_it_is_listened_to_nor_while_it_is_paused(line: Open) -> None:
    line.writer.write(event("ping") * 3)
    await asyncio.sleep(0.05)
    assert line.heard == []

    def once(frame: Frame) -> None:
        line.heard.append(frame)
        line.transport.pause()

    line.listen(once)
    for heard in (1, 2, 3):
        await until(lambda heard=heard: len(line.heard) == heard)
        await asyncio.sleep(0.02)
        assert len(line.heard) == heard
        line.transport.resume()


async def test_who_does_not_read_is_noticed_and_told_when_they_do(line: Open) -> None:
    writable = asyncio.Event()
    line.transport.when_writable(writable.set)
    sent = 0
    while line.transport.send_now("x" * 100_000):
        sent += 100_000
        await asyncio.sleep(0)
    waiting = asyncio.create_task(line.transport.send("end"))
    await line.reader.readexactly(sent)
    await asyncio.wait_for(writable.wait(), 5)
    await waiting
    assert await line.reader.readexactly(3) == b"end"


async def test_a_close_ends_after_what_was_said_and_is_answered_by_the_clients(line: Open) -> None:
    line.listen()
    assert line.transport.send_now("last words")
    await line.transport.close(1000)
    assert not line.transport.send_now("more")
    assert await line.reader.read() == b"last words"
    line.writer.close()
    assert await asyncio.wait_for(line.transport.answered(), 5)
    with pytest.raises(Disconnected):
        await line.transport.close(1000)


async def test_a_connection_that_breaks_has_no_answer(line: Open) -> None:
    line.listen()
    line.writer.transport.abort()
    await asyncio.wait_for(line.transport.until_disconnected(), 5)
    with pytest.raises(Disconnected):
        await line.transport.send("hello")


async def test_what_a_client_has_not_read_yet_is_not_lost_with_the_close(line: Open) -> None:
    line.listen()
    line.writer.write(event("ping") * 2_000)  # which nobody reads any more
    said = "x" * 3_000_000
    sending = asyncio.create_task(line.transport.send(said))
    await sending
    await line.transport.close(1000)
    going = asyncio.create_task(line.transport.gone())
    assert len(await line.reader.read()) == len(said)
    assert not going.done()
    line.writer.close()
    await asyncio.wait_for(going, 4)
