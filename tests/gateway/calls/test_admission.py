"""
Who gets a slot, who waits and who is sent away: several gateways' worth of it over a real Redis.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from support.redis_process import redis_process
from support.registered import PREFIX, active, register, served, worker

from dalston.gateway.calls.admission import Admission, admit
from dalston.orchestrator.capacity.redis_client import redis_client
from dalston.orchestrator.capacity.slots import NoCapacity, Slot, Slots, TooMany
from dalston.orchestrator.protocol.messages import Queued


@pytest.fixture
async def client(redis_url: str) -> AsyncGenerator[Any]:
    client: Any = redis_client(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def slots(client: Any) -> Slots:
    return Slots(client)


@pytest.fixture
async def gateways(redis_url: str) -> AsyncGenerator[list[Slots]]:
    clients = [redis_client(redis_url) for _ in range(4)]
    yield [Slots(client) for client in clients]
    for client in clients:
        await client.aclose()


def asks(session: str, strategy: Any = "queue", variant: str = "fast", **given: Any) -> Admission:
    return Admission(session, variant, {"model": variant}, strategy=strategy, **given)


async def deaf(_: Queued) -> None:
    """Tells nobody."""


async def not_waiting(queued: Queued) -> None:
    pytest.fail(f"nobody is to wait here: {queued}")


async def waiters(client: Any) -> int:
    return await client.zcard(f"{PREFIX}tickets")


async def until_waiting(client: Any, count: int) -> None:
    async with asyncio.timeout(10):
        while await waiters(client) != count:
            await asyncio.sleep(0.01)


async def end(slots: Slots, slot: Slot) -> None:
    assert await slots.release(slot.session_id, slot.epoch, "ended")


async def test_with_a_free_slot_every_strategy_gives_it_at_once(slots: Slots) -> None:
    await register(slots, worker("a"))
    for strategy in ("reject", "queue", "degrade"):
        slot = await admit(slots, asks(strategy, strategy), not_waiting)
        assert (slot.session_id, slot.worker_id) == (strategy, "a")
    assert await active(slots) == {"a": 3}


# 002-15
@pytest.mark.parametrize("strategy", ["reject", "degrade"])
async def test_without_a_free_slot_there_is_an_answer_at_once(
    slots: Slots, client: Any, strategy: str
) -> None:
    await register(slots, worker("a", 1))
    await admit(slots, asks("s1"), deaf)
    with pytest.raises(NoCapacity) as refused:
        await admit(slots, asks("s2", strategy), not_waiting)
    assert refused.value.reason == "full"
    assert await waiters(client) == 0


# 002-17, C-24
async def test_degrading_is_down_to_the_smaller_variant_and_never_up(slots: Slots) -> None:
    fast, accurate = worker("f", 2, models=["fast"]), worker("a", 1, models=["accurate"])
    await register(slots, fast, accurate)
    assert (await admit(slots, asks("s1", variant="accurate"), deaf)).worker_id == "a"
    with pytest.raises(NoCapacity):
        await admit(slots, asks("s2", "reject", variant="accurate"), deaf)
    degraded = await admit(slots, asks("s2", "degrade", variant="accurate"), deaf)
    assert (degraded.worker_id, degraded.variant) == ("f", "fast")
    assert (await admit(slots, asks("s3"), deaf)).worker_id == "f"
    await slots.release("s1", 1, "ended")
    with pytest.raises(NoCapacity):
        await admit(slots, asks("s4", "degrade"), deaf)


async def test_who_waits_is_told_each_new_position_once(
    slots: Slots, client: Any, gateways: list[Slots]
) -> None:
    await register(slots, worker("a", 1))
    running = await admit(slots, asks("running"), deaf)
    told: dict[str, list[Queued]] = {"first": [], "second": []}

    async def wait(session: str, gateway: Slots) -> Slot:
        async def tell(queued: Queued) -> None:
            told[session].append(queued)

        return await admit(gateway, asks(session, timeout_s=20.0), tell)

    first = asyncio.create_task(wait("first", gateways[0]))
    await until_waiting(client, 1)
    second = asyncio.create_task(wait("second", gateways[1]))
    await until_waiting(client, 2)
    await asyncio.sleep(0.5)
    await end(slots, running)
    slot = await asyncio.wait_for(first, 1)
    async with asyncio.timeout(5):
        while len(told["second"]) < 2:
            await asyncio.sleep(0.01)
    await end(slots, slot)
    await asyncio.wait_for(second, 1)
    assert [queued.position for queued in told["first"]] == [1]
    assert [queued.position for queued in told["second"]] == [2, 1]
    assert 19 < told["first"][0].timeout_seconds <= 20
    assert told["second"][1].timeout_seconds < told["second"][0].timeout_seconds
    assert await waiters(client) == 0


async def test_nobody_waits_longer_than_the_timeout(slots: Slots, client: Any) -> None:
    await register(slots, worker("a", 1))
    await admit(slots, asks("running"), deaf)
    began = time.monotonic()
    with pytest.raises(NoCapacity) as refused:
        await admit(slots, asks("s1", timeout_s=0.4), deaf)
    assert time.monotonic() - began >= 0.4
    assert refused.value.reason == "full"
    assert await waiters(client) == 0
    assert not await client.exists(f"{PREFIX}session:s1")


async def test_a_caller_that_vanishes_leaves_the_line_at_once(
    slots: Slots, client: Any, gateways: list[Slots]
) -> None:
    await register(slots, worker("a", 1))
    running = await admit(slots, asks("running"), deaf)
    vanishing = asyncio.create_task(admit(gateways[0], asks("s1", address="::1"), deaf))
    await until_waiting(client, 1)
    staying = asyncio.create_task(admit(gateways[1], asks("s2"), deaf))
    await until_waiting(client, 2)
    vanishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await vanishing
    assert await waiters(client) == 1
    assert await client.scard(f"{PREFIX}address:::1:sessions") == 0
    await end(slots, running)
    assert (await asyncio.wait_for(staying, 1)).session_id == "s2"


async def test_a_caller_that_cannot_be_told_leaves_the_line(slots: Slots, client: Any) -> None:
    await register(slots, worker("a", 1))
    await admit(slots, asks("running"), deaf)

    async def tell(_: Queued) -> None:
        raise ConnectionResetError("it is gone")

    with pytest.raises(ConnectionResetError):
        await admit(slots, asks("s1"), tell)
    assert await waiters(client) == 0


@pytest.mark.parametrize("strategy", ["reject", "queue"])
async def test_whenever_a_caller_vanishes_no_slot_is_left_behind(
    slots: Slots, client: Any, strategy: str
) -> None:
    await register(slots, worker("a", 40))
    chance = random.Random(4)

    async def vanish(n: int) -> None:
        admitting = asyncio.create_task(admit(slots, asks(f"s{n}", strategy), deaf))
        await asyncio.sleep(chance.random() * 0.03)
        admitting.cancel()
        try:
            await end(slots, await admitting)
        except (asyncio.CancelledError, NoCapacity):
            pass

    await asyncio.gather(*map(vanish, range(200)))
    assert await active(slots) == {"a": 0}
    assert await waiters(client) == 0


async def test_a_gateway_that_dies_leaves_no_ghost_in_the_line(slots: Slots, client: Any) -> None:
    await register(slots, worker("a", 1))
    running = await admit(slots, asks("running"), deaf)
    # A gateway that asked, and then no more.
    with pytest.raises(NoCapacity):
        await slots.acquire("ghost", "fast", {}, ticket=True)
    alive = asyncio.create_task(admit(slots, asks("alive"), deaf))
    await until_waiting(client, 2)
    await end(slots, running)
    # It stands before us for as long as a living one may be silent.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(alive), 3)
    await asyncio.wait_for(alive, 20)


@pytest.mark.parametrize("of", ["key", "address"])
async def test_one_session_too_many_is_refused_in_every_strategy(slots: Slots, of: str) -> None:
    await register(slots, worker("a"))
    limits: dict[str, Any] = {"key_id": "k", "key_limit": 1}
    if of == "address":
        limits = {"address": "::1", "address_limit": 1}
    await admit(slots, asks("s1", **limits), deaf)
    for strategy in ("reject", "queue", "degrade"):
        with pytest.raises(TooMany) as refused:
            await admit(slots, asks("s2", strategy, **limits), not_waiting)
        assert refused.value.of == of


@pytest.mark.parametrize("strategy", ["reject", "queue"])
async def test_without_redis_there_is_an_answer_at_once(tmp_path: Path, strategy: str) -> None:
    with redis_process(tmp_path) as redis:
        client = redis_client(redis.url)
        redis.kill()
        async with asyncio.timeout(5):
            with pytest.raises(RedisError):
                await admit(Slots(client), asks("s1", strategy), not_waiting)
        await client.aclose()


async def test_who_waits_keeps_the_place_while_redis_is_started_again(tmp_path: Path) -> None:
    with redis_process(tmp_path) as redis:
        client: Any = redis_client(redis.url)
        slots = Slots(client)
        await register(slots, worker("a", 1))
        running = await admit(slots, asks("running"), deaf)
        order = list[str]()

        async def wait(session: str) -> None:
            slot = await admit(slots, asks(session), deaf)
            order.append(session)
            await end(slots, slot)

        waiting = list[asyncio.Task[None]]()
        for n in range(10):
            waiting.append(asyncio.create_task(wait(f"s{n}")))
            await until_waiting(client, n + 1)
        redis.kill()
        await asyncio.sleep(0.5)
        redis.start()
        await until_waiting(client, 10)
        # Only now does the worker say what it has.
        await slots.heartbeat(worker("a", 1), served(running=running.epoch))
        await asyncio.sleep(0.3)
        assert order == []
        await end(slots, running)
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
        assert order == [f"s{n}" for n in range(10)]
        await client.aclose()


async def test_two_hundred_that_wait_are_all_served_in_order(
    slots: Slots, client: Any, gateways: list[Slots]
) -> None:
    await register(slots, worker("a", 6), worker("b", 4))
    room = 10
    running = [await slots.acquire(f"early{n}", "fast", {}) for n in range(room)]
    served, most, overtakers = list[int](), 0, 0

    async def wait(n: int) -> None:
        nonlocal most
        slot = await admit(gateways[n % 4], asks(f"s{n}", timeout_s=60.0), deaf)
        served.append(n)
        most = max(most, sum((await active(slots)).values()))
        await asyncio.sleep(0.01)
        await end(slots, slot)

    async def overtake() -> None:
        """Callers who do not wait, all the time."""
        nonlocal overtakers
        while True:
            try:
                slot = await admit(slots, asks("hasty", "reject"), deaf)
            except NoCapacity:
                await asyncio.sleep(0.005)
            else:
                overtakers += await waiters(client) >= room  # who would take every slot there is
                await end(slots, slot)

    waiting = list[asyncio.Task[None]]()
    for n in range(200):
        waiting.append(asyncio.create_task(wait(n)))
        await until_waiting(client, n + 1)
    hasty = asyncio.create_task(overtake())
    for slot in running:
        await end(slots, slot)
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)
    hasty.cancel()
    # So many are served at once and hear of it in any order, some after others have left.
    assert sorted(served) == list(range(200))
    assert max(abs(place - n) for place, n in enumerate(served)) < 5 * room
    assert most <= room
    assert overtakers == 0


# Two channels of one connection.


async def pair(slots: Slots, name: str, **given: Any) -> list[str]:
    """The workers of two sessions that are admitted together."""
    slot = await admit(slots, asks(f"{name}0", partner=f"{name}1", **given), deaf)
    assert slot.partner
    assert (slot.session_id, slot.partner.session_id) == (f"{name}0", f"{name}1")
    return [slot.worker_id, slot.partner.worker_id]


async def test_partners_are_spread_as_others_are(slots: Slots) -> None:
    await register(slots, worker("a", 3), worker("b", 1))
    assert sorted(await pair(slots, "s")) == ["a", "b"]
    assert await pair(slots, "t") == ["a", "a"]
    with pytest.raises(NoCapacity):
        await admit(slots, asks("u", "reject"), deaf)


async def test_partners_are_given_slots_together_or_not_at_all(slots: Slots, client: Any) -> None:
    await register(slots, worker("a", 1), worker("b", 2))
    await pair(slots, "s")
    with pytest.raises(NoCapacity):
        await pair(slots, "t", strategy="reject")
    assert await active(slots) == {"a": 1, "b": 1}
    with pytest.raises(TooMany):
        await pair(slots, "t", key_id="k", key_limit=1)
    assert await waiters(client) == 0


async def test_partners_in_line_take_two_places_and_nobody_after_them_takes_one(
    slots: Slots, client: Any, gateways: list[Slots]
) -> None:
    await register(slots, worker("a", 2))
    running = [await admit(slots, asks(f"running{n}"), deaf) for n in range(2)]
    first = asyncio.create_task(pair(gateways[0], "s"))
    await until_waiting(client, 2)
    told = list[int]()

    async def tell(queued: Queued) -> None:
        told.append(queued.position)

    second = asyncio.create_task(admit(gateways[1], asks("t"), tell))
    await until_waiting(client, 3)
    await end(slots, running[0])
    await asyncio.sleep(0.5)  # both ask several times
    assert not first.done()
    assert not second.done()
    await end(slots, running[1])
    assert await asyncio.wait_for(first, 2) == ["a", "a"]
    assert told[0] == 3
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert await waiters(client) == 0


async def test_many_partners_in_line_all_get_their_turn(
    slots: Slots, gateways: list[Slots]
) -> None:
    await register(slots, worker("a", 3))

    async def call(n: int) -> None:
        slot = await admit(gateways[n % 4], asks(f"s{n}", partner=f"p{n}"), deaf)
        await asyncio.sleep(0.01)
        for given in (slot, slot.partner):
            assert given
            await end(slots, given)

    async with asyncio.timeout(30):
        await asyncio.gather(*map(call, range(8)))
    assert await active(slots) == {"a": 0}


async def test_partners_that_vanish_leave_no_slot_and_no_place(slots: Slots, client: Any) -> None:
    await register(slots, worker("a", 1))
    waiting = asyncio.create_task(pair(slots, "s"))
    await until_waiting(client, 2)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await waiters(client) == 0
    assert await active(slots) == {"a": 0}
