"""
A real gateway over a real Redis, in front of workers that do what the test wants.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.counted import counted
from support.fronted import STREAM, FakeWorker, Gateway, drained, echo, gateway_over
from support.redis_process import redis_process
from support.registered import BEGIN
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection

from dalston.gateway import metrics, server
from dalston.gateway.app import capacity
from dalston.gateway.server import serve
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.capacity.redis_client import UnsupportedRedis
from dalston.orchestrator.capacity.slots import Slots, redis_client
from dalston.orchestrator.capacity.workers import WorkerRecord
from dalston.triton.process import free_port


# 000-16, 000-21, 003-07
async def test_frames_go_both_ways_and_the_close_code_comes_back(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
        await stream.send(bytes(3200))
        await stream.send('{"type":"end"}')
        messages, code = await drained(stream)
    assert [m["type"] for m in messages] == ["session.begin", "got", "session.end"]
    assert messages[1]["bytes"] == 3200
    assert code == 1000


async def test_snapshots_are_between_worker_and_gateway(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
        await stream.send('{"type":"end"}')
        messages, _ = await drained(stream)
    assert "session.snapshot" not in [m["type"] for m in messages]


# 001-34
async def test_the_worker_is_told_the_settings_and_who_it_is_for(gateway: Gateway) -> None:
    worker = FakeWorker(gateway.slots, "a", echo)
    async with worker.running(), gateway.stream("language=de&word_timestamps=true") as stream:
        await stream.recv()
    (request,) = worker.requests
    config = json.loads(request["config"])
    assert (config["language"], config["word_timestamps"]) == ("de", True)
    assert request["session_id"].startswith("sess_")
    assert request["epoch"] == "1"


# L-12
async def test_the_record_of_the_session_is_in_redis(gateway: Gateway) -> None:
    async with (
        FakeWorker(gateway.slots, "a", echo).running(),
        gateway.stream("language=de") as stream,
    ):
        await stream.recv()
        (record,) = await gateway.slots.sessions()
    assert (record["worker_id"], record["status"], record["language"]) == ("a", "active", "de")
    assert (record["model"], record["client_ip"]) == ("fast", "127.0.0.1")


# 000-21, 002-03, C-14
async def test_the_slot_is_held_while_it_lasts_and_back_at_once(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running():
        async with gateway.stream() as stream:
            await stream.recv()
            assert await gateway.held() == 1
        await gateway.until_held(0)


async def test_a_caller_that_vanishes_gives_its_slot_back(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running():
        stream = await gateway.stream()
        await stream.recv()
        stream.transport.abort()
        await gateway.until_held(0)


# 000-45, 002-15, L-04, C-28
async def test_without_workers_the_caller_is_told_when_to_come_back(gateway: Gateway) -> None:
    async with gateway.stream() as stream:
        (error,), code = await drained(stream)
    assert error.pop("request_id").startswith("req_")
    assert error == {
        "type": "error",
        "code": "no_capacity",
        "message": "No realtime workers available. Try again later.",
        "recoverable": True,
        "retry_after": 5,
    }
    assert code == 1013


# 000-21, C-24
async def test_one_over_capacity_is_refused_and_takes_nothing(gateway: Gateway) -> None:
    async with (
        FakeWorker(gateway.slots, "a", echo, capacity=1).running(),
        gateway.stream() as first,
    ):
        await first.recv()
        async with gateway.stream() as second:
            (error,), code = await drained(second)
        assert (error["code"], code) == ("no_capacity", 1013)
        assert await gateway.held() == 1


@pytest.mark.parametrize(
    ("query", "code", "names"),
    [
        ("sample_rate=7", "invalid_parameter", "sample_rate"),
        ("encoding=mp3", "invalid_parameter", "encoding"),
        ("model=huge", "invalid_parameter", "model"),
        ("language=klingon", "language_unsupported", "language"),
    ],
)
async def test_a_bad_parameter_is_named_and_takes_no_slot(
    gateway: Gateway, query: str, code: str, names: str
) -> None:
    worker = FakeWorker(gateway.slots, "a", echo)
    async with worker.running(), gateway.stream(query) as stream:
        (error,), close_code = await drained(stream)
        assert (error["code"], error["recoverable"], close_code) == (code, False, 4400)
        assert names in error["message"]
    assert worker.requests == []
    assert await gateway.held() == 0


async def test_a_wrong_path_is_explained(gateway: Gateway) -> None:
    async with connect(f"ws://{gateway.url}/v1/listen/here") as stream:
        (error,), code = await drained(stream)
    assert code == 1008
    assert STREAM in error["message"]


async def test_a_worker_that_cannot_be_reached_is_passed_over(gateway: Gateway) -> None:
    dead = FakeWorker(gateway.slots, "a", echo)
    await dead.register(f"ws://127.0.0.1:{free_port()}")
    alive = FakeWorker(gateway.slots, "b", echo)
    async with alive.running(), gateway.stream() as stream:
        assert json.loads(await stream.recv())["type"] == "session.begin"
        assert [w.active_sessions for w in await gateway.slots.workers()] == [0, 1]


async def test_when_no_worker_can_be_reached_the_caller_is_told(gateway: Gateway) -> None:
    for id in "abc":
        await FakeWorker(gateway.slots, id, echo).register(f"ws://127.0.0.1:{free_port()}")
    async with gateway.stream() as stream:
        (error,), code = await drained(stream)
    assert (error["code"], code) == ("no_capacity", 1013)
    assert await gateway.held() == 0


async def test_without_another_worker_in_time_the_session_ends_with_a_hint(
    gateway: Gateway,
) -> None:
    async def die(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await connection.recv()
        connection.transport.abort()

    failed = counted(metrics.TAKEOVERS, "lost", "failed")
    async with FakeWorker(gateway.slots, "a", die).running(), gateway.stream() as stream:
        await stream.send(bytes(3200))
        messages, code = await drained(stream)
    assert counted(metrics.TAKEOVERS, "lost", "failed") == failed + 1
    types = [m["type"] for m in messages]
    assert types[:2] == ["session.begin", "warning"]
    assert types[-1] == "session.terminated"
    assert (messages[-1]["reason"], messages[-1]["recoverable"]) == ("worker_lost", True)
    assert code == 1011
    await gateway.until_held(0)


@pytest.mark.parametrize("code", [1001, 1009, 4008])
async def test_the_worker_decides_how_a_session_closes(gateway: Gateway, code: int) -> None:
    async def close(connection: ServerConnection) -> None:
        await connection.send('{"type":"session.end"}')
        await connection.close(code)

    async with FakeWorker(gateway.slots, "a", close).running(), gateway.stream() as stream:
        messages, closed_with = await drained(stream)
    assert [m["type"] for m in messages] == ["session.end"]
    assert closed_with == code


async def test_a_worker_that_does_not_read_slows_its_caller_down_and_costs_no_memory(
    gateway: Gateway,
) -> None:
    reading = asyncio.Event()

    async def slow(connection: ServerConnection) -> None:
        await connection.send(BEGIN)
        await reading.wait()
        await echo(connection)

    async with FakeWorker(gateway.slots, "a", slow).running(), gateway.stream() as stream:
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await stream.send(bytes(1 << 20))
                sent += 1

        sending = asyncio.create_task(send())
        try:
            stopped_at = -1
            while sent != stopped_at < 100:
                stopped_at = sent
                await asyncio.sleep(1)
            assert stopped_at < 100
        finally:
            sending.cancel()
            stream.transport.abort()
            await asyncio.gather(sending, return_exceptions=True)
            reading.set()


async def test_when_redis_is_away_the_caller_is_told_and_running_sessions_go_on(
    gateway: Gateway,
) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as first:
        await first.recv()
        # A client that may not speak is as good as none.
        await gateway.client.execute_command("CONFIG", "SET", "maxclients", "1")
        await gateway.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        try:
            async with gateway.stream() as second:
                (error,), code = await drained(second)
            assert (error["code"], error["retry_after"], code) == ("no_capacity", 5, 1013)
            status, body = await gateway.http("/health")
            assert (status, body["status"]) == (503, "unhealthy")
            assert (await gateway.http("/v1/realtime/status"))[0] == 503
            await first.send(bytes(3200))
            assert json.loads(await first.recv())["bytes"] == 3200
        finally:
            await gateway.client.execute_command("CONFIG", "SET", "maxclients", "1000")


async def test_leases_are_renewed_while_sessions_last(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
        await stream.recv()
        first = await gateway.client.zrange("dalston:realtime:leases", 0, -1, withscores=True)
        await asyncio.sleep(0.05)
        # What the gateway does every few seconds, done now.
        (record,) = await gateway.slots.sessions()
        from dalston.orchestrator.capacity.slots import Slot

        assert await gateway.slots.renew([Slot(record["session_id"], "a", "", 1)]) == set()
        later = await gateway.client.zrange("dalston:realtime:leases", 0, -1, withscores=True)
    assert later[0][1] > first[0][1]


async def test_a_slot_that_nobody_renews_comes_back_and_is_counted(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "EXPIRE_S", 0.1)
    expired = counted(metrics.LEASES_EXPIRED)
    async with gateway_over(redis_url) as gateway:
        async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
            await stream.recv()
            await gateway.slots.acquire("s1", "fast", {}, lease_s=0.2)
            assert await gateway.held() == 2
            await gateway.until_held(1)
            async with asyncio.timeout(5):
                while counted(metrics.LEASES_EXPIRED) != expired + 1:
                    await asyncio.sleep(0.01)


async def test_work_by_the_clock_that_fails_is_told_of_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "GO_ON_S", 0.01)
    failed, done = counted(metrics.TASK_FAILURES, "count"), 0

    async def work() -> None:
        nonlocal done
        done += 1
        if done < 3:
            raise ValueError("odd")
        await asyncio.Event().wait()

    going = asyncio.create_task(server.kept_going("count", work))
    async with asyncio.timeout(5):
        while done < 3:
            await asyncio.sleep(0.01)
    going.cancel()
    assert counted(metrics.TASK_FAILURES, "count") == failed + 2
    assert "count: failed, and goes on" in caplog.text


@pytest.mark.parametrize("event", ["hello", "[1]", '{"type":1}', '{"type":"session.terminate"}'])
async def test_whatever_is_published_an_admin_can_still_end_a_session(
    gateway: Gateway, event: str
) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
        await stream.recv()
        await gateway.client.publish("dalston:realtime:events", event)
        (record,) = await gateway.slots.sessions()
        path = f"/v1/realtime/sessions/{record['session_id']}"
        key = {"Authorization": "Bearer secret"}
        assert (await gateway.http(path, "DELETE", key))[0] == 202
        messages, code = await drained(stream)
    assert (messages[-1]["type"], code) == ("session.end", 1000)


# HTTP.


# 004-27
async def test_health_is_200_only_with_a_worker_that_takes_sessions(gateway: Gateway) -> None:
    status, body = await gateway.http("/health")
    assert (status, body) == (503, {"status": "unhealthy", "reason": "no worker is ready"})
    async with FakeWorker(gateway.slots, "a", echo).running():
        status, body = await gateway.http("/health")
        assert (status, body["status"]) == (200, "healthy")


async def test_a_gateway_lives_while_no_session_would_work_and_redis_is_away(
    gateway: Gateway, tmp_path: Path
) -> None:
    assert (await gateway.http("/health"))[0] == 503
    assert await gateway.http("/health/live") == (200, {"status": "alive"})
    with redis_process(tmp_path) as redis:
        async with gateway_over(redis.url) as lonely:
            redis.kill()
            assert (await lonely.http("/health"))[0] == 503
            assert await lonely.http("/health/live") == (200, {"status": "alive"})


# 003-08, L-06
async def test_status_counts_slots(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo, capacity=2).running(), gateway.stream() as s:
        await s.recv()
        assert await gateway.http("/v1/realtime/status") == (
            200,
            {
                "status": "ready",
                "total_capacity": 2,
                "active_sessions": 1,
                "available_capacity": 1,
                "workers": [{"id": "a", "status": "ready", "capacity": 2, "active_sessions": 1}],
            },
        )


def test_only_workers_that_take_sessions_are_capacity() -> None:
    def record(id: str, status: Any, active: int) -> WorkerRecord:
        return WorkerRecord(id, status, 4, active, "ws://x", ["fast"], used=active)

    workers = [record("a", "busy", 4), record("b", "draining", 2), record("c", "offline", 1)]
    body = capacity(workers)
    assert (body["status"], body["total_capacity"]) == ("at_capacity", 4)
    assert (body["available_capacity"], body["active_sessions"]) == (0, 7)
    assert capacity([])["status"] == "unavailable"


async def test_sessions_are_for_admins(gateway: Gateway) -> None:
    assert (await gateway.http("/v1/realtime/sessions"))[0] == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert (await gateway.http("/v1/realtime/sessions", headers=wrong))[0] == 401
    assert (await gateway.http("/v1/realtime/sessions/x", "DELETE", wrong))[0] == 401


# L-07
async def test_an_admin_lists_and_ends_sessions(gateway: Gateway) -> None:
    key = {"Authorization": "Bearer secret"}
    async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
        await stream.recv()
        _, body = await gateway.http("/v1/realtime/sessions", headers=key)
        (session,) = body["sessions"]
        assert session["worker_id"] == "a"
        path = f"/v1/realtime/sessions/{session['session_id']}"
        assert (await gateway.http(path, "DELETE", key))[0] == 202
        messages, _ = await drained(stream)
    assert messages[-1]["said"] == {"type": "end", "reason": "terminated"}
    assert (await gateway.http("/v1/realtime/sessions/sess_none", "DELETE", key))[0] == 404


# Leaving.


async def test_a_drain_refuses_new_sessions_and_lets_running_ones_end(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as running:
        await running.recv()
        gateway.stop.set()
        await asyncio.sleep(0.1)
        async with gateway.stream() as late:
            (error,), code = await drained(late)
        assert (error["code"], code) == ("no_capacity", 1013)
        assert (await gateway.http("/health"))[0] == 503
        await running.send('{"type":"end"}')
        messages, code = await drained(running)
        assert (messages[-1]["said"], code) == ({"type": "end"}, 1000)
        await asyncio.wait_for(gateway.task, 5)


async def test_a_drain_ends_what_does_not_end_by_itself(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as running:
        await running.recv()
        gateway.stop.set()
        messages, _ = await drained(running)
        assert messages[-1]["said"] == {"type": "end", "reason": "server_drain"}
        await asyncio.wait_for(gateway.task, 5)
    assert await gateway.held() == 0


# Redis.


def settings_of(redis_url: str) -> GatewaySettings:
    given: dict[str, Any] = {"redis_url": redis_url, "host": "127.0.0.1", "port": 0}
    return GatewaySettings(**given)


async def test_a_redis_cluster_is_refused_at_the_start(tmp_path: Path) -> None:
    with redis_process(tmp_path, "--save", "", "--cluster-enabled", "yes") as cluster:
        with pytest.raises(UnsupportedRedis, match="Cluster"):
            await asyncio.wait_for(serve(settings_of(cluster.url), asyncio.Event()), 5)


async def test_a_running_session_has_its_slot_again_as_soon_as_redis_is_back(
    tmp_path: Path,
) -> None:
    with redis_process(tmp_path) as redis:
        stop = asyncio.Event()
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(settings_of(redis.url), stop, port.set_result))
        client = redis_client(redis.url)
        gateway = Gateway(f"127.0.0.1:{await port}", Slots(client), client, stop, task)
        async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as running:
            await running.recv()
            redis.kill()
            async with asyncio.timeout(5), gateway.stream() as late:
                (error,), code = await drained(late)
            assert (error["code"], error["retry_after"], code) == ("no_capacity", 5, 1013)
            await asyncio.sleep(0.5)
            redis.start()
            async with asyncio.timeout(1):
                while not await gateway.slots.sessions():
                    await asyncio.sleep(0.01)
            await running.send(bytes(3200))
            assert json.loads(await running.recv())["bytes"] == 3200
        stop.set()
        await asyncio.wait_for(task, 10)
        await client.aclose()
