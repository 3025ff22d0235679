"""
The way to Redis: one that is gone, hangs or comes back, one behind Sentinels, and a Cluster.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis.exceptions import RedisError
from support.hardships import no_descriptors
from support.proxy import Proxy
from support.redis_process import redis_process, sentinel

from dalston.orchestrator.capacity.redis_client import (
    UnsupportedRedis,
    look_at,
    redis_client,
)
from dalston.triton.process import free_port


async def test_an_address_where_nobody_listens_is_an_error_at_once() -> None:
    client: Any = redis_client(f"redis://127.0.0.1:{free_port()}")
    async with asyncio.timeout(5):
        with pytest.raises(RedisError):
            await client.ping()
    await client.aclose()


async def test_a_redis_that_was_started_again_answers_the_first_question(tmp_path: Path) -> None:
    with redis_process(tmp_path) as redis:
        client: Any = redis_client(redis.url)
        await asyncio.gather(*(client.ping() for _ in range(8)))  # several connections
        redis.kill()
        redis.start()
        assert await asyncio.gather(*(client.ping() for _ in range(8))) == [True] * 8
        await client.aclose()


async def test_a_redis_that_hangs_is_an_error_within_seconds(tmp_path: Path) -> None:
    with redis_process(tmp_path) as redis:
        client: Any = redis_client(redis.url)
        await client.ping()
        with redis.stopped():
            async with asyncio.timeout(10):
                with pytest.raises(RedisError):
                    await client.ping()
        assert await client.ping()
        await client.aclose()


async def test_a_process_without_descriptors_is_told_that_redis_cannot_be_reached(
    tmp_path: Path,
) -> None:
    with redis_process(tmp_path) as redis:
        client: Any = redis_client(redis.url)
        with no_descriptors(os.getpid()), pytest.raises(RedisError):
            await client.ping()
        assert await client.ping()
        await client.aclose()


def test_a_connection_that_is_reset_is_renewed_on_uvloop_as_well(tmp_path: Path) -> None:
    async def reset_between_two_questions() -> None:
        proxy = Proxy(redis.port)
        await proxy.open()
        client: Any = redis_client(f"redis://127.0.0.1:{proxy.port}")
        assert await client.ping()
        assert proxy.reset()
        await asyncio.sleep(0.05)
        assert await client.ping()
        proxy.target = free_port()
        assert proxy.reset()
        await asyncio.sleep(0.05)
        with pytest.raises(RedisError):
            await client.ping()
        await client.aclose()
        await proxy.close()

    with redis_process(tmp_path) as redis:
        uvloop.run(reset_between_two_questions())


async def test_whoever_is_cancelled_in_the_middle_of_a_question_does_not_go_on(
    tmp_path: Path,
) -> None:
    async def ask_for_ever() -> None:
        while True:
            await client.ping()

    with redis_process(tmp_path) as redis:
        client: Any = redis_client(redis.url)
        for moment in range(40):  # of a question, counted in turns of the loop
            asking = asyncio.create_task(ask_for_ever())
            for _ in range(moment):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking], timeout=1)
            assert asking.cancelled(), f"goes on when cancelled after {moment} turns"
        # Nobody is given the answer to a question before.
        assert await client.echo("this one") == b"this one"
        await client.aclose()


# Sentinel.


async def until_answered(client: Any, command: str, *args: str) -> Any:
    async with asyncio.timeout(30):
        while True:
            try:
                return await client.execute_command(command, *args)
            except RedisError:
                await asyncio.sleep(0.1)


async def test_the_master_is_found_through_sentinels_and_after_a_failover_the_next(
    tmp_path: Path,
) -> None:
    with (
        redis_process(tmp_path / "first") as master,
        redis_process(
            tmp_path / "second", "--save", "", "--replicaof", "127.0.0.1", str(master.port)
        ) as replica,
    ):
        watcher = sentinel(tmp_path / "sentinel", master.port)
        watcher.start()
        # The first Sentinel is gone: the next is asked.
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{watcher.port}"
        client = redis_client(f"redis+sentinel://{hosts}/speech/0")
        asked: Any = redis_client(watcher.url)
        follower: Any = redis_client(replica.url)
        try:
            await until_answered(client, "SET", "who", "lives")
            async with asyncio.timeout(20):  # until the replica is one, and the Sentinel knows it
                while await follower.get("who") != b"lives":
                    await asyncio.sleep(0.1)
                while not await asked.execute_command("SENTINEL", "REPLICAS", "speech"):
                    await asyncio.sleep(0.1)
            # As many as there are connections, and more: callers wait for one.
            untyped: Any = client
            answers = await asyncio.gather(*(untyped.get("who") for _ in range(50)))
            assert set(answers) == {b"lives"}
            master.kill()
            assert await until_answered(client, "SET", "who", "follows")
            assert await follower.get("who") == b"follows"
        finally:
            await follower.aclose()
            await client.aclose()
            await asked.aclose()
            watcher.kill()


async def test_credentials_in_an_address_with_sentinels_are_for_redis(tmp_path: Path) -> None:
    with redis_process(tmp_path / "redis", "--save", "", "--requirepass", "secret") as master:
        watcher = sentinel(tmp_path / "sentinel", master.port, "secret")
        watcher.start()
        address = f"127.0.0.1:{watcher.port}/speech/3"
        client: Any = redis_client(f"redis+sentinel://:secret@{address}")
        stranger: Any = redis_client(f"redis+sentinel://{address}")
        try:
            await until_answered(client, "SET", "where", "here")
            with pytest.raises(RedisError):
                await stranger.ping()
            direct: Any = redis_client(f"redis://:secret@127.0.0.1:{master.port}/3")
            assert await direct.get("where") == b"here"
            await direct.aclose()
        finally:
            await client.aclose()
            await stranger.aclose()
            watcher.kill()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://here:26379",  # which service?
        "redis+sentinel://here:26379/speech/first",
        "redis+sentinel://here:port/speech",
        "redis+sentinel:///speech/0",
        "redis+sentinel://here/speech/0?password=x",
    ],
)
def test_an_address_with_sentinels_that_lacks_something_is_refused(url: str) -> None:
    with pytest.raises(UnsupportedRedis, match="HOST:PORT/SERVICE/DB"):
        redis_client(url)


# Cluster.


async def test_a_cluster_is_refused_and_one_redis_is_not(tmp_path: Path, redis_url: str) -> None:
    with redis_process(tmp_path, "--save", "", "--cluster-enabled", "yes") as cluster:
        client = redis_client(cluster.url)
        with pytest.raises(UnsupportedRedis, match="Cluster"):
            await look_at(client)
        await client.aclose()
    client = redis_client(redis_url)
    await look_at(client)
    await client.aclose()
