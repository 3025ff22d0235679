"""
Two channels of one connection, each with a session of its own: what each hears, which worker has
it, and what the connection is told.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fronted import FakeWorker, Gateway, drained, gateway_over
from support.registered import BEGIN, final, snapshot
from support.transports import Line
from support.waiting import until
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection

from dalston.gateway.access.keys import RedisKeys, make
from dalston.gateway.calls.caller import Caller, Objection
from dalston.gateway.calls.channels import Channel, Channels, Splitter
from dalston.gateway.protocols.native import Native
from dalston.gateway.protocols.protocol import Opening
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    SAMPLE_BYTES,
    Encoding,
    Error,
    Frame,
    SessionBegin,
    parse_server,
    serialize,
)

APART = "channels=2&multichannel=true"
LEFT, RIGHT = b"\1\1", b"\2\2"
CHUNK = (LEFT + RIGHT) * 1600  # 0.1 s


@given(
    samples=st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=60),
    encoding=st.sampled_from(sorted(SAMPLE_BYTES)),
    cuts=st.lists(st.integers(0, 500), max_size=8),
)
def test_each_channel_hears_the_same_however_audio_is_cut(
    samples: list[tuple[int, int]], encoding: Encoding, cuts: list[int]
) -> None:
    width = SAMPLE_BYTES[encoding]
    expected = [
        b"".join(bytes([pair[number]]) + bytes(width - 1) for pair in samples) for number in (0, 1)
    ]
    audio = b"".join(bytes([n]) + bytes(width - 1) for pair in samples for n in pair)
    places = sorted({0, len(audio), *(cut % (len(audio) + 1) for cut in cuts)})
    splitter, heard = Splitter(encoding, 2), [b"", b""]
    for first, last in zip(places, places[1:], strict=False):
        heard = [a + b for a, b in zip(heard, splitter.split(audio[first:last]), strict=True)]
    assert heard == expected


class Heard:
    """A call of one channel, as far as it hears."""

    def __init__(self, channel: Channel):
        self.frames = list[Frame]()
        self.counted = 0
        self.objections = list[Objection]()
        channel.listen(self.frames.append, self._count, self.objections.append)
        channel.resume()

    def _count(self, _: bool) -> None:
        self.counted += 1


def connected(known: tuple[int, int] = (0, 0)) -> tuple[Line, Channels]:
    line = Line(paused=True)
    caller = Caller(line, Native(Opening([], {})), Opening([], {}), 1000)
    return line, Channels(caller, known, "pcm_s16le")


async def test_nothing_is_heard_until_both_listen() -> None:
    line, channels = connected()
    first = Heard(channels.all[0])
    assert (line.receive, line.paused) == (None, True)
    second = Heard(channels.all[1])
    assert not line.paused
    line.says(LEFT + RIGHT + LEFT[:1], LEFT[1:] + RIGHT)
    assert [b"".join(heard.frames) for heard in (first, second)] == [LEFT * 2, RIGHT * 2]  # pyright: ignore[reportArgumentType,reportCallIssue]


async def test_messages_are_for_both_or_for_the_channel_that_they_name() -> None:
    line, channels = connected()
    heard = [Heard(channel) for channel in channels.all]
    both, one = '{"type":"flush"}', '{"type":"config","channel":1,"language":"de"}'
    line.says(both, one, '{"type":"ping"}', "hm")
    assert [h.frames for h in heard] == [[both, '{"type":"ping"}', "hm"], [both, one]]


async def test_the_slower_channel_slows_the_connection() -> None:
    line, channels = connected()
    first, second = channels.all
    for channel in (first, second):
        Heard(channel)
    first.pause()
    second.pause()
    second.resume()
    assert line.paused
    first.resume()
    assert not line.paused
    first.pause()
    first.ignore()  # its session has ended
    assert not line.paused


async def test_what_one_channel_needs_no_more_is_kept_from_it() -> None:
    line, channels = connected((0, 4))
    heard = [Heard(channel) for channel in channels.all]
    line.says((LEFT + RIGHT), (LEFT + RIGHT) * 2)
    assert [h.frames for h in heard] == [[LEFT, LEFT * 2], [b"", RIGHT]]


async def test_what_is_no_message_is_counted_once_and_objections_are_for_all() -> None:
    line, channels = connected()
    heard = [Heard(channel) for channel in channels.all]
    assert line.on_part
    assert line.on_too_long
    line.on_part(False)
    line.on_too_long(5000)
    assert [h.counted for h in heard] == [1, 0]
    assert [[o.code for o in h.objections] for h in heard] == [["invalid_message"]] * 2


async def test_the_connection_is_closed_when_both_have_ended() -> None:
    line, channels = connected()
    first, second = channels.all
    for channel in (first, second):
        Heard(channel)
    first.say('{"type":"session.end"}')
    closing = asyncio.create_task(first.close(CloseCode.NORMAL))
    await asyncio.sleep(0.6)  # longer than it takes after a failure
    assert line.sent == ['{"type":"session.end","channel":0}']
    second.say('{"type":"session.end"}')
    await second.close(CloseCode.NORMAL)
    await closing
    assert line.sent[1:] == ['{"type":"session.end","channel":1}', "closed 1000"]


async def test_it_is_closed_soon_when_one_has_failed() -> None:
    line, channels = connected()
    for channel in channels.all:
        Heard(channel)
    await channels.all[1].close(CloseCode.LAG)
    assert line.sent == ["closed 4010"]


# With a gateway.


class Workers:
    """What the sessions of each channel were sent: a channel is known by its audio."""

    def __init__(
        self, then: Callable[[ServerConnection, "Workers"], Awaitable[None]] | None = None
    ):
        self._then = then
        self.heard = list[bytes]()

    async def __call__(self, connection: ServerConnection) -> None:
        assert connection.request
        if "resume=1" in connection.request.path:
            await connection.recv()
        (session,) = parse_qs(urlsplit(connection.request.path).query)["session_id"]
        await connection.send(BEGIN.replace('"session_id":"s"', f'"session_id":"{session}"'))
        if self._then:
            await self._then(connection, self)
        at = len(self.heard)
        self.heard.append(b"")
        async for frame in connection:
            if isinstance(frame, bytes):
                self.heard[at] += frame
            elif json.loads(frame)["type"] == "end":
                await connection.send(final(self.heard[at][:1] == RIGHT[:1]))
                await connection.send('{"type":"session.end"}')
                return await connection.close(1000)

    def by_channel(self) -> list[bytes]:
        return sorted(self.heard)


def of(kind: str, messages: list[Any]) -> list[Any]:
    return [message for message in messages if message["type"] == kind]


async def begun(stream: ClientConnection) -> dict[int, Any]:
    """session.begin of both, by channel."""
    messages = [json.loads(await stream.recv()) for _ in range(2)]
    assert all(message["type"] == "session.begin" for message in messages)
    return {message["channel"]: message for message in messages}


async def test_one_connection_has_a_session_for_each_channel(gateway: Gateway) -> None:
    workers = Workers()
    async with (
        FakeWorker(gateway.slots, "a", workers, capacity=1).running(),
        FakeWorker(gateway.slots, "b", workers, capacity=1).running(),
        gateway.stream(APART) as stream,
    ):
        begins = await begun(stream)
        assert sorted(begins) == [0, 1]
        sessions = {session["session_id"] for session in await gateway.slots.sessions()}
        assert len(sessions) == 2
        assert await gateway.held() == 2
        for cut in (3, 6000, len(CHUNK)):
            await stream.send(CHUNK[:cut])
            await stream.send(CHUNK[cut:])
        await stream.send('{"type":"end"}')
        messages, code = await drained(stream)
    assert workers.by_channel() == [LEFT * 4800, RIGHT * 4800]
    finals = of("transcript.final", messages)
    assert {(m["channel"], m["segment_id"]) for m in finals} == {(0, "seg_0000"), (1, "seg_0001")}
    assert {m["channel"] for m in of("session.end", messages)} == {0, 1}
    assert code == 1000
    await gateway.until_held(0)


async def test_both_slots_are_given_or_none(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", Workers(), capacity=1).running():
        async with gateway.stream(APART) as stream:
            (error,), code = await drained(stream)
        assert (error["code"], code) == ("no_capacity", 1013)
        assert await gateway.held() == 0
        async with gateway.stream() as stream:
            assert json.loads(await stream.recv())["type"] == "session.begin"


async def test_a_key_has_as_many_channels_as_it_may_have_sessions(redis_url: str) -> None:
    async with gateway_over(redis_url, api_keys="redis") as gateway:
        keys = dict[int, str]()
        for sessions in (1, 2):
            keys[sessions], key = make(f"key{sessions}", sessions)
            await RedisKeys(gateway.client).add(key)
        async with FakeWorker(gateway.slots, "a", Workers()).running():
            async with gateway.stream(f"{APART}&api_key={keys[1]}") as stream:
                (error,), code = await drained(stream)
            assert (error["code"], code) == ("rate_limit", 4429)
            async with gateway.stream(f"{APART}&api_key={keys[2]}") as stream:
                await begun(stream)


# 003-11
async def test_a_worker_that_dies_loses_nothing_of_either_channel(gateway: Gateway) -> None:
    async def die(connection: ServerConnection, _: Workers) -> None:
        for _frame in range(2):
            await connection.recv()
        await connection.send(final(0))
        connection.transport.abort()

    second = Workers()
    async with (
        FakeWorker(gateway.slots, "a", Workers(die)).running(),
        gateway.stream(APART) as stream,
    ):
        await begun(stream)
        async with FakeWorker(gateway.slots, "b", second).running():
            for _ in range(3):
                await stream.send(CHUNK)
            await until(lambda: second.by_channel() == [LEFT * 4800, RIGHT * 4800])
            await stream.send('{"type":"end"}')
            messages, code = await drained(stream)
    told = [(m["channel"], m["segment_id"]) for m in of("transcript.final", messages)]
    assert sorted(told) == [(0, "seg_0000"), (1, "seg_0000"), (1, "seg_0001")]
    assert [m["code"] for m in of("warning", messages)] == ["worker_lost"] * 2
    assert code == 1000
    await gateway.until_held(0)


async def test_an_error_that_ends_one_channel_ends_both_and_both_slots_are_back(
    gateway: Gateway,
) -> None:
    async def fail(connection: ServerConnection, workers: Workers) -> None:
        if await connection.recv() == LEFT * 1600:
            error = Error(code="internal_error", message="a fault", recoverable=False)
            await connection.send(serialize(error))
            await connection.close(1011)

    async with (
        FakeWorker(gateway.slots, "a", Workers(fail)).running(),
        gateway.stream(APART) as stream,
    ):
        await begun(stream)
        await stream.send(CHUNK)
        messages, code = await drained(stream)
        assert [(m["code"], m["channel"]) for m in messages] == [("internal_error", 0)]
        assert code == 1011
        await gateway.until_held(0)


async def test_who_comes_back_sends_again_what_any_channel_needs(gateway: Gateway) -> None:
    at = [16_000, 24_000]  # samples: where the snapshots of the channels are

    async def state(connection: ServerConnection, _: Workers) -> None:
        channel = 0 if (await connection.recv())[:1] == LEFT[:1] else 1  # pyright: ignore[reportArgumentType]
        await connection.send(final(0))
        await connection.send(snapshot(at[channel], 1))
        await connection.wait_closed()

    async with FakeWorker(gateway.slots, "a", Workers(state)).running():
        async with gateway.stream(APART) as stream:
            begins = await begun(stream)
            await stream.send(CHUNK)
            for _ in at:
                assert json.loads(await stream.recv())["type"] == "transcript.final"
            ids = [begins[number]["session_id"] for number in (0, 1)]
            async with asyncio.timeout(5):
                for id in ids:
                    while "snapshot" not in (await gateway.slots.kept(id) or {}):
                        await asyncio.sleep(0.01)
    await gateway.until_held(0)
    second = Workers()
    resume = f"{APART}&resume_session_id={','.join(ids)}&last_segment_id=seg_0000,"
    async with FakeWorker(gateway.slots, "b", second).running(), gateway.stream(resume) as stream:
        messages = [json.loads(await stream.recv()) for _ in range(3)]
        begins = of("session.begin", messages)
        assert [m["resume_offset_ms"] for m in begins] == [1000.0, 1000.0]
        assert {m["channel"]: m["resumed_from"] for m in begins} == dict(enumerate(ids))
        assert [m["channel"] for m in of("transcript.final", messages)] == [1]  # it has none yet
        await stream.send(CHUNK * 10)
        await stream.send('{"type":"end"}')
        assert (await drained(stream))[1] == 1000
    assert second.by_channel() == [LEFT * 16_000, RIGHT * 8_000]


@pytest.mark.parametrize(
    "query",
    [
        "multichannel=true",
        "channels=2&multichannel=maybe",
        f"{APART}&resume_session_id=sess_{'0' * 24}",
        f"{APART}&resume_session_id={','.join(2 * ['sess_' + '0' * 24])}",
        f"{APART}&resume_session_id=sess_{'0' * 24},sess_{'1' * 24}&last_segment_id=seg_0001",
        f"resume_session_id=sess_{'0' * 24},sess_{'1' * 24}",
    ],
)
async def test_what_makes_no_sense_of_channels_is_refused(gateway: Gateway, query: str) -> None:
    async with gateway.stream(query) as stream:
        (error,), code = await drained(stream)
    assert (error["code"], code) == ("invalid_parameter", 4400)


async def test_one_ping_has_one_answer_and_settings_may_be_of_one_channel(gateway: Gateway) -> None:
    async def listen(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        async for frame in connection:
            if json.loads(frame)["type"] == "ping":
                await connection.send('{"type":"pong"}')
            else:
                await connection.send(json.dumps({"type": "got", "said": json.loads(frame)}))

    async with FakeWorker(gateway.slots, "a", listen).running(), gateway.stream(APART) as stream:
        begins = await begun(stream)
        parsed = [parse_server(json.dumps(begin)) for begin in begins.values()]
        assert {begin.channel for begin in parsed if isinstance(begin, SessionBegin)} == {0, 1}
        await stream.send('{"type":"ping"}')
        await stream.send('{"type":"config","channel":1,"language":"de"}')
        answers = [json.loads(await stream.recv()) for _ in range(2)]
    assert sorted((m["type"], m["channel"]) for m in answers) == [("got", 1), ("pong", 0)]


async def test_both_wait_in_line_for_a_slot_each(gateway: Gateway) -> None:
    async with (
        FakeWorker(gateway.slots, "a", Workers(), capacity=2).running(),
        gateway.stream() as first,
    ):
        await first.recv()
        async with gateway.stream(f"{APART}&overflow=queue") as stream:
            queued = json.loads(await stream.recv())
            assert (queued["type"], queued["position"]) == ("session.queued", 1)
            assert await gateway.slots.waiting() == 2
            await stream.send(CHUNK)
            assert await gateway.held() == 1
            await first.send('{"type":"end"}')
            await begun(stream)


async def test_a_drain_tells_both_to_go_on_elsewhere(gateway: Gateway) -> None:
    async def with_ack(connection: ServerConnection) -> None:
        await connection.send(BEGIN.replace('"ack":false', '"ack":true'))
        await connection.wait_closed()

    async with FakeWorker(gateway.slots, "a", with_ack).running(), gateway.stream(APART) as stream:
        await begun(stream)
        gateway.stop.set()
        messages, code = await drained(stream)
    told = sorted((m["type"], m["reason"], m["channel"]) for m in messages)
    assert told == [("session.terminated", "server_drain", number) for number in (0, 1)]
    assert code == 1001


async def test_one_that_an_admin_ends_leaves_the_other(gateway: Gateway) -> None:
    workers = Workers()
    async with FakeWorker(gateway.slots, "a", workers).running(), gateway.stream(APART) as stream:
        begins = await begun(stream)
        path = f"/v1/realtime/sessions/{begins[0]['session_id']}"
        status, _ = await gateway.http(path, "DELETE", {"Authorization": "Bearer secret"})
        assert status == 202
        ended = [json.loads(await stream.recv()) for _ in range(2)]
        assert [(m["type"], m["channel"]) for m in ended][-1] == ("session.end", 0)
        await gateway.until_held(1)
        for _ in range(3):
            await stream.send(CHUNK)
        await until(lambda: RIGHT * 4800 in workers.heard)
        await stream.send('{"type":"end"}')
        messages, code = await drained(stream)
        assert [(m["type"], m["channel"]) for m in messages][-1] == ("session.end", 1)
        assert code == 1000
    await gateway.until_held(0)


async def test_whenever_a_client_vanishes_both_slots_are_back(gateway: Gateway) -> None:
    chance = random.Random(5)

    async def vanish(way: str) -> None:
        async with gateway.stream(f"{APART}&overflow={way}") as stream:
            await stream.send(CHUNK[: chance.randrange(len(CHUNK))])
            await asyncio.sleep(chance.random() * 0.05)
            if chance.random() < 0.5:
                stream.transport.abort()

    async with FakeWorker(gateway.slots, "a", Workers(), capacity=9).running():
        await asyncio.gather(*(vanish(way) for way in ("reject", "queue") * 20))
        await gateway.until_held(0)
        assert await gateway.slots.waiting() == 0
