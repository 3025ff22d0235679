"""
What others have put under our names in Redis: it ends nothing, and keeps nobody from a slot.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from redis.exceptions import RedisError
from support.registered import PREFIX, active, register, served, worker

from dalston.orchestrator.capacity.redis_client import redis_client
from dalston.orchestrator.capacity.server import EVENTS
from dalston.orchestrator.capacity.slots import NoCapacity, Slot, Slots


@pytest.fixture
async def client(redis_url: str) -> AsyncGenerator[Any]:
    """As gateways have it: it gives bytes, whatever they are."""
    client: Any = redis_client(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


GLOBAL = ("workers", "sessions:active", "leases", "queues", "tickets", "turns", "freed")
OF_ONE = (
    "worker:a",
    "worker:a:sessions",
    "worker:a:small",
    "session:s1",
    "session:s1:resume",
    "key:k:sessions",
    "address:::1:sessions",
    "queue:fast",
)
GARBAGE = ("", "nan", "inf", "-1", "1e308", "9" * 30, "\0\xff", "[" * 5000, "{}", "true", "abc")


async def fill(client: Any, name: str, kind: str, rng: random.Random) -> None:
    """Put something of another kind, or of ours, under this name."""
    key, value = PREFIX + name, rng.choice(GARBAGE)
    if kind.encode() != await client.type(key):
        await client.delete(key)
    if kind == "string":
        await client.set(key, value)
    elif kind == "list":
        await client.rpush(key, value)
    elif kind == "set":
        await client.sadd(key, value, "nobody")
    elif kind == "zset":
        await client.zadd(key, {value: rng.choice([0, -1e9, 1e18, float("inf")]), "nobody": 1})
    else:
        fields = [field for field in await client.hkeys(key) if field != b"instance"]
        await client.hset(key, rng.choice([*fields, "epoch", "x"]), value)


async def recovers(slots: Slots) -> None:
    """As gateways and workers do by the clock: then there is a slot again."""
    registration = worker("a", 4)
    async with asyncio.timeout(20):
        while True:
            await slots.heartbeat(registration, {})
            await slots.expire()
            with contextlib.suppress(NoCapacity):
                slot = await slots.acquire("new", "fast", {}, key_id="k", address="::1")
                assert (slot.worker_id, slot.endpoint) == ("a", "ws://a:9000")
                await slots.release("new", slot.epoch, "ended")
                return


async def everything(slots: Slots, slot: Slot) -> None:
    """Every operation, once; none may fail as code does."""
    await slots.workers()
    await slots.sessions()
    await slots.waiting()
    await slots.is_active("s1")
    await slots.kept("s1")
    await slots.renew([slot])
    await slots.keep("s1", slot.epoch, {"config": "{}"}, "k", whole=True)
    await slots.heartbeat(worker("a"), served(s1=slot.epoch))
    await slots.expire()
    for n, strategy in enumerate(("least_loaded", "weighted")):
        other = Slots(slots._redis, strategy)  # pyright: ignore[reportArgumentType, reportPrivateUsage]
        with contextlib.suppress(NoCapacity):
            given = await other.acquire(f"o{n}", "fast", {}, key_id="k", address="::1", ticket=True)
            await other.release(f"o{n}", given.epoch, "ended")
        await other.leave(f"o{n}")


@pytest.mark.parametrize("kind", ["string", "set", "zset", "hash"])
@pytest.mark.parametrize("name", [*GLOBAL, *OF_ONE])
async def test_whatever_a_key_of_ours_holds_there_is_a_slot_again(
    slots: Slots, client: Any, name: str, kind: str
) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {}, key_id="k", address="::1")
    await fill(client, name, kind, random.Random(f"{name} {kind}"))
    await everything(slots, slot)
    await recovers(slots)
    await slots.release("s1", slot.epoch, "ended")


async def test_garbage_everywhere_ends_nothing(slots: Slots, client: Any) -> None:
    rng = random.Random(7)
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {}, key_id="k", address="::1")
    for _ in range(40):
        for name in rng.sample([*GLOBAL, *OF_ONE], 3):
            kind = rng.choice(["string", "set", "zset", "hash"])
            await fill(client, name, kind, rng)
        await everything(slots, slot)
    await client.flushall()
    await recovers(slots)


async def test_slots_of_nobody_come_back(slots: Slots, client: Any) -> None:
    await register(slots, worker("a", 2))
    slot = await slots.acquire("s1", "fast", {})
    await client.sadd(f"{PREFIX}worker:a:sessions", "nobody")
    await client.sadd(f"{PREFIX}sessions:active", "nobody either")
    with pytest.raises(NoCapacity):
        await slots.acquire("s2", "fast", {})
    await slots.expire()
    assert await active(slots) == {"a": 1}
    assert [s["session_id"] for s in await slots.sessions()] == ["s1"]
    # A slot that has lost its lease has one again, and ends with it.
    await client.delete(f"{PREFIX}leases")
    await slots.expire()
    assert await client.zscore(f"{PREFIX}leases", "s1")
    assert await active(slots) == {"a": 1}
    assert await slots.release("s1", slot.epoch, "ended")


async def test_who_stands_in_line_without_a_ticket_keeps_nobody_waiting(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a", 1))
    await client.sadd(f"{PREFIX}queues", "fast")
    await client.zadd(f"{PREFIX}queue:fast", {"nobody": 1, "nobody else": 2})
    assert await slots.acquire("s1", "fast", {})


async def test_a_lease_for_ever_ends(slots: Slots, client: Any) -> None:
    await register(slots, worker("a", 1))
    await slots.acquire("s1", "fast", {})
    await client.zadd(f"{PREFIX}leases", {"s1": 1e18})
    await slots.expire()
    seconds = (await client.time())[0]
    assert await client.zscore(f"{PREFIX}leases", "s1") < seconds + 60


@pytest.mark.parametrize("heartbeat", ["9e99", "99999999999", "nan", "abc", ""])
async def test_a_heartbeat_that_never_was_makes_no_worker_alive(
    slots: Slots, client: Any, heartbeat: str
) -> None:
    await register(slots, worker("a"))
    await client.hset(f"{PREFIX}worker:a", "heartbeat_at", heartbeat)
    with pytest.raises(NoCapacity):
        await slots.acquire("s1", "fast", {})
    await register(slots, worker("a", instance="another", endpoint="ws://elsewhere:1"))


@pytest.mark.parametrize("endpoint", ["", "http://a", "ws://a b", "\xff"])
async def test_a_worker_that_cannot_be_reached_by_its_endpoint_is_given_nothing(
    slots: Slots, client: Any, endpoint: str
) -> None:
    await register(slots, worker("a"), worker("b"))
    await client.hset(f"{PREFIX}worker:a", "endpoint", endpoint)
    assert (await slots.acquire("s1", "fast", {})).worker_id == "b"


@pytest.mark.parametrize("said", ["[" * 100_000, b"\xff\xfe", "7", '{"type": 1}', "null", ""])
async def test_whatever_is_published_who_follows_hears_the_next_event(
    slots: Slots, client: Any, said: Any
) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    reached = asyncio.Event()

    async def connected() -> None:
        reached.set()

    async def told(event: Any) -> None:
        heard.put_nowait(event)

    following = asyncio.create_task(slots.server.follow(connected, told))
    await asyncio.wait_for(reached.wait(), 5)
    reached.clear()
    await client.publish(EVENTS, said)
    await slots.server.announce({"type": "session.terminate", "session_id": "s1"})
    assert (await asyncio.wait_for(heard.get(), 5))["session_id"] == "s1"
    assert not reached.is_set()  # in one go
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError, RedisError):
        await following
