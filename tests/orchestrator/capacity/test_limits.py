"""
How many sessions a key or an address may have, counted in a real Redis.
"""

import asyncio
from typing import Any

import pytest
from support.registered import PREFIX, register, worker

from dalston.orchestrator.capacity.slots import NoCapacity, Slot, Slots, TooMany


async def counted(client: Any, of: str) -> set[str]:
    return await client.smembers(f"{PREFIX}{of}:sessions")


@pytest.mark.parametrize("of", ["key", "address"])
async def test_one_more_than_the_limit_is_refused_and_takes_nothing(
    slots: Slots, client: Any, of: str
) -> None:
    await register(slots, worker("a"))
    limits: dict[str, Any] = {"key_id": "k", "key_limit": 2}
    if of == "address":
        limits = {"address": "::1", "address_limit": 2}
    first = await slots.acquire("s1", "fast", {}, **limits)
    await slots.acquire("s2", "fast", {}, **limits)
    with pytest.raises(TooMany) as refused:
        await slots.acquire("s3", "fast", {}, **limits)
    assert refused.value.of == of
    assert await client.scard(f"{PREFIX}worker:a:sessions") == 2
    # Another caller is not concerned, and neither is this one when a session has ended.
    await slots.acquire("s4", "fast", {}, key_id="another", key_limit=2)
    await slots.release("s1", first.epoch, "ended")
    await slots.acquire("s3", "fast", {}, **limits)


async def test_zero_is_no_limit(slots: Slots) -> None:
    await register(slots, worker("a", 8))
    for n in range(8):
        await slots.acquire(f"s{n}", "fast", {}, key_id="k", address="::1")


async def test_a_takeover_does_not_count(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"), worker("b"))
    limits: dict[str, Any] = {"key_id": "k", "key_limit": 1, "address_limit": 1}
    await slots.acquire("s1", "fast", {}, address="::1", **limits)
    again = await slots.acquire("s1", "fast", {}, address="::2", **limits)
    assert again.epoch == 2
    # Its client has come back from elsewhere.
    assert await counted(client, "address:::1") == set()
    assert await counted(client, "address:::2") == {"s1"}
    await slots.release("s1", again.epoch, "ended")
    assert await counted(client, "address:::2") == await counted(client, "key:k") == set()


async def test_a_slot_whose_lease_ran_out_counts_no_more(slots: Slots) -> None:
    await register(slots, worker("a"))
    await slots.acquire("s1", "fast", {}, lease_s=0.05, key_id="k", key_limit=1)
    await asyncio.sleep(0.1)
    await slots.acquire("s2", "fast", {}, key_id="k", key_limit=1)


async def test_a_session_whose_record_was_lost_counts_no_more(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"))
    await client.sadd(f"{PREFIX}key:k:sessions", "sess_nobody_knows")
    await slots.acquire("s1", "fast", {}, key_id="k", key_limit=1)
    assert await counted(client, "key:k") == {"s1"}


async def test_who_waits_in_line_counts(slots: Slots, client: Any) -> None:
    await register(slots, worker("a", 1))
    limits: dict[str, Any] = {"address": "::1", "address_limit": 2, "ticket": True}
    first = await slots.acquire("s1", "fast", {}, **limits)
    with pytest.raises(NoCapacity) as waiting:
        await slots.acquire("s2", "fast", {}, **limits)
    assert waiting.value.position == 1
    with pytest.raises(TooMany):
        await slots.acquire("s3", "fast", {}, **limits)
    # Its own place in line is not one too many.
    await slots.release("s1", first.epoch, "ended")
    assert isinstance(await slots.acquire("s2", "fast", {}, **limits), Slot)
    await slots.release("s2", 1, "ended")
    assert await counted(client, "address:::1") == set()


async def test_who_leaves_the_line_counts_no_more(slots: Slots, client: Any) -> None:
    await register(slots, worker("a", 1))
    await slots.acquire("s1", "fast", {})
    with pytest.raises(NoCapacity):
        await slots.acquire("s2", "fast", {}, key_id="k", key_limit=1, ticket=True)
    await slots.leave("s2")
    assert await counted(client, "key:k") == set()
    assert not await client.exists(f"{PREFIX}session:s2")


async def test_a_hundred_at_once_are_never_more_than_the_limit(slots: Slots) -> None:
    await register(slots, worker("a", 100))

    async def acquire(n: int) -> bool:
        try:
            await slots.acquire(f"s{n}", "fast", {}, key_id="k", key_limit=7)
        except TooMany:
            return False
        return True

    assert sum(await asyncio.gather(*map(acquire, range(100)))) == 7
