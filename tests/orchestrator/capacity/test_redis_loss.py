"""
A Redis that forgets, dies, hangs and comes back: nothing is given twice, nothing is held for ever.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from support.redis_process import REMEMBERS, RedisProcess, redis_process
from support.registered import PREFIX, active, register, served, worker

from dalston.orchestrator.capacity.redis_client import UnsupportedRedis, redis_client
from dalston.orchestrator.capacity.slots import NoCapacity, Slots
from dalston.orchestrator.capacity.workers import Served

# What it forgot.


async def test_a_heartbeat_restores_a_record_that_was_lost(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {})
    await client.flushall()
    # Before its worker has said so, nobody may take the session's slot for free.
    with pytest.raises(NoCapacity):
        await slots.acquire("s2", "fast", {})
    assert await slots.renew([slot]) == set()
    await slots.heartbeat(worker("a", 1), served(s1=slot.epoch))
    assert await active(slots) == {"a": 1}
    with pytest.raises(NoCapacity):
        await slots.acquire("s2", "fast", {})
    assert await slots.renew([slot]) == set()
    assert await slots.release("s1", slot.epoch, "ended")
    assert await active(slots) == {"a": 0}


async def test_a_renewal_restores_a_slot_that_was_lost_before_its_worker_does(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a", 2))
    slot = await slots.acquire("s1", "fast", {}, key_id="k", address="10.0.0.1")
    await client.flushall()
    assert await slots.renew([slot]) == set()
    assert await slots.renew([slot]) == set()
    await slots.heartbeat(worker("a", 2), served(s1=slot.epoch))
    assert await active(slots) == {"a": 1}
    for counted in ("key:k", "address:10.0.0.1"):
        assert await client.smembers(f"{PREFIX}{counted}:sessions") == {"s1"}
    assert await slots.release("s1", slot.epoch, "ended")
    assert await active(slots) == {"a": 0}
    assert await client.zcard(f"{PREFIX}leases") == 0


async def test_after_a_loss_the_highest_epoch_has_the_session(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"), worker("b"))
    first = await slots.acquire("s1", "fast", {})
    second = await slots.acquire("s1", "fast", {}, avoid=first.worker_id)
    await client.flushall()
    # The owner that was taken over is the first to speak.
    assert await slots.renew([first]) == set()
    await slots.heartbeat(worker("a"), served(s1=first.epoch))
    assert await active(slots) == {"a": 1}
    await slots.heartbeat(worker("b"), served(s1=second.epoch))
    assert await active(slots) == {"a": 0, "b": 1}
    assert await slots.renew([first, second]) == {"s1"}
    assert not await slots.release("s1", first.epoch, "error")
    assert await slots.release("s1", second.epoch, "ended")


async def test_a_takeover_after_a_loss_goes_on_from_the_epoch_its_owner_knows(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a"), worker("b"))
    slot = await slots.acquire("s1", "fast", {})
    await client.flushall()
    await register(slots, worker("a"), worker("b"))
    again = await slots.acquire("s1", "fast", {}, avoid=slot.worker_id, epoch=slot.epoch)
    assert (again.worker_id, again.epoch) == ("b", 2)
    await slots.heartbeat(worker("a"), served(s1=slot.epoch))
    assert await active(slots) == {"a": 0, "b": 1}


async def test_a_session_that_ended_while_redis_knew_nothing_does_not_come_back(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {})
    await client.flushall()
    assert not await slots.release("s1", slot.epoch, "ended")
    # This heartbeat was on its way already.
    await slots.heartbeat(worker("a"), served(s1=slot.epoch))
    assert await active(slots) == {"a": 0}
    assert 0 < await client.ttl(f"{PREFIX}session:s1") <= 600


# Redis is away.


@asynccontextmanager
async def slots_of(redis: RedisProcess) -> AsyncGenerator[Slots]:
    client = redis_client(redis.url)
    yield Slots(client)
    await client.aclose()


@asynccontextmanager
async def following(slots: Slots, connected: Any, told: Any = None) -> AsyncGenerator[None]:
    task = asyncio.create_task(slots.server.follow(connected, told))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_without_redis_a_caller_is_told_at_once(tmp_path: Path) -> None:
    with redis_process(tmp_path) as redis:
        async with slots_of(redis) as slots:
            await register(slots, worker("a"))
            redis.kill()
            async with asyncio.timeout(5):
                with pytest.raises(RedisError):
                    await slots.acquire("s1", "fast", {})


async def test_many_callers_of_a_redis_that_hangs_are_told_soon_and_hold_nothing(
    tmp_path: Path,
) -> None:
    with redis_process(tmp_path) as redis:
        async with slots_of(redis) as slots:
            await register(slots, worker("a", 20))
            early = [slots.acquire(f"early{n}", "fast", {}) for n in range(20)]
            for slot in await asyncio.gather(*early):  # each with a connection
                await slots.release(slot.session_id, slot.epoch, "ended")

            async def told(n: int) -> None:
                with pytest.raises(RedisError):
                    await slots.acquire(f"s{n}", "fast", {})

            with redis.stopped():
                # One after the other they would wait for minutes.
                async with asyncio.timeout(20):
                    await asyncio.gather(*map(told, range(200)))
            # What it was asked meanwhile it still does, for nobody.
            assert (await slots.acquire("later", "fast", {})).epoch == 1
            assert await active(slots) == {"a": 1}


@pytest.mark.parametrize("options", [(), REMEMBERS], ids=["forgetful", "remembers"])
async def test_who_follows_is_told_as_soon_as_redis_is_back(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with redis_process(tmp_path, *options) as redis:
        async with slots_of(redis) as slots:
            sessions: dict[str, Served] = {}

            async def register_again() -> None:
                await slots.heartbeat(worker("a", 2), sessions)

            async with following(slots, register_again):
                async with asyncio.timeout(5):
                    while not await active(slots):
                        await asyncio.sleep(0.01)
                slot = await slots.acquire("s1", "fast", {})
                sessions |= served(s1=slot.epoch)
                for _ in range(3):
                    redis.kill()
                    await asyncio.sleep(0.5)
                    redis.start()
                    while True:
                        with contextlib.suppress(NoCapacity, RedisError):
                            newcomer = await slots.acquire("s2", "fast", {})
                            break
                        await asyncio.sleep(0.01)
                    with pytest.raises(NoCapacity):
                        await slots.acquire("s3", "fast", {})
                    assert await active(slots) == {"a": 2}
                    await slots.release("s2", newcomer.epoch, "ended")
                    assert await active(slots) == {"a": 1}


async def test_who_follows_hears_events_after_redis_was_away_too(tmp_path: Path) -> None:
    with redis_process(tmp_path) as redis:
        async with slots_of(redis) as slots:
            heard: asyncio.Queue[Any] = asyncio.Queue()
            reached: asyncio.Queue[None] = asyncio.Queue()

            async def connected() -> None:
                reached.put_nowait(None)

            async def told(event: Any) -> None:
                heard.put_nowait(event)

            async with following(slots, connected, told):
                for n in ("1", "2"):
                    await asyncio.wait_for(reached.get(), 5)
                    await slots.server.announce({"type": "session.terminate", "session_id": n})
                    assert (await asyncio.wait_for(heard.get(), 5))["session_id"] == n
                    redis.kill()
                    redis.start()


async def test_who_follows_a_cluster_ends(tmp_path: Path) -> None:
    with redis_process(tmp_path, "--save", "", "--cluster-enabled", "yes") as cluster:
        async with slots_of(cluster) as slots:

            async def connected() -> None:
                pytest.fail("not with this Redis")

            with pytest.raises(UnsupportedRedis):
                await asyncio.wait_for(slots.server.follow(connected), 5)
