"""
A Redis that answers and takes no writes: calls go on, nobody new is let in, and the log says why.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from support.fronted import FakeWorker, Gateway, drained, echo, gateway_over
from support.redis_process import RedisProcess, redis_process

from dalston.orchestrator.capacity.redis_client import redis_client


@asynccontextmanager
async def raw(redis: RedisProcess) -> AsyncGenerator[Any]:
    client: Any = redis_client(redis.url)
    yield client
    await client.aclose()


async def until_refused(client: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await client.set("x", "y")
            except RedisError:
                return
            await asyncio.sleep(0.02)


async def refuse(redis: RedisProcess, how: str) -> None:
    async with raw(redis) as client:
        if how == "memory":
            await client.config_set("maxmemory", 1)
        elif how == "disk":
            shutil.rmtree(redis.folder)
            await client.config_set("save", "1 1")
            await client.bgsave()
        else:
            await client.execute_command("REPLICAOF", "127.0.0.1", "1")
            await client.config_set("replica-serve-stale-data", "yes")
        await until_refused(client)


async def allow(redis: RedisProcess, how: str) -> None:
    async with raw(redis) as client:
        if how == "memory":
            await client.config_set("maxmemory", 0)
        elif how == "disk":
            await client.config_set("save", "")
            await client.config_set("stop-writes-on-bgsave-error", "no")
        else:
            await client.execute_command("REPLICAOF", "NO", "ONE")


async def refused(gateway: Gateway) -> None:
    async with gateway.stream() as stream:
        (error,), code = await drained(stream)
    assert (error["code"], code, error["retry_after"]) == ("no_capacity", 1013, 5)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [("memory", "memory of Redis is used up"), ("disk", "its disk"), ("replica", "is a replica")],
)
async def test_calls_go_on_while_redis_takes_no_writes_and_new_ones_begin_when_it_does(
    tmp_path: Path, how: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_process(tmp_path / "redis") as redis:
        async with gateway_over(redis.url) as gateway:
            async with (
                FakeWorker(gateway.slots, "a", echo).running() as worker,
                gateway.stream() as stream,
            ):
                assert json.loads(await stream.recv())["type"] == "session.begin"
                await refuse(redis, how)
                await refused(gateway)
                assert sentence in caplog.text
                await stream.send(bytes(3200))
                assert json.loads(await stream.recv()) == {"type": "got", "bytes": 3200}
                await allow(redis, how)
                async with asyncio.timeout(10):
                    while True:
                        async with gateway.stream() as second:
                            if json.loads(await second.recv())["type"] == "session.begin":
                                break
                await stream.send('{"type":"end"}')
                messages, code = await drained(stream)
                assert (messages[-1]["type"], code) == ("session.end", 1000)
                assert len(worker.requests) == 2
            await gateway.until_held(0)


async def test_a_call_that_ends_while_redis_takes_no_writes_ends_in_order(tmp_path: Path) -> None:
    with redis_process(tmp_path / "redis") as redis:
        async with gateway_over(redis.url) as gateway:
            async with FakeWorker(gateway.slots, "a", echo).running():
                async with gateway.stream() as stream:
                    await stream.recv()
                    await refuse(redis, "memory")
                    await stream.send('{"type":"end"}')
                    messages, code = await drained(stream)
                    assert (messages[-1]["type"], code) == ("session.end", 1000)
                await allow(redis, "memory")
