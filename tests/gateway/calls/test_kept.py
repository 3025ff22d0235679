"""
What Redis keeps of what was said, and for how long: while a client may come back, or not at all.
"""

import asyncio
import json
from typing import Any

import pytest
from support.fronted import FakeWorker, Gateway, drained, gateway_over
from support.registered import BEGIN, PREFIX, final, snapshot
from support.waiting import until
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection

from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.capacity import server
from dalston.orchestrator.capacity.slots import Slots
from dalston.orchestrator.protocol.messages import Error, serialize

WORDS = b"sentence 0"


async def speak(connection: ServerConnection) -> None:
    """Says something, and ends when it is told to."""
    begin = BEGIN.replace('"ack":false', '"ack":true')
    await connection.send(begin)
    await connection.send(final(0))
    await connection.send(snapshot(16_000, next_segment=1))
    async for frame in connection:
        if isinstance(frame, str) and json.loads(frame)["type"] == "end":
            await connection.send('{"type":"session.end","transcript":"sentence 0"}')
            return await connection.close(1000)


async def said(client: Any) -> list[bytes]:
    """The keys that hold a word of what was said."""
    found = list[bytes]()
    async for key in client.scan_iter("*"):
        held = await client.hgetall(key) if await client.type(key) == b"hash" else {}
        if any(WORDS in value for value in held.values()):
            found.append(key)
    return found


async def until_kept(gateway: Gateway, kept: bool) -> None:
    async with asyncio.timeout(10):
        while bool(await said(gateway.client)) != kept:
            await asyncio.sleep(0.01)


async def test_what_was_said_is_forgotten_when_the_client_has_read_the_end(
    gateway: Gateway,
) -> None:
    async with FakeWorker(gateway.slots, "a", speak).running():
        async with gateway.stream() as stream:
            await stream.recv()
            await until_kept(gateway, True)
            assert [key.decode().endswith(":resume") for key in await said(gateway.client)] == [
                True
            ]
            (session,) = await gateway.slots.sessions()
            await stream.send('{"type":"end"}')
            messages, code = await drained(stream)
            assert (messages[-1]["type"], code) == ("session.end", 1000)
        await until_kept(gateway, False)
        # What it was is still known: without a word.
        assert await gateway.client.hget(f"{PREFIX}session:{session['session_id']}", "status")


async def test_what_was_said_is_kept_for_a_client_that_vanished_before_the_end(
    gateway: Gateway,
) -> None:
    async with FakeWorker(gateway.slots, "a", speak).running() as worker:
        stream = await gateway.stream()
        await stream.recv()
        await until_kept(gateway, True)
        stream.transport.pause_reading()
        await stream.send('{"type":"end"}')
        await gateway.until_held(0)  # the end was told
        stream.transport.abort()
        id = worker.requests[0]["session_id"]
        async with asyncio.timeout(5):
            while "end" not in (await gateway.slots.kept(id) or {}):
                await asyncio.sleep(0.01)
        # It comes back, and reads it to the end: then there is nothing to keep.
        async with gateway.stream(f"resume_session_id={id}") as again:
            messages, code = await drained(again)
        assert (messages[-1]["type"], code) == ("session.end", 1000)
        await until_kept(gateway, False)


async def test_what_was_said_is_kept_for_a_client_that_closed_before_the_end_was_told(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, closed, release = asyncio.Event(), asyncio.Event(), Slots.release

    async def slow(self: Slots, *args: Any, **about: Any) -> bool:
        ending.set()
        await closed.wait()
        return await release(self, *args, **about)

    monkeypatch.setattr(Slots, "release", slow)
    async with FakeWorker(gateway.slots, "a", speak).running() as worker:
        async with gateway.stream() as stream:
            await stream.recv()
            await stream.send('{"type":"end"}')
            await ending.wait()
        closed.set()
        await gateway.until_held(0)
        id = worker.requests[0]["session_id"]
        async with asyncio.timeout(5):
            while "end" not in (await gateway.slots.kept(id) or {}):
                await asyncio.sleep(0.01)
    assert await said(gateway.client)


async def test_with_resume_off_no_word_is_ever_in_redis(redis_url: str) -> None:
    async with gateway_over(redis_url, resume=False) as gateway:
        commands = gateway.client.monitor()
        async with FakeWorker(gateway.slots, "a", speak).running() as worker, commands as monitor:
            seen = asyncio.create_task(_all_commands(monitor))
            async with gateway.stream() as stream:
                assert json.loads(await stream.recv())["type"] == "session.begin"
                assert json.loads(await stream.recv())["type"] == "transcript.final"
                id = worker.requests[0]["session_id"]
                stream.transport.abort()
            await gateway.until_held(0)
            async with gateway.stream(f"resume_session_id={id}") as again:
                (error,), code = await drained(again)
            assert (error["code"], code) == ("invalid_parameter", 4400)
            assert "DALSTON_RESUME" in error["message"]
            await gateway.client.publish("over", "over")
            assert not any("sentence 0" in command for command in await asyncio.wait_for(seen, 5))


async def _all_commands(monitor: Any) -> list[str]:
    commands = list[str]()
    while True:
        command = (await monitor.next_command())["command"]
        commands.append(command)
        if command.startswith("PUBLISH over"):
            return commands


async def test_with_resume_off_another_worker_goes_on_all_the_same(redis_url: str) -> None:
    given = list[str]()

    async def die(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await connection.send(final(0))
        await connection.send(snapshot(16_000, next_segment=1))
        await connection.recv()
        connection.transport.abort()

    async def go_on(connection: ServerConnection) -> None:
        given.append(str(await connection.recv()))
        await connection.send(BEGIN)
        await connection.send('{"type":"session.end"}')
        await connection.close(1000)

    async with gateway_over(redis_url, resume=False) as gateway:
        async with FakeWorker(gateway.slots, "a", die).running(), gateway.stream() as stream:
            await stream.recv()
            async with FakeWorker(gateway.slots, "b", go_on).running():
                await stream.send(bytes(3200))
                messages, code = await drained(stream)
    assert (messages[-1]["type"], code) == ("session.end", 1000)
    assert "sentence 0" in given[0]


async def test_with_resume_off_a_drain_ends_sessions_and_promises_nothing(redis_url: str) -> None:
    async with gateway_over(redis_url, resume=False, drain_seconds=0.1) as gateway:
        async with FakeWorker(gateway.slots, "a", speak).running(), gateway.stream() as stream:
            await stream.recv()
            gateway.stop.set()
            messages, code = await drained(stream)
    assert (messages[-1]["type"], code) == ("session.end", 1000)


async def test_how_long_is_a_setting(redis_url: str) -> None:
    async with gateway_over(redis_url, resume_seconds=15) as gateway:
        async with FakeWorker(gateway.slots, "a", speak).running(), gateway.stream() as stream:
            await stream.recv()
            await until_kept(gateway, True)
            (key,) = await said(gateway.client)
            assert 13 <= await gateway.client.ttl(key) <= 15
    settings = GatewaySettings(REDIS_URL="redis://here")  # pyright: ignore[reportCallIssue]
    assert (settings.resume, settings.resume_seconds) == (True, 120)
    with pytest.raises(ValueError, match="DALSTON_RESUME_SECONDS"):
        GatewaySettings(REDIS_URL="redis://here", DALSTON_RESUME_SECONDS=5)  # pyright: ignore[reportCallIssue]


async def test_a_record_that_lacks_what_the_client_knows_is_waited_for_after_a_failover(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WRITTEN_AGAIN_S", 1 << 30)  # Redis has just begun
    id = f"sess_{'0' * 24}"
    begin = json.dumps({"ack": True})
    old = {"seg_0000": final(0), "config": begin}
    assert await gateway.slots.keep(id, 1, old, whole=True) == "kept"
    query = f"resume_session_id={id}&last_segment_id=seg_0001"
    async with gateway.stream(query) as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await stream.recv()
        new = {"seg_0001": final(1), "seg_0002": final(2), "end": '{"type":"session.end"}'}
        assert await gateway.slots.keep(id, 1, new) == "kept"
        messages, _ = await drained(stream)
    told = [message.get("segment_id") for message in messages]
    assert told == [None, "seg_0002", None]


# 001-36
async def test_a_session_that_a_fault_has_ended_is_recorded_as_an_error(gateway: Gateway) -> None:
    async def fail(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await connection.recv()
        error = Error(code="internal_error", message="something went wrong", recoverable=False)
        await connection.send(serialize(error))
        await connection.close(1011)

    async with FakeWorker(gateway.slots, "a", fail).running() as worker:
        async with gateway.stream() as stream:
            await stream.send(bytes(3200))
            messages, code = await drained(stream)
        assert (messages[-1]["code"], code) == ("internal_error", 1011)
        await gateway.until_held(0)
        key = f"{PREFIX}session:{worker.requests[0]['session_id']}"
        assert await gateway.client.hget(key, "status") == b"error"


# 002-28
async def test_the_record_says_how_a_session_was_served(gateway: Gateway) -> None:
    async def fast(connection: ServerConnection) -> None:
        await connection.send(BEGIN)  # asked for accurate, served by fast
        stated = json.loads(snapshot(16_000)) | {"detected_language": "de"}
        await connection.send(json.dumps(stated, separators=(",", ":")))
        await connection.send('{"type":"session.end"}')
        await connection.close(1000)

    async with FakeWorker(gateway.slots, "a", fast).running() as worker:
        async with gateway.stream("model=accurate") as stream:
            await drained(stream)
        await gateway.until_held(0)
        record = await gateway.client.hgetall(f"{PREFIX}session:{worker.requests[0]['session_id']}")
    assert (record[b"model"], record[b"language"]) == (b"fast", b"de")


# 002-17, L-05
async def test_a_degraded_session_is_told_so_and_served_by_the_smaller_variant(
    gateway: Gateway,
) -> None:
    async with FakeWorker(gateway.slots, "a", speak, capacity=1, fast_share=0.5).running() as a:
        async with gateway.stream("model=fast") as first:
            await first.recv()
            async with gateway.stream("model=accurate") as second:
                (error,), code = await drained(second)
            assert (error["code"], code) == ("no_capacity", 1013)
            async with gateway.stream("model=accurate&overflow=degrade") as third:
                begin = json.loads(await third.recv())
                await until(lambda: len(a.requests) == 2)
    assert [notice["code"] for notice in begin["warnings"]] == ["model_fallback"]
    assert "no slot is free for 'accurate'" in begin["warnings"][0]["message"]
    assert json.loads(a.requests[1]["config"])["model"] == "fast"


async def test_nothing_is_kept_of_a_session_that_its_client_cannot_go_on_with(
    gateway: Gateway,
) -> None:
    async with FakeWorker(gateway.slots, "a", speak).running():
        query = "model=nova-3&encoding=linear16"
        async with connect(f"ws://{gateway.url}/v1/listen?{query}") as stream:
            assert "sentence 0" in str(await stream.recv())
        await gateway.until_held(0)  # the last thing that is done
        assert await said(gateway.client) == []
