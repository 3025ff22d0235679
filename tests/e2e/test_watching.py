"""
What can be watched of a real gateway and a real worker, before Triton and Redis, while they work.
"""

import asyncio
import itertools
import json
import logging
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from recordings import recordings
from support.redis_process import redis_process
from websockets.asyncio.client import connect

from dalston import client
from dalston.gateway.server import serve
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.capacity.redis_client import redis_client
from dalston.orchestrator.process import logs
from dalston.orchestrator.worker.settings import WorkerSettings
from dalston.orchestrator.worker.worker import Worker
from dalston.triton.process import free_port

AUDIO = recordings()[0].audio[: 8 * 16_000].tobytes()
ADMIN = {"Authorization": "Bearer secret"}
Samples = dict[tuple[str, ...], float]


async def fetch(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})

    def read() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(read)


async def samples(port: int) -> Samples:
    """By name and label values."""
    status, page = await fetch(port, "/metrics", ADMIN)
    assert status == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@asynccontextmanager
async def a_gateway(redis_url: str, **given: Any) -> AsyncGenerator[int]:
    """It runs; the port."""
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    fields: dict[str, Any] = {"port": 0, "drain_seconds": 0.1, "redis_url": redis_url, **given}
    serving = asyncio.create_task(serve(GatewaySettings(**fields), stop, port.set_result))
    yield await port
    stop.set()
    await asyncio.wait_for(serving, 10)


@asynccontextmanager
async def a_worker(redis_url: str, triton_url: str) -> AsyncGenerator[int]:
    """It runs, and is healthy; the port."""
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    own = free_port()
    fields: dict[str, Any] = {
        "redis_url": redis_url,
        "worker_id": "w1",
        "port": own,
        "endpoint": f"ws://127.0.0.1:{own}",
        "max_sessions": 2,
        "triton_urls": [triton_url],
        "drain_seconds": 0.1,
    }
    running = asyncio.create_task(Worker(WorkerSettings(**fields)).run(stop, port.set_result))
    async with asyncio.timeout(20):
        while (await fetch(await port, "/health"))[0] != 200:
            await asyncio.sleep(0.05)
    yield await port
    stop.set()
    await asyncio.wait_for(running, 15)


@dataclass
class Both:
    gateway: int
    worker: int

    async def call(self) -> list[client.Event]:
        async with client.connect(f"ws://127.0.0.1:{self.gateway}", language="en") as session:

            async def speak() -> None:
                for start in range(0, len(AUDIO), 3200):
                    await session.send(AUDIO[start : start + 3200])
                    await asyncio.sleep(0.05)
                await session.end()

            speaking = asyncio.create_task(speak())
            events = [event async for event in session]
            await speaking
            return events

    async def samples(self) -> Samples:
        return await samples(self.gateway) | await samples(self.worker)


@pytest.fixture
async def both(redis_url: str, triton_url: str) -> AsyncGenerator[Both]:
    redis: Any = redis_client(redis_url)
    await redis.flushall()
    await redis.aclose()
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(a_gateway(redis_url, admin_key="secret"))
        worker = await stack.enter_async_context(a_worker(redis_url, triton_url))
        yield Both(gateway, worker)


# L-10
async def test_a_call_moves_what_it_should(both: Both) -> None:
    before = await both.samples()
    events = await both.call()
    after = await both.samples()

    def moved(*name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    finals = sum(event["type"] == "transcript.final" for event in events)
    partials = sum(event["type"] == "transcript.partial" for event in events)
    stats = events[-1]["stats"]
    assert finals
    assert partials
    assert moved("dalston_realtime_sessions_total") == 1
    assert moved("dalston_realtime_allocation_time_seconds_count") == 1
    assert moved("dalston_realtime_connections_closed_total", "1000") == 1
    assert moved("dalston_worker_finals_total") == finals
    assert moved("dalston_worker_final_seconds_count") == finals
    assert 0 <= moved("dalston_worker_final_seconds_sum") < 5 * finals
    assert moved("dalston_worker_partials_total") == partials
    assert 1 <= moved("dalston_worker_first_partial_seconds_count") <= finals
    assert moved("dalston_worker_audio_seconds_total") == pytest.approx(8.0)
    assert moved("dalston_worker_sessions_ended_total", "1000") == 1
    assert moved("dalston_worker_speculative_finals_total", "used") == stats.get(
        "speculative_finals_used", 0
    )
    asked = stats.get("speculative_finals_dropped", 0) + finals
    for stage in ("queue", "features", "encode", "decode"):
        assert 1 <= moved("dalston_worker_stage_seconds_count", stage) <= asked
    for stage in ("buffering", "vad"):
        assert moved("dalston_worker_stage_seconds_count", stage) >= 8 / 0.256


# L-10
async def test_the_deployment_as_redis_knows_it(both: Both) -> None:
    async with connect(f"ws://127.0.0.1:{both.gateway}/v1/audio/transcriptions/stream") as stream:
        await stream.recv()
        now = await both.samples()
    for name, value in (
        ("workers_total", 1),
        ("workers_ready", 1),
        ("capacity_total", 2),
        ("capacity_used", 1),
        ("queue_length", 0),
        ("sessions_active", 1),
        ("connections", 1),
        ("draining", 0),
    ):
        assert now[f"dalston_realtime_{name}",] == value, name
    assert (now["dalston_worker_sessions",], now["dalston_worker_capacity",]) == (1, 2)
    assert now["dalston_worker_healthy",] == 1


# L-10
async def test_who_gets_no_slot_is_counted_by_the_reason(redis_url: str, both: Both) -> None:
    stream = f"ws://127.0.0.1:{both.gateway}/v1/audio/transcriptions/stream"
    before = await samples(both.gateway)
    async with connect(stream) as one, connect(stream) as two:
        for socket in (one, two):
            assert json.loads(await socket.recv())["type"] == "session.begin"
        async with connect(stream) as third:
            assert json.loads(await third.recv())["code"] == "no_capacity"
            await third.wait_closed()
        async with connect(f"{stream}?overflow=queue") as waiting:
            assert json.loads(await waiting.recv())["type"] == "session.queued"
            assert (await samples(both.gateway))["dalston_realtime_queue_length",] == 1
    async with asyncio.timeout(5):
        served = "dalston_realtime_queue_wait_seconds_count"
        while True:
            after = await samples(both.gateway)
            ends = {k: after.get((served, k), 0) - before.get((served, k), 0) for k in OUTCOMES}
            if sum(ends.values()) == 1:
                break
            await asyncio.sleep(0.05)

    def moved(*name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert moved("dalston_realtime_allocation_failures_total", "full") == 1
    assert moved("dalston_realtime_errors_total", "no_capacity") == 1
    assert moved("dalston_realtime_connections_closed_total", "1013") == 1


OUTCOMES = ("served", "refused", "gone")


# Who may look.


@pytest.mark.parametrize("path", ["/metrics", "/health/extended"])
async def test_with_an_admin_key_the_pages_are_for_who_has_it(redis_url: str, path: str) -> None:
    async with a_gateway(redis_url, admin_key="secret") as port:
        assert (await fetch(port, path))[0] == 401
        assert (await fetch(port, path, {"Authorization": "Bearer wrong"}))[0] == 401
        assert (await fetch(port, path, ADMIN))[0] in (200, 503)


@pytest.mark.parametrize("path", ["/metrics", "/health/extended"])
async def test_where_callers_need_keys_nobody_may_look_without_one(
    redis_url: str, path: str
) -> None:
    async with a_gateway(redis_url, api_keys="redis") as port:
        assert (await fetch(port, path))[0] == 401


@pytest.mark.parametrize("path", ["/metrics", "/health/extended"])
async def test_where_everything_is_open_the_pages_are_too(redis_url: str, path: str) -> None:
    async with a_gateway(redis_url) as port:
        assert (await fetch(port, path))[0] in (200, 503)


# Health.


async def extended(port: int) -> tuple[int, Any]:
    status, body = await fetch(port, "/health/extended", ADMIN)
    return status, json.loads(body)


# 004-28
async def test_extended_health_tells_what_health_depends_on(both: Both) -> None:
    async with connect(f"ws://127.0.0.1:{both.gateway}/v1/audio/transcriptions/stream") as stream:
        await stream.recv()
        status, body = await extended(both.gateway)
    assert (status, body["status"], body["draining"]) == (200, "healthy", False)
    assert (body["version"], body["queue_length"]) == (version("dalston"), 0)
    assert (body["connections"], body["active_sessions"]) == (1, 1)
    assert body["uptime_seconds"] > 0
    assert body["redis"]["reachable"]
    assert 0 < body["redis"]["latency_ms"] < 1000
    (worker,) = body["workers"]
    assert (worker["id"], worker["status"]) == ("w1", "ready")
    assert (worker["capacity"], worker["active_sessions"]) == (2, 1)
    assert 0 <= worker["heartbeat_age_seconds"] < 15


async def test_extended_health_is_503_without_a_worker(redis_url: str) -> None:
    redis: Any = redis_client(redis_url)
    await redis.flushall()
    await redis.aclose()
    async with a_gateway(redis_url, admin_key="secret") as port:
        status, body = await extended(port)
    assert (status, body["reason"], body["workers"]) == (503, "no worker is ready", [])
    assert body["redis"]["reachable"]


async def test_without_redis_both_pages_tell_what_they_can(tmp_path: Path) -> None:
    with redis_process(tmp_path) as redis:
        async with a_gateway(redis.url, admin_key="secret") as gateway:
            assert (await samples(gateway))["dalston_realtime_workers_total",] == 0
            redis.kill()
            async with asyncio.timeout(10):
                status, body = await extended(gateway)
                now = await samples(gateway)
    assert (status, body["status"], body["redis"]["reachable"]) == (503, "unhealthy", False)
    assert ("dalston_realtime_workers_total",) not in now
    assert ("dalston_realtime_connections",) in now


# Logs.


async def test_no_word_that_was_said_is_in_any_log(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    for name, level in logs.QUIET.items():  # as logs.setup() does
        caplog.set_level(level, logger=name)
    caplog.set_level(logging.DEBUG)  # the last one counts for what is captured
    told = [event["text"] for event in await both.call() if "text" in event]
    pairs = {" ".join(pair) for text in told for pair in itertools.pairwise(text.split())}
    assert len(pairs) >= 4
    logging.getLogger("dalston").debug("what is logged is seen here")
    assert "what is logged" in caplog.text
    assert [pair for pair in pairs if pair in caplog.text] == []
