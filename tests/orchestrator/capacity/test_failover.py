"""
Another server takes the place of Redis, and lacks the last writes; how long it runs tells nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from support.proxy import Proxy
from support.redis_process import RedisProcess, redis_process, sentinel
from support.registered import active, register, served, worker

from dalston.orchestrator.capacity import server
from dalston.orchestrator.capacity.redis_client import redis_client
from dalston.orchestrator.capacity.slots import Slots


async def until(ask: Callable[[], Awaitable[Any]], wanted: Any, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            with contextlib.suppress(RedisError):
                if await ask() == wanted:
                    return
            await asyncio.sleep(0.02)


@dataclass
class Two:
    """A master, and a replica of it that may be behind; clients come through the proxy."""

    master: RedisProcess
    replica: RedisProcess
    front: Proxy
    link: Proxy  # from the replica to its master

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.front.port}"

    async def in_step(self) -> None:
        first, second = redis_client(self.master.url), redis_client(self.replica.url)
        untyped: Any = first
        step = await untyped.incr("step")
        other: Any = second
        await until(lambda: other.get("step"), str(step).encode())
        await first.aclose()
        await second.aclose()

    async def promote(self) -> None:
        """By hand. Who is connected to the old master stays there until told otherwise."""
        client: Any = redis_client(self.replica.url)
        await client.execute_command("REPLICAOF", "NO", "ONE")
        await client.aclose()
        self.front.target = self.replica.port


@asynccontextmanager
async def two(folder: Path) -> AsyncGenerator[Two]:
    with redis_process(folder / "first", "--save", "") as master:
        link, front = Proxy(master.port), Proxy(master.port)
        await link.open()
        await front.open()
        options = ("--save", "", "--replicaof", "127.0.0.1", str(link.port))
        with redis_process(folder / "second", *options) as replica:
            both = Two(master, replica, front, link)
            await both.in_step()
            try:
                yield both
            finally:
                await front.close()
                await link.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways are given a second to write again; the replica has run for longer."""
    monkeypatch.setattr(server, "WRITTEN_AGAIN_S", 1)
    monkeypatch.setattr(server, "LOOK_S", 0.1)


@asynccontextmanager
async def followed(
    slots: Slots, connected: Callable[[], Awaitable[object]]
) -> AsyncGenerator[None]:
    following = asyncio.create_task(slots.server.follow(connected))
    try:
        yield
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def uptime(url: str) -> int:
    client: Any = redis_client(url)
    found = int((await client.info("server"))["uptime_in_seconds"])
    await client.aclose()
    return found


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("old", ["dead", "demoted", "silent"])
async def test_a_promoted_replica_that_lacks_writes_is_told_everything_again(
    tmp_path: Path, old: str
) -> None:
    async with two(tmp_path) as both:
        client = redis_client(both.url)
        slots, told = Slots(client), 0
        sessions: dict[str, int] = {}

        async def tell() -> None:
            nonlocal told
            await slots.heartbeat(worker("a"), served(**sessions))
            told += 1

        try:
            async with followed(slots, tell):
                await until(lambda: active(slots), {"a": 0})
                await both.in_step()
                while await uptime(both.replica.url) < 1 or await slots.server.may_come_back():
                    await asyncio.sleep(0.05)
                # From here on the replica hears nothing.
                both.link.silence()
                sessions["s1"] = (await slots.acquire("s1", "fast", {})).epoch
                await slots.keep("s1", 1, {"config": "{}"}, whole=True)
                before = told
                await both.promote()
                if old == "dead":
                    both.master.kill()
                    both.front.reset()
                elif old == "silent":
                    both.front.silence()
                else:  # nobody's connection breaks, and what they ask there is refused
                    first: Any = redis_client(both.master.url)
                    await first.execute_command("REPLICAOF", "127.0.0.1", both.replica.port)
                    await first.aclose()
                async with asyncio.timeout(20):
                    while told == before:
                        await asyncio.sleep(0.02)
                on_the_next = redis_client(both.replica.url)
                await until(lambda: active(Slots(on_the_next)), {"a": 1})
                await on_the_next.aclose()
                assert await uptime(both.replica.url) >= 1
        finally:
            await client.aclose()


@pytest.mark.usefixtures("soon")
async def test_what_a_promoted_replica_lacks_may_come_back_for_a_while(tmp_path: Path) -> None:
    async with two(tmp_path) as both:
        client = redis_client(both.url)
        slots = Slots(client)
        try:
            while await uptime(both.replica.url) < 1 or await slots.server.may_come_back():
                await asyncio.sleep(0.05)
            await both.promote()
            both.front.reset()
            assert await slots.server.may_come_back()
            # A gateway that was started after that cannot know when it happened.
            late = redis_client(both.url)
            assert await Slots(late).server.may_come_back()
            await late.aclose()
            async with asyncio.timeout(10):
                while await slots.server.may_come_back():
                    await asyncio.sleep(0.05)
        finally:
            await client.aclose()


async def test_a_redis_that_runs_on_is_no_other(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"))
    for _ in range(3):
        before = slots.server._changed_at  # pyright: ignore[reportPrivateUsage]
        await slots.server.may_come_back()
        assert slots.server._changed_at == before  # pyright: ignore[reportPrivateUsage]


@pytest.mark.usefixtures("soon")
async def test_sentinels_that_promote_a_replica_which_lacks_writes(tmp_path: Path) -> None:
    async with two(tmp_path) as both:
        watcher = sentinel(tmp_path / "sentinel", both.master.port)
        watcher.start()
        client = redis_client(f"redis+sentinel://127.0.0.1:{watcher.port}/speech/0")
        asked: Any = redis_client(watcher.url)
        slots, sessions = Slots(client), dict[str, int]()

        async def tell() -> None:
            await slots.heartbeat(worker("a"), served(**sessions))

        async def known() -> bool:
            return bool(await asked.execute_command("SENTINEL", "REPLICAS", "speech"))

        try:
            async with followed(slots, tell):
                await until(lambda: active(slots), {"a": 0})
                await until(known, True)
                await both.in_step()
                both.link.silence()
                sessions["s1"] = (await slots.acquire("s1", "fast", {})).epoch
                both.master.kill()
                await until(lambda: active(slots), {"a": 1}, within_s=40)
        finally:
            await client.aclose()
            await asked.aclose()
            watcher.kill()
