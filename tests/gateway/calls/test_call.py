"""
Workers that die, hang, drain or send a session away; clients that come back, push or do not read.
"""

import asyncio
import contextlib
import gc
import json
import socket
import urllib.request
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.counted import counted
from support.fronted import STREAM, FakeWorker, Gateway, drained, echo, gateway_over
from support.redis_process import redis_process
from support.registered import BEGIN, final, snapshot
from support.waiting import until
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from dalston.gateway import metrics
from dalston.gateway.access.keys import RedisKeys, make
from dalston.gateway.calls import intake
from dalston.gateway.calls.call import MOST_LOSSES, Call
from dalston.gateway.calls.relay import Relay
from dalston.gateway.settings import GatewaySettings
from dalston.gateway.transport.uvicorn_protocol import DirectProtocol
from dalston.orchestrator.capacity import server
from dalston.orchestrator.protocol.messages import (
    Error,
    ErrorCode,
    SessionBegin,
    SessionConfig,
    SessionTerminated,
    serialize,
)
from dalston.orchestrator.protocol.parameters import session_config

CHUNK = bytes(3200)  # 0.1 s


def refusal(code: ErrorCode) -> str:
    return serialize(Error(code=code, message="no", recoverable=False))


class Notes:
    """A worker that begins, writes down what it is sent, and then does something."""

    def __init__(self, then: Callable[[ServerConnection, "Notes"], Any] | None = None):
        self.frames: list[str | bytes] = []
        self._then = then

    @property
    def audio(self) -> int:
        return sum(len(frame) for frame in self.frames if isinstance(frame, bytes))

    async def __call__(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        if "resume=1" in connection.request.path:
            self.frames.append(await connection.recv())
        await connection.send(BEGIN)
        if self._then:
            await self._then(connection, self)
        async for frame in connection:
            self.frames.append(frame)
            if frame == '{"type":"end"}':
                await connection.send('{"type":"session.end"}')
                return await connection.close(1000)


def dying_after(frames: int, *says: str, code: int | None = None) -> Notes:
    async def die(connection: ServerConnection, notes: Notes) -> None:
        for _ in range(frames):
            notes.frames.append(await connection.recv())
        for word in says:
            await connection.send(word)
        if code is None:
            connection.transport.abort()
        else:
            await connection.close(code)

    return Notes(die)


async def moved(
    gateway: Gateway, first: Notes, second: Notes
) -> tuple[list[Any], FakeWorker, FakeWorker]:
    """A call that begins at one worker, three frames long, and ends at the other."""
    async with FakeWorker(gateway.slots, "a", first).running() as a, gateway.stream() as stream:
        await stream.recv()
        async with FakeWorker(gateway.slots, "b", second).running() as b:
            for _ in range(3):
                await stream.send(CHUNK)
            await until(lambda: second.audio)
            await stream.send('{"type":"end"}')
            messages, code = await drained(stream)
    assert code == 1000
    await gateway.until_held(0)
    return messages, a, b


# 003-11
async def test_a_worker_that_dies_is_replaced_by_one_that_hears_everything(
    gateway: Gateway,
) -> None:
    second = Notes()
    taken, timed = counted(metrics.TAKEOVERS, "lost", "taken"), counted(metrics.TAKEOVER_TIME)
    messages, _, b = await moved(gateway, dying_after(2), second)
    assert counted(metrics.TAKEOVERS, "lost", "taken") == taken + 1
    assert counted(metrics.TAKEOVER_TIME) == timed + 1
    assert [m["type"] for m in messages] == ["warning", "session.end"]
    assert messages[0]["code"] == "worker_lost"
    assert second.audio == 3 * len(CHUNK)
    assert b.requests[0]["epoch"] == "2"


async def test_a_worker_that_drains_is_replaced_without_a_word(gateway: Gateway) -> None:
    second = Notes()
    taken = counted(metrics.TAKEOVERS, "drain", "taken")
    messages, _, _ = await moved(gateway, dying_after(2, code=1012), second)
    assert counted(metrics.TAKEOVERS, "drain", "taken") == taken + 1
    assert [m["type"] for m in messages] == ["session.end"]
    assert second.audio == 3 * len(CHUNK)


async def test_a_worker_that_has_the_session_from_elsewhere_is_not_asked_again(
    gateway: Gateway,
) -> None:
    word = (
        '{"type":"session.terminated","session_id":"s","reason":"taken_over","recoverable":false}'
    )
    async with (
        FakeWorker(gateway.slots, "a", dying_after(1, word, code=1001)).running() as worker,
        gateway.stream() as stream,
    ):
        await stream.recv()
        await stream.send(CHUNK)
        (message,), code = await drained(stream)
        assert (message["reason"], code) == ("taken_over", 1001)
        assert len(worker.requests) == 1


async def test_the_next_worker_is_given_the_snapshot_and_the_audio_behind_it(
    gateway: Gateway,
) -> None:
    second = Notes()
    first = dying_after(2, final(0), snapshot(3200, next_segment=1))
    messages, _, b = await moved(gateway, first, second)
    assert [m["type"] for m in messages] == ["transcript.final", "warning", "session.end"]
    assert b.requests[0]["resume"] == "1"
    given = json.loads(second.frames[0])
    assert (given["position"], [s["segment_id"] for s in given["segments"]]) == (3200, ["seg_0000"])
    assert second.audio == len(CHUNK)


async def test_when_a_client_sees_the_end_its_slot_is_free_and_its_audio_counted(
    gateway: Gateway,
) -> None:
    async with FakeWorker(gateway.slots, "a", Notes()).running(), gateway.stream() as stream:
        await stream.recv()
        (session,) = await gateway.slots.sessions()
        await stream.send(CHUNK)
        await stream.send('{"type":"end"}')
        assert json.loads(await stream.recv())["type"] == "session.end"
        assert await gateway.held() == 0
    key = f"dalston:realtime:session:{session['session_id']}"
    assert await gateway.client.hget(key, "audio_duration") == b"0.100"


async def test_a_final_that_both_workers_tell_is_told_once(gateway: Gateway) -> None:
    async def repeat(connection: ServerConnection, _: Notes) -> None:
        await connection.send(final(0))
        await connection.send(final(1))

    messages, _, _ = await moved(gateway, dying_after(2, final(0)), Notes(repeat))
    told = [m["segment_id"] for m in messages if m["type"] == "transcript.final"]
    assert told == ["seg_0000", "seg_0001"]


async def test_a_worker_that_says_nothing_any_more_is_replaced(gateway: Gateway) -> None:
    async def hang(connection: ServerConnection, _: Notes) -> None:
        connection.transport.pause_reading()  # pings included
        await asyncio.sleep(4)

    second = Notes()
    messages, _, _ = await moved(gateway, Notes(hang), second)
    assert [m["type"] for m in messages] == ["warning", "session.end"]
    assert second.audio == 3 * len(CHUNK)


async def test_a_worker_that_is_only_quiet_keeps_its_session(redis_url: str) -> None:
    async with gateway_over(redis_url, worker_silent_seconds=0.8) as gateway:
        async with (
            FakeWorker(gateway.slots, "a", Notes()).running() as worker,
            gateway.stream() as stream,
        ):
            await stream.recv()
            await asyncio.sleep(1.6)  # it answers pings, and says nothing else
            await stream.send('{"type":"end"}')
            messages, code = await drained(stream)
        assert ([m["type"] for m in messages], code) == (["session.end"], 1000)
        assert len(worker.requests) == 1


async def test_a_session_waits_for_a_worker_that_comes_in_time(redis_url: str) -> None:
    async with gateway_over(redis_url, outage_seconds=30.0) as gateway:
        first, second = dying_after(1), Notes()
        async with FakeWorker(gateway.slots, "a", first).running(), gateway.stream() as stream:
            await stream.recv()
            await gateway.slots.unregister("a", "a")
            await stream.send(CHUNK)
            assert json.loads(await stream.recv())["code"] == "worker_lost"
            await asyncio.sleep(0.5)
            async with FakeWorker(gateway.slots, "b", second).running():
                await stream.send('{"type":"end"}')
                messages, code = await drained(stream)
        assert ([m["type"] for m in messages], code) == (["session.end"], 1000)
        assert second.audio == len(CHUNK)


async def test_a_worker_that_takes_no_more_sessions_is_passed_over(gateway: Gateway) -> None:
    async def full(connection: ServerConnection) -> None:
        await connection.send(
            '{"type":"error","code":"no_capacity","message":"","recoverable":true}'
        )
        await connection.close(1013)

    async with (
        FakeWorker(gateway.slots, "a", full).running(),
        FakeWorker(gateway.slots, "b", echo).running(),
        gateway.stream() as stream,
    ):
        assert json.loads(await stream.recv())["type"] == "session.begin"


async def test_what_a_worker_does_not_want_is_told_to_the_caller(gateway: Gateway) -> None:
    async def refuse(connection: ServerConnection) -> None:
        sentence = (
            '{"type":"error","code":"language_unsupported","message":"no","recoverable":false}'
        )
        await connection.send(sentence)
        await connection.close(4400)

    async with FakeWorker(gateway.slots, "a", refuse).running(), gateway.stream() as stream:
        (error,), code = await drained(stream)
    assert (error["code"], code) == ("language_unsupported", 4400)
    await gateway.until_held(0)


async def test_a_worker_that_never_answers_is_passed_over(gateway: Gateway) -> None:
    async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await FakeWorker(gateway.slots, "a", echo).register(f"ws://127.0.0.1:{port}")
        async with FakeWorker(gateway.slots, "b", echo).running(), gateway.stream() as stream:
            assert json.loads(await stream.recv())["type"] == "session.begin"
        gone.set()


async def test_a_worker_that_never_begins_is_passed_over(gateway: Gateway) -> None:
    async def never(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with (
        FakeWorker(gateway.slots, "a", never).running(),
        FakeWorker(gateway.slots, "b", echo).running(),
        gateway.stream() as stream,
    ):
        assert json.loads(await stream.recv())["type"] == "session.begin"


async def test_audio_that_kills_every_worker_is_told_to_no_more_of_them(redis_url: str) -> None:
    async with gateway_over(redis_url, outage_seconds=30.0) as gateway:
        poisoned, failed = dying_after(1), counted(metrics.TAKEOVERS, "lost", "failed")
        async with FakeWorker(gateway.slots, "a", poisoned).running(), gateway.stream() as stream:
            await stream.send(CHUNK)
            messages, code = await drained(stream)
        assert (messages[-1]["type"], code) == ("session.terminated", 1011)
        assert messages[-1]["reason"] == "worker_lost"
        assert len(poisoned.frames) == MOST_LOSSES + 1
        assert counted(metrics.TAKEOVERS, "lost", "failed") == failed + 1


async def test_a_session_that_gets_on_may_lose_more_workers_than_that(redis_url: str) -> None:
    lost = 0

    async def get_on(connection: ServerConnection, _: Notes) -> None:
        nonlocal lost
        if lost <= MOST_LOSSES:
            lost += 1
            await connection.recv()
            await connection.send(snapshot(lost * 1600))
            await connection.close(1001)

    async with gateway_over(redis_url, outage_seconds=30.0) as gateway:
        async with (
            FakeWorker(gateway.slots, "a", Notes(get_on)).running() as worker,
            gateway.stream() as stream,
        ):
            for _ in range(MOST_LOSSES + 2):
                await stream.send(CHUNK)
            await stream.send('{"type":"end"}')
            messages, code = await drained(stream)
        assert (messages[-1]["type"], code) == ("session.end", 1000)
        assert len(worker.requests) == MOST_LOSSES + 2


# Coming back.


async def broken_off(gateway: Gateway, *says: str) -> str:
    """A session whose client vanished after the worker said this: its id."""

    async def say(connection: ServerConnection, _: Notes) -> None:
        for word in says:
            await connection.send(word)

    async with FakeWorker(gateway.slots, "a", Notes(say)).running() as worker:
        stream = await gateway.stream()
        assert json.loads(await stream.recv())["type"] == "session.begin"
        id = worker.requests[0]["session_id"]
        told = sum("snapshot" not in word for word in says)
        for _ in range(told):
            await stream.recv()
        async with asyncio.timeout(5):
            while len(await gateway.slots.kept(id) or {}) < 2 + len(says):
                await asyncio.sleep(0.01)
        stream.transport.abort()
        await gateway.until_held(0)
    return id


# 002-31, L-08
async def test_a_client_that_comes_back_is_told_what_it_missed_and_where_to_go_on(
    gateway: Gateway,
) -> None:
    id = await broken_off(gateway, final(0), final(1), snapshot(48_000, next_segment=2))
    again = Notes()
    async with FakeWorker(gateway.slots, "a", again).running() as worker:
        query = f"resume_session_id={id}&last_segment_id=seg_0000"
        async with gateway.stream(query) as stream:
            begin = json.loads(await stream.recv())
            assert (begin["resumed_from"], begin["resume_offset_ms"]) == (id, 3000.0)
            assert json.loads(await stream.recv())["segment_id"] == "seg_0001"
            await stream.send(CHUNK)
            await stream.send('{"type":"end"}')
            messages, code = await drained(stream)
    assert ([m["type"] for m in messages], code) == (["session.end"], 1000)
    assert worker.requests[0]["session_id"] == id
    given = json.loads(again.frames[0])
    assert [s["text"] for s in given["segments"]] == ["sentence 0", "sentence 1"]


async def test_a_session_that_had_ended_tells_its_end_again(gateway: Gateway) -> None:
    id = await broken_off(gateway, final(0), '{"type":"session.end"}')
    async with gateway.stream(f"resume_session_id={id}") as stream:
        messages, code = await drained(stream)
    types = [m["type"] for m in messages]
    assert (types, code) == (["session.begin", "transcript.final", "session.end"], 1000)


async def test_what_redis_has_lost_is_written_again_with_the_next_that_is_kept(
    gateway: Gateway,
) -> None:
    async def say(connection: ServerConnection, _: Notes) -> None:
        await connection.send(final(0))
        await connection.recv()
        await connection.send(final(1))

    async with FakeWorker(gateway.slots, "a", Notes(say)).running(), gateway.stream() as stream:
        await stream.recv()
        await stream.recv()
        (session,) = await gateway.slots.sessions()
        id = session["session_id"]
        async with asyncio.timeout(5):
            while "seg_0000" not in (await gateway.slots.kept(id) or {}):
                await asyncio.sleep(0.01)
        await gateway.client.flushall()
        await stream.send(CHUNK)
        async with asyncio.timeout(5):
            while "seg_0001" not in (kept := await gateway.slots.kept(id) or {}):
                await asyncio.sleep(0.01)
        assert {"config", "seg_0000"} <= kept.keys()


async def test_what_a_clock_has_ended_is_written_again_though_redis_was_never_away(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dalston.gateway.server.RENEW_S", 0.1)
    begin = msgspec.json.decode(BEGIN, type=SessionBegin)
    begin = msgspec.structs.replace(begin, config=SessionConfig(ack=True))

    async def say(connection: ServerConnection) -> None:
        await connection.send(serialize(begin))
        await connection.send(final(0))
        await connection.wait_closed()

    async with (
        gateway_over(redis_url) as gateway,
        FakeWorker(gateway.slots, "a", say).running(),
        gateway.stream("ack=true") as stream,
    ):
        await stream.recv()
        await stream.recv()
        (session,) = await gateway.slots.sessions()
        id = session["session_id"]

        async def until_kept() -> None:
            async with asyncio.timeout(5):
                while not {"config", "seg_0000"} <= (await gateway.slots.kept(id) or {}).keys():
                    await asyncio.sleep(0.01)

        await until_kept()
        # As Redis does once its clock is set forward by more than two minutes.
        await gateway.client.delete(f"dalston:realtime:session:{id}:resume")
        await until_kept()
        stream.transport.abort()
        await gateway.until_held(0)
        await gateway.client.delete(f"dalston:realtime:session:{id}:resume")
        await until_kept()


async def test_what_redis_loses_while_a_client_is_away_is_written_again_once_it_is_back(
    gateway: Gateway,
) -> None:
    id = await broken_off(gateway, final(0), snapshot(48_000, next_segment=1), final(1))
    kept = await gateway.slots.kept(id)
    assert kept
    assert {"config", "snapshot", "seg_0000", "seg_0001"} <= kept.keys()
    await gateway.client.flushall()
    assert await gateway.slots.kept(id) is None
    await gateway.client.client_kill_filter(_type="pubsub")  # for the gateway it was away
    async with asyncio.timeout(5):
        while await gateway.slots.kept(id) != kept:
            await asyncio.sleep(0.01)


async def test_what_redis_lost_of_a_session_that_went_on_elsewhere_is_not_brought_back(
    gateway: Gateway,
) -> None:
    id = await broken_off(gateway, final(0), snapshot(48_000, next_segment=1))
    elsewhere = {"config": "{}", "seg_0007": final(7)}
    await gateway.client.flushall()
    assert await gateway.slots.keep(id, 1 << 40, elsewhere, whole=True) == "kept"
    other = await broken_off(gateway)
    await gateway.client.delete(f"dalston:realtime:session:{other}:resume")
    await gateway.client.client_kill_filter(_type="pubsub")
    async with asyncio.timeout(5):
        while await gateway.slots.kept(other) is None:
            await asyncio.sleep(0.01)
    assert set(await gateway.slots.kept(id) or {}) - {"key_id"} == elsewhere.keys()


async def test_a_redis_that_has_just_begun_may_still_be_told_of_the_session(tmp_path: Path) -> None:
    id = f"sess_{'0' * 24}"
    with redis_process(tmp_path) as redis:
        async with gateway_over(redis.url) as gateway:
            async with gateway.stream(f"resume_session_id={id}") as stream:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await stream.recv()
                config = msgspec.json.encode(session_config({})[0]).decode()
                fields = {"config": config, "end": '{"type":"session.end"}'}
                assert await gateway.slots.keep(id, 1, fields, whole=True) == "kept"
                messages, code = await drained(stream)
    assert ([m["type"] for m in messages], code) == (["session.begin", "session.end"], 1000)


async def test_a_redis_that_was_told_all_there_is_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WRITTEN_AGAIN_S", 1)
    with redis_process(tmp_path) as redis:
        async with gateway_over(redis.url) as gateway:
            async with gateway.stream(f"resume_session_id=sess_{'0' * 24}") as stream:
                (error,), code = await asyncio.wait_for(drained(stream), 3)
    assert (error["code"], code) == ("invalid_parameter", 4400)


async def test_of_an_unknown_session_nothing_is_kept(gateway: Gateway) -> None:
    async with gateway.stream(f"resume_session_id=sess_{'0' * 24}") as stream:
        (error,), code = await drained(stream)
    assert (error["code"], code) == ("invalid_parameter", 4400)
    assert "nothing is kept" in error["message"]


@pytest.mark.parametrize(
    "query",
    [
        "resume_session_id=x:resume",
        "resume_session_id=",
        f"resume_session_id=sess_{'0' * 24}&last_segment_id=7",
    ],
)
async def test_what_is_no_session_and_no_segment_is_refused(gateway: Gateway, query: str) -> None:
    async with gateway.stream(query) as stream:
        (error,), code = await drained(stream)
    assert (error["code"], code) == ("invalid_parameter", 4400)


async def test_a_session_is_gone_on_with_by_its_own_key_only(redis_url: str) -> None:
    async with gateway_over(redis_url, api_keys="redis") as gateway:
        texts = list[str]()
        for name in ("one", "two"):
            text, key = make(name, 0)
            await RedisKeys(gateway.client).add(key)
            texts.append(text)
        async with FakeWorker(gateway.slots, "a", Notes()).running():
            async with gateway.stream(f"api_key={texts[0]}") as stream:
                await stream.recv()
                (session,) = await gateway.slots.sessions()
            await gateway.until_held(0)
            query = f"resume_session_id={session['session_id']}&api_key="
            async with gateway.stream(query + texts[1]) as stream:
                (error,), code = await drained(stream)
            assert (error["code"], code) == ("forbidden", 4003)
            async with gateway.stream(query + texts[0]) as stream:
                assert json.loads(await stream.recv())["type"] == "session.begin"


async def test_a_key_has_as_many_sessions_as_it_may(redis_url: str) -> None:
    async with gateway_over(redis_url, api_keys="redis") as gateway:
        text, key = make("one", 1)
        await RedisKeys(gateway.client).add(key)
        async with FakeWorker(gateway.slots, "a", Notes()).running():
            async with gateway.stream(f"api_key={text}") as stream:
                await stream.recv()
                async with gateway.stream(f"api_key={text}") as second:
                    (error,), code = await drained(second)
                assert (error["code"], code) == ("rate_limit", 4429)
                assert "this key has as many sessions as it may" in error["message"]
            await gateway.until_held(0)
            async with gateway.stream(f"api_key={text}") as stream:
                assert json.loads(await stream.recv())["type"] == "session.begin"


async def test_an_address_has_as_many_sessions_as_it_may(redis_url: str) -> None:
    async with gateway_over(redis_url, sessions_per_address=1) as gateway:
        async with FakeWorker(gateway.slots, "a", Notes()).running(), gateway.stream() as stream:
            await stream.recv()
            async with gateway.stream() as second:
                (error,), code = await drained(second)
            assert (error["code"], code) == ("rate_limit", 4429)
            assert "this address has as many sessions as it may" in error["message"]


async def test_behind_a_proxy_of_this_machine_each_address_counts_by_itself(redis_url: str) -> None:
    proxies = ["127.0.0.1"]
    async with (
        gateway_over(redis_url, sessions_per_address=1, trusted_proxies=proxies) as gateway,
        AsyncExitStack() as calls,
    ):
        await calls.enter_async_context(FakeWorker(gateway.slots, "a", Notes()).running())
        told: list[Any] = []
        for address in ("10.0.0.1", "10.0.0.2", "10.0.0.2"):
            forwarded = {"X-Forwarded-For": address}
            call = connect(f"ws://{gateway.url}{STREAM}", additional_headers=forwarded)
            told.append(json.loads(await (await calls.enter_async_context(call)).recv()))
        assert [m["type"] for m in told] == ["session.begin", "session.begin", "error"]
        assert told[-1]["code"] == "rate_limit"


async def test_the_older_connection_of_a_session_is_let_go(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", Notes()).running(), gateway.stream() as old:
        await old.recv()
        (session,) = await gateway.slots.sessions()
        async with asyncio.timeout(5):
            while not await gateway.slots.kept(session["session_id"]):
                await asyncio.sleep(0.01)
        async with gateway.stream(f"resume_session_id={session['session_id']}") as new:
            assert json.loads(await new.recv())["type"] == "session.begin"
            messages, code = await drained(old)
            assert (messages[-1]["reason"], code) == ("taken_over", 1001)
            assert messages[-1]["recoverable"] is False
            assert await gateway.held() == 1


async def test_a_session_that_its_worker_gave_to_another_is_not_taken_back(
    gateway: Gateway,
) -> None:
    message = SessionTerminated(session_id="s", reason="taken_over", recoverable=False)
    gone = dying_after(1, serialize(message), code=1001)
    async with FakeWorker(gateway.slots, "a", gone).running() as a, gateway.stream() as stream:
        await stream.send(CHUNK)
        messages, code = await drained(stream)
    assert [m["type"] for m in messages] == ["session.begin", "session.terminated"]
    assert (code, len(a.requests)) == (1001, 1)


async def test_nothing_is_told_behind_the_end(gateway: Gateway) -> None:
    taken = asyncio.Event()

    async def end(connection: ServerConnection, _: Notes) -> None:
        await taken.wait()
        await connection.send('{"type":"session.end"}')
        await asyncio.sleep(1)  # slow to close
        await connection.close(1000)

    async with (
        FakeWorker(gateway.slots, "a", Notes(end)).running() as a,
        gateway.stream() as stream,
    ):
        await stream.recv()
        await gateway.slots.acquire(a.requests[0]["session_id"], "fast", {})
        taken.set()
        messages, code = await drained(stream)
    assert ([m["type"] for m in messages], code) == (["session.end"], 1000)


async def test_a_drain_tells_clients_that_resume_to_go_on_elsewhere(gateway: Gateway) -> None:
    async def with_ack(connection: ServerConnection) -> None:
        await connection.send(BEGIN.replace('"ack":false', '"ack":true'))
        await connection.wait_closed()

    async with FakeWorker(gateway.slots, "a", with_ack).running(), gateway.stream() as stream:
        await stream.recv()
        gateway.stop.set()
        (message,), code = await drained(stream)
    assert (message["reason"], message["recoverable"], code) == ("server_drain", True, 1001)
    assert "resume_session_id" in message["recovery_hint"]


# In line.


@asynccontextmanager
async def one_in_line(
    gateway: Gateway,
) -> AsyncGenerator[tuple[ClientConnection, ClientConnection]]:
    """Who has the only slot, and who waits for it."""
    async with gateway.stream() as first:
        await first.recv()
        async with gateway.stream("overflow=queue") as second:
            yield first, second


# 002-16, C-24
async def test_a_caller_in_line_is_told_its_position_and_gets_the_slot(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", Notes(), capacity=1).running():
        async with one_in_line(gateway) as (first, second):
            assert json.loads(await second.recv())["position"] == 1
            await first.send('{"type":"end"}')
            assert json.loads(await second.recv())["type"] == "session.begin"


# 002-16
async def test_a_caller_for_whom_no_slot_comes_free_is_sent_away_in_the_end(
    redis_url: str,
) -> None:
    async with gateway_over(redis_url, queue_seconds=0.5) as gateway:
        async with FakeWorker(gateway.slots, "a", Notes(), capacity=1).running():
            async with one_in_line(gateway) as (_, second):
                (queued, error), code = await drained(second)
            assert (queued["position"], error["code"], code) == (1, "no_capacity", 1013)
            assert 0 < queued["timeout_seconds"] <= 0.5
            assert (error["recoverable"], error["retry_after"]) == (True, 5)


async def test_what_a_caller_in_line_says_is_not_lost(gateway: Gateway) -> None:
    notes = Notes()
    async with FakeWorker(gateway.slots, "a", notes, capacity=1).running():
        async with one_in_line(gateway) as (first, second):
            await second.recv()
            await second.send(CHUNK)
            await asyncio.sleep(0.1)
            assert notes.audio == 0
            await first.send('{"type":"end"}')
            await until(lambda: notes.audio == len(CHUNK))


async def test_a_caller_who_vanishes_leaves_the_line(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", Notes(), capacity=1).running():
        async with gateway.stream() as first:
            await first.recv()
            async with gateway.stream("overflow=queue") as second:
                await second.recv()
                assert await gateway.slots.waiting() == 1
            async with asyncio.timeout(2):
                while await gateway.slots.waiting():
                    await asyncio.sleep(0.01)


async def test_a_drain_sends_away_who_is_in_line(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", Notes(), capacity=1).running():
        async with one_in_line(gateway) as (_, second):
            await second.recv()
            gateway.stop.set()
            (error,), code = await drained(second)
            assert (error["code"], code) == ("no_capacity", 1013)
            assert "restarted" in error["message"]


async def test_an_unknown_way_out_is_refused(gateway: Gateway) -> None:
    async with gateway.stream("overflow=magic") as stream:
        (error,), code = await drained(stream)
    assert (error["code"], code) == ("invalid_parameter", 4400)
    assert "reject, queue, degrade" in error["message"]


async def test_a_call_that_is_over_leaves_nothing_for_pythons_collector(gateway: Gateway) -> None:
    def left() -> list[object]:
        return [it for it in gc.get_objects() if type(it) in (Call, DirectProtocol, Relay)]

    async with FakeWorker(gateway.slots, "a", echo).running():
        gc.collect()
        gc.disable()
        try:
            async with gateway.stream() as stream:
                await stream.recv()
                assert len(left()) == 3
                await stream.send(CHUNK)
                await stream.send('{"type":"end"}')
                await drained(stream)
            await until(lambda: not left())
        finally:
            gc.enable()


# Too fast, too slow.


# L-04
async def test_a_client_that_pushes_is_slowed_down_and_in_the_end_refused(redis_url: str) -> None:
    limits: dict[str, Any] = {
        "audio_rate": 2.0,
        "audio_burst_seconds": 1.0,
        "audio_held_seconds": 0.5,
    }
    async with gateway_over(redis_url, **limits) as gateway:
        async with FakeWorker(gateway.slots, "a", Notes()).running(), gateway.stream() as stream:

            async def push() -> None:
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        await stream.send(CHUNK)

            pushing = asyncio.create_task(push())
            messages, code = await drained(stream)
            await pushing
        assert ([m["type"] for m in messages], code) == (["session.begin", "error"], 4029)
        error = messages[-1]
        assert (error["code"], error["recoverable"]) == ("rate_limit", False)
        assert "2 times real time, for 0.5 s beyond 1 s" in error["message"]
        assert stream.response
        assert error["request_id"] == stream.response.headers["X-Request-ID"]
        await gateway.until_held(0)


async def test_a_flood_of_messages_is_slowed_down_and_in_the_end_refused(redis_url: str) -> None:
    limits: dict[str, Any] = {
        "message_rate": 20.0,
        "message_burst": 5.0,
        "message_held_seconds": 0.5,
    }
    async with gateway_over(redis_url, **limits) as gateway:
        notes = Notes()
        async with FakeWorker(gateway.slots, "a", notes).running(), gateway.stream() as stream:
            for _ in range(50):
                await stream.send('{"type":"flush"}')
            messages, code = await drained(stream)
        assert (messages[-1]["code"], code) == ("rate_limit", 4029)
        assert "20 a second, for 0.5 s beyond 5" in messages[-1]["message"]
        await gateway.until_held(0)


async def test_who_pushes_while_in_line_is_refused_too(redis_url: str) -> None:
    limits: dict[str, Any] = {"audio_burst_seconds": 1.0, "audio_held_seconds": 0.2}
    async with gateway_over(redis_url, **limits) as gateway:
        async with FakeWorker(gateway.slots, "a", Notes(), capacity=1).running():
            async with one_in_line(gateway) as (_, second):
                for _ in range(30):
                    await second.send(CHUNK)
                (_, error), code = await drained(second)
            assert (error["code"], code) == ("rate_limit", 4029)
        async with asyncio.timeout(5):
            while await gateway.slots.waiting():
                await asyncio.sleep(0.01)


TOO_LONG = bytes(2 << 20)


async def test_a_frame_that_is_too_long_ends_a_session_only_after_what_was_said_before(
    redis_url: str,
) -> None:
    async def slow(connection: ServerConnection) -> None:
        await asyncio.sleep(0.3)  # the frames are there before the session has begun
        await echo(connection)

    async with gateway_over(redis_url) as gateway:
        async with FakeWorker(gateway.slots, "a", slow).running(), gateway.stream() as stream:
            await stream.send(CHUNK)
            await stream.send(TOO_LONG)
            (begin, *messages), code = await drained(stream)
        assert begin["type"] == "session.begin"
        assert {"type": "got", "bytes": len(CHUNK)} in messages
        (error,) = (message for message in messages if message["type"] == "error")
        assert (error["code"], error["recoverable"]) == ("invalid_message", False)
        assert "a frame of 2097152 bytes" in error["message"]
        assert (messages[-1]["type"], code) == ("session.end", 1009)
        await gateway.until_held(0)


async def test_who_sends_one_while_in_line_is_heard_all_the_same(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo, capacity=1).running():
        async with one_in_line(gateway) as (first, second):
            await second.recv()  # its position
            await second.send(CHUNK)
            await second.send(TOO_LONG)
            await first.send('{"type":"end"}')
            messages, code = await drained(second)
    assert messages[0]["type"] == "session.begin"
    assert {"type": "got", "bytes": len(CHUNK)} in messages
    assert (messages[-1]["type"], code) == ("session.end", 1009)


async def test_a_drain_sends_away_who_sent_one_while_in_line(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo, capacity=1).running():
        async with one_in_line(gateway) as (_, second):
            await second.recv()
            await second.send(TOO_LONG)
            gateway.stop.set()
            (error,), code = await drained(second)
    assert (error["code"], code) == ("no_capacity", 1013)


async def test_a_burst_and_real_time_behind_it_are_let_through(redis_url: str) -> None:
    limits: dict[str, Any] = {"audio_burst_seconds": 2.0, "audio_held_seconds": 0.1}
    async with gateway_over(redis_url, **limits) as gateway:
        notes = Notes()
        async with FakeWorker(gateway.slots, "a", notes).running(), gateway.stream() as stream:
            for number in range(30):
                await stream.send(CHUNK)
                await asyncio.sleep(0 if number < 15 else 0.1)
            await stream.send('{"type":"end"}')
            _, code = await drained(stream)
        assert (notes.audio, code) == (30 * len(CHUNK), 1000)


async def test_a_file_that_is_longer_than_a_burst_is_only_read_slower(redis_url: str) -> None:
    async with gateway_over(redis_url, audio_rate=4.0, audio_burst_seconds=1.0) as gateway:
        notes = Notes()
        async with FakeWorker(gateway.slots, "a", notes).running(), gateway.stream() as stream:
            await stream.recv()
            for _ in range(30):
                await stream.send(CHUNK)
            await stream.send('{"type":"end"}')
            _, code = await drained(stream)
        assert (notes.audio, code) == (30 * len(CHUNK), 1000)


async def test_while_no_worker_reads_a_client_that_pushes_has_its_pings_answered_and_loses_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "LATE_S", 0.0)
    monkeypatch.setattr(intake, "SLOWED_S", 0.02)
    reads = asyncio.Event()
    size = 12 << 20  # more than the sockets between client and worker hold; 33 s of audio
    query = "sample_rate=48000&channels=2&encoding=pcm_f32le"
    limits: dict[str, Any] = {"caller_bytes": 1 << 28, "worker_silent_seconds": 60.0}

    async def later(connection: ServerConnection, _: Notes) -> None:
        connection.transport.pause_reading()
        await reads.wait()
        connection.transport.resume_reading()

    async with gateway_over(redis_url, **limits) as gateway:
        notes = Notes(later)
        async with (
            FakeWorker(gateway.slots, "a", notes).running(),
            gateway.stream(query) as stream,
        ):
            await stream.recv()

            async def push() -> None:
                for _ in range(size >> 16):
                    await stream.send(bytes(1 << 16))
                await stream.send('{"type":"end"}')

            pushing = asyncio.create_task(push())
            for _ in range(3):
                await asyncio.wait_for(await stream.ping(), 20)
            assert notes.audio < size / 2
            reads.set()
            await pushing
            _, code = await drained(stream)
        assert (notes.audio, code) == (size, 1000)


async def test_a_session_without_audio_ends_in_order_though_its_client_pings(
    redis_url: str,
) -> None:
    async with gateway_over(redis_url, no_audio_seconds=0.2, worker_silent_seconds=0.5) as gateway:
        async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
            await stream.send(CHUNK)

            async def ping() -> None:
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        await stream.send('{"type":"ping"}')
                        await asyncio.sleep(0.15)

            pinging = asyncio.create_task(ping())
            messages, code = await drained(stream)
            await pinging
        error, end = messages[-2:]
        assert (error["code"], error["recoverable"]) == ("session_timeout", False)
        assert (end["type"], end["said"]["reason"], code) == ("session.end", "idle_timeout", 4008)
        await gateway.until_held(0)


async def test_who_is_in_line_is_read_for_seconds_and_for_the_rest_once_there_is_a_slot(
    gateway: Gateway,
) -> None:
    async with FakeWorker(gateway.slots, "a", echo, capacity=1).running():
        async with one_in_line(gateway) as (first, second):
            await second.recv()  # its position

            async def push() -> None:
                for _ in range(20):
                    await second.send(bytes(32_000))
                await second.send('{"type":"end"}')

            pushing = asyncio.create_task(push())

            async def held() -> float:
                page = await asyncio.to_thread(metrics_page, gateway)
                (line,) = (x for x in page.splitlines() if x.startswith(HELD))
                return float(line.split()[1])

            async with asyncio.timeout(10):
                while await held() < 5 * 32_000:
                    await asyncio.sleep(0.05)
            assert await held() < 10 * 32_000
            await first.send('{"type":"end"}')
            await pushing
            messages, code = await drained(second)
    got = sum(m["bytes"] for m in messages if m["type"] == "got")
    assert (got, messages[-1]["type"], code) == (20 * 32_000, "session.end", 1000)


HELD = "dalston_realtime_held_bytes"


def metrics_page(gateway: Gateway) -> str:
    request = urllib.request.Request(
        f"http://{gateway.url}/metrics", headers={"Authorization": "Bearer secret"}
    )
    with urllib.request.urlopen(request, timeout=5) as response:
        return response.read().decode()


async def test_a_caller_asks_only_for_what_is_allowed_when_no_slot_is_free(redis_url: str) -> None:
    async with gateway_over(redis_url, overflow_allowed="reject,degrade") as gateway:
        async with gateway.stream("overflow=queue") as stream:
            (error,), code = await drained(stream)
        assert (error["code"], code) == ("invalid_parameter", 4400)
        assert "it may be reject, degrade" in error["message"]
        async with gateway.stream("overflow=degrade") as stream:
            (error,), _ = await drained(stream)
        assert error["code"] == "no_capacity"
    async with gateway_over(redis_url, overflow="queue", overflow_allowed="reject") as gateway:
        async with gateway.stream("overflow=queue") as stream:  # as it is set anyway
            (error,), _ = await drained(stream)
        assert error["code"] == "no_capacity"


async def test_a_client_that_never_reads_is_let_go(redis_url: str) -> None:
    async def talk(connection: ServerConnection, _: Notes) -> None:
        while True:
            await connection.send('{"type":"filler","text":"%s"}' % ("x" * 10_000))

    async with gateway_over(redis_url, reader_seconds=0.5) as gateway:
        async with FakeWorker(gateway.slots, "a", Notes(talk)).running():
            host, port = gateway.url.split(":")
            with socket.create_connection((host, int(port))) as deaf:
                deaf.sendall(
                    f"GET {STREAM} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
                )
                await gateway.until_held(1)
                await gateway.until_held(0)


LONG = '{"type":"filler","text":"%s"}' % ("x" * 100_000)
MANY = 400  # of these are more than what all the sockets between worker and client hold


async def test_a_client_that_reads_again_is_told_why_it_was_let_go(redis_url: str) -> None:
    async def talk(connection: ServerConnection, _: Notes) -> None:
        while True:
            await connection.send(LONG)

    async with gateway_over(redis_url, reader_seconds=0.5) as gateway:
        let_go = counted(metrics.ERRORS, "slow_reader")
        async with (
            FakeWorker(gateway.slots, "a", Notes(talk)).running(),
            gateway.stream() as stream,
        ):
            stream.transport.pause_reading()
            await until(lambda: counted(metrics.ERRORS, "slow_reader") > let_go)
            stream.transport.resume_reading()
            messages, code = await drained(stream)
        assert (messages[-1]["type"], messages[-1]["code"], code) == ("error", "slow_reader", 4011)
        await gateway.until_held(0)


async def test_a_client_that_reads_late_slows_its_worker_down_and_reads_everything(
    gateway: Gateway,
) -> None:
    sent = 0

    async def talk(connection: ServerConnection, _: Notes) -> None:
        nonlocal sent
        while sent < MANY:
            await connection.send(LONG)
            sent += 1

    async with FakeWorker(gateway.slots, "a", Notes(talk)).running(), gateway.stream() as stream:
        await stream.recv()
        stream.transport.pause_reading()
        stopped_at = -1
        while stopped_at < sent or not sent:
            stopped_at = sent
            await asyncio.sleep(0.5)
        assert stopped_at < MANY
        stream.transport.resume_reading()
        await stream.send('{"type":"end"}')
        messages, code = await drained(stream)
    assert [m["type"] for m in messages].count("filler") == MANY
    assert (messages[-1]["type"], code) == ("session.end", 1000)


# L-09
def test_the_defaults_are_the_documented_ones() -> None:
    settings = GatewaySettings(REDIS_URL="redis://here")  # pyright: ignore[reportCallIssue]
    assert (settings.outage_seconds, settings.queue_seconds) == (30, 30)
    assert (settings.reader_seconds, settings.sessions_per_address) == (10, 0)
