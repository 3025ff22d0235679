"""
Both ends of a WebSocket between gateway and worker, and other people's ends of it.
"""

import asyncio
import gc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop
from picows import ws_create_server  # pyright: ignore[reportUnknownVariableType]
from support.waiting import until
from support.wire import BINARY, CONTINUATION, TEXT, Wire, frame
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.websocket_peer import (
    FRAMES_KEPT,
    USUAL,
    Frame,
    Peer,
    PeerClosed,
    connected,
)

LONGEST = 100_000


@dataclass
class Served:
    """A server, and its ends of the connections to it."""

    port: int = 0
    peers: list[Peer] = field(default_factory=list[Peer])
    others: list[Peer] = field(default_factory=list[Peer])

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def link(self) -> tuple[Peer, Peer]:
        """Both ends of a connection: the one that asked for it, and the other."""
        self.others.append(await connected(self.url, {}, LONGEST, 2.0))
        return self.others[-1], self.peers[-1]

    async def client(self) -> tuple[ClientConnection, Peer]:
        """The same with somebody else's library."""
        client = await connect(self.url, compression=None)
        return client, self.peers[-1]


@asynccontextmanager
async def server() -> AsyncGenerator[Served]:
    served = Served()

    def welcome(_: object) -> Peer:
        served.peers.append(Peer(LONGEST))
        return served.peers[-1]

    listening = await ws_create_server(welcome, "127.0.0.1", 0, max_frame_size=LONGEST, **USUAL)
    served.port = listening.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        listening.close()
        for peer in (*served.peers, *served.others):
            peer.abort()
        await asyncio.sleep(0.01)


class Ear:
    """What a peer was heard to say."""

    def __init__(self, peer: Peer):
        self.heard = list[Frame]()
        self.left = 0
        peer.listen(self.heard.append, self.leave)

    def leave(self) -> None:
        self.left += 1


async def test_frames_go_both_ways() -> None:
    async with server() as served:
        asking, asked = await served.link()
        asking.send_now("tête")
        asking.send_now(b"\x00\xff")
        assert [await asked.received(), await asked.received()] == ["tête", b"\x00\xff"]
        await asked.send("there")
        assert await asking.received() == "there"


async def test_who_listens_late_hears_what_was_kept_first_and_all_of_it() -> None:
    async with server() as served:
        asking, asked = await served.link()
        frames = [b"%d" % number for number in range(5 * FRAMES_KEPT)]
        for sent in frames:
            asking.send_now(sent)
            await asyncio.sleep(0.001)
        ear = Ear(asked)
        await until(lambda: len(ear.heard) == len(frames))
        assert ear.heard == frames


async def test_who_does_not_listen_is_not_sent_more_than_is_kept() -> None:
    async with server() as served:
        asking, asked = await served.link()
        sent = 0
        while not asking.blocked:
            asking.send_now(bytes(LONGEST))
            sent += 1
            await asyncio.sleep(0)
        ear = Ear(asked)
        await asyncio.wait_for(asking.drained(), 10)
        await until(lambda: len(ear.heard) == sent)


async def test_reading_stops_and_goes_on() -> None:
    async with server() as served:
        asking, asked = await served.link()
        ear = Ear(asked)
        asked.pause()
        unblocked = 0

        def count() -> None:
            nonlocal unblocked
            unblocked += 1

        asking.unblocked = count
        while not asking.blocked:
            asking.send_now(bytes(LONGEST))
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asking.send(b"another")
        assert not ear.heard
        assert not unblocked
        asked.resume()
        await asyncio.wait_for(asking.drained(), 10)
        assert unblocked == 1
        await until(lambda: ear.heard[-1:] == [b"another"])


@pytest.mark.parametrize("code", [1000, 1012, 4400])
async def test_a_close_is_told_with_its_reason(code: int) -> None:
    async with server() as served:
        asking, asked = await served.link()
        ear = Ear(asking)
        asked.send_now("last words")
        await asked.close(code, "because")
        await asking.ended()
        assert (asking.close_code, asking.close_reason, asked.close_code) == (code, "because", code)
        assert (ear.heard, ear.left) == (["last words"], 1)


async def test_other_libraries_close_in_order_too() -> None:
    async with server() as served:
        client, peer = await served.client()
        ear = Ear(peer)
        await client.close(1001, "away")
        await until(lambda: ear.left)
        assert (peer.close_code, peer.close_reason) == (1001, "away")
        client, peer = await served.client()
        closing = asyncio.create_task(peer.close(4010, "lag"))
        with pytest.raises(ConnectionClosed):
            await client.recv()
        await asyncio.wait_for(closing, 0.5)
        assert (client.close_code, client.close_reason) == (4010, "lag")


async def test_a_close_that_tells_no_code_is_answered() -> None:
    async with server() as served:
        caller = await Wire.open(served.port, "/")
        await caller.send(frame(8, b""))
        assert caller.finished
        await asyncio.wait_for(caller.finished, 5)
        assert caller.close_code == 1000
        await caller.close()


async def test_a_connection_that_breaks_is_told_once_and_is_abnormal() -> None:
    async with server() as served:
        asking, asked = await served.link()
        ear = Ear(asked)
        asking.abort()
        await until(lambda: ear.left)
        await asyncio.sleep(0.02)
        assert (ear.left, asked.close_code) == (1, CloseCode.ABNORMAL)
        asked.send_now(b"into the void")
        with pytest.raises(PeerClosed):
            await asked.send(b"into the void")
        late = Ear(asked)
        assert late.left == 1


async def test_who_waits_for_a_frame_learns_that_none_will_come() -> None:
    async with server() as served:
        asking, asked = await served.link()
        asking.send_now("one")
        waiting = asyncio.create_task(asked.received())
        assert await waiting == "one"
        waiting = asyncio.create_task(asked.received())
        await asyncio.sleep(0.01)
        asking.abort()
        with pytest.raises(PeerClosed):
            await asyncio.wait_for(waiting, 2)


async def test_who_waits_to_be_read_learns_that_nobody_will() -> None:
    async with server() as served:
        asking, asked = await served.link()
        asked.pause()
        while not asking.blocked:
            asking.send_now(bytes(LONGEST))
            await asyncio.sleep(0)
        waiting = asyncio.create_task(asking.drained())
        asked.abort()
        with pytest.raises(PeerClosed):
            await asyncio.wait_for(waiting, 5)


async def test_what_is_not_read_does_not_keep_a_close() -> None:
    async with server() as served:
        client, peer = await served.client()
        client.transport.pause_reading()
        while not peer.blocked:
            peer.send_now(bytes(LONGEST))
            await asyncio.sleep(0)
        await asyncio.wait_for(peer.close(1000, patience_s=0.2), 2)
        assert peer.close_code == CloseCode.ABNORMAL
        with suppress(ConnectionClosed):
            client.transport.resume_reading()
            async for _ in client:
                pass


async def test_behind_our_close_nothing_is_heard() -> None:
    async with server() as served:
        asking, asked = await served.link()
        ear = Ear(asked)
        closing = asyncio.create_task(asked.close(1000))
        await asyncio.sleep(0)
        asking.send_now(b"too late")
        await closing
        assert not ear.heard


async def test_one_that_lives_says_so_when_it_is_asked() -> None:
    async with server() as served:
        asking, asked = await served.link()
        now = asyncio.get_running_loop().time()
        asking.ping(now)
        assert asking.pinged_at == now
        Ear(asking)
        await until(lambda: asking.pinged_at is None)
        assert asking.heard_at >= now
        asked.transport.underlying_transport.pause_reading()
        asking.ping(now)
        await asyncio.sleep(0.1)
        assert asking.pinged_at == now


async def test_one_that_does_not_read_says_all_the_same_that_it_lives() -> None:
    async with server() as served:
        asking, asked = await served.link()
        Ear(asking)
        asked.pause()
        for _ in range(2):
            asking.ping(now := asyncio.get_running_loop().time())
            await until(lambda: asking.pinged_at is None)
            assert asking.heard_at > now
        asked.resume()
        await asyncio.sleep(0.3)  # for the answers to what was asked
        heard = asking.heard_at
        await asyncio.sleep(0.6)
        assert asking.heard_at == heard, "one that reads is silent until it is asked"


async def test_a_message_in_fragments_is_one() -> None:
    async with server() as served:
        client, peer = await served.client()
        await client.send([b"a", b"b", b"c"])
        await client.send(["\u00e9"[:1], "t", "\u00e9"])
        assert [await peer.received(), await peer.received()] == [b"abc", "été"]
        await client.close()


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (frame(BINARY, b"x", reserved=4), 1002),
        (frame(BINARY, b"x", masked=False), 1002),
        (frame(CONTINUATION, b"x"), 1002),
        (frame(BINARY, b"x", fin=False) + frame(BINARY, b"y"), 1002),
        (frame(5, b"x"), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(BINARY, bytes(LONGEST + 1)), 1009),
        (frame(BINARY, bytes(LONGEST), fin=False) + frame(CONTINUATION, b"x"), 1009),
    ],
)
async def test_what_breaks_the_protocol_is_refused(broken: bytes, expected: int) -> None:
    async with server() as served:
        caller = await Wire.open(served.port, "/")
        ear = Ear(served.peers[-1])
        await caller.send(frame(BINARY, b"good"))
        await until(lambda: ear.heard)  # picows looks at the next before it hands out one
        await caller.send(broken)
        assert caller.finished
        await asyncio.wait_for(caller.finished, 5)
        assert (ear.heard, caller.close_code) == ([b"good"], expected)
        await caller.close()


@asynccontextmanager
async def mute_server() -> AsyncGenerator[tuple[str, asyncio.Event]]:
    """It hears a request and says nothing; set once whoever asked has left."""
    left = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read()  # until it leaves
        assert not request.partition(b"\r\n\r\n")[2]
        writer.close()
        left.set()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", left


async def test_a_server_that_does_not_answer_is_not_waited_for() -> None:
    async with mute_server() as (url, left):
        with pytest.raises(TimeoutError):
            await connected(url, {}, LONGEST, 0.2)
        await asyncio.wait_for(left.wait(), 2)


def test_whoever_gives_up_at_any_moment_is_not_told_later_that_there_was_no_answer() -> None:
    told = list[dict[str, Any]]()

    async def give_up() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, about: told.append(about))
        async with mute_server() as (url, _):
            for moment in range(40):
                asking = loop.create_task(connected(url, {}, LONGEST, 0.2))
                for _ in range(moment):
                    await asyncio.sleep(0)
                asking.cancel()
            await asyncio.sleep(0.3)  # picows has given up too
            gc.collect()
            await asyncio.sleep(0)

    uvloop.run(give_up())  # as the gateway runs; asyncio's own loop has no such moment
    assert told == []


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Switch"])
async def test_a_server_that_closes_before_it_has_answered_is_not_reached(answer: bytes) -> None:
    async def shy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(shy, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionResetError):
            await connected(f"ws://127.0.0.1:{port}/", {}, LONGEST, 2.0)


async def test_an_answer_that_nobody_waits_for_any_more_leaves_no_connection() -> None:
    async with server() as served:
        asking = asyncio.create_task(connected(served.url, {}, LONGEST, 5.0))
        while not served.peers:
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait_for(served.peers[0].ended(), 2)
        assert asking.cancelled()
