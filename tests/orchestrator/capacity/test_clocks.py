"""
Clocks that are set: what was written by Redis's clock of before lasts no longer than it should, and
what a jump has ended is written again.
"""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from support.registered import PREFIX, active, register, worker

from dalston.orchestrator.capacity import slots as module
from dalston.orchestrator.capacity.slots import LEASE_S, NoCapacity, Slots

HOUR_S = 3600


async def test_slots_of_the_dead_come_back_after_a_lease_though_the_clock_was_set_back(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a"))
    await slots.acquire("s1", "fast", {})
    now = await slots.now()
    await client.zadd(f"{PREFIX}leases", {"s1": now + HOUR_S})  # by the clock of before
    assert await slots.expire() == 0
    assert now < await client.zscore(f"{PREFIX}leases", "s1") < now + LEASE_S + 5
    await client.zadd(f"{PREFIX}leases", {"s1": now - 1})
    assert await slots.expire() == 1
    assert await active(slots) == {"a": 0}


async def test_a_place_in_line_is_not_kept_for_who_left_it_before_the_clock_was_set_back(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a", 0))
    with pytest.raises(NoCapacity):
        await slots.acquire("s1", "fast", {}, ticket=True)
    now = await slots.now()
    await client.zadd(f"{PREFIX}tickets", {"s1": now + HOUR_S})
    await slots.expire()
    assert await client.zscore(f"{PREFIX}tickets", "s1") < now + 10


async def test_a_worker_that_died_is_offline_soon_though_the_clock_was_set_back(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a"))
    now = await slots.now()
    await client.hset(f"{PREFIX}worker:a", "heartbeat_at", now + HOUR_S)
    await slots.expire()
    (record,) = await slots.workers()
    assert now - 5 < record.heartbeat_at < now + 5
    assert record.status == "ready"  # it has its time, as any other


async def test_a_slot_is_given_though_redis_clock_was_set_forward_since_the_last_question(
    slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(slots, worker("a"))
    await slots.acquire("s1", "fast", {})
    # Ours set back is the same as Redis's set forward.
    monkeypatch.setattr(
        module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() - HOUR_S)
    )
    assert (await slots.acquire("s2", "fast", {})).worker_id == "a"


async def test_of_sessions_those_are_told_of_which_nothing_is_kept(slots: Slots) -> None:
    assert await slots.not_kept([]) == []
    await slots.keep("s1", 1, {"config": "{}"}, whole=True)
    assert await slots.not_kept(["s1"]) == []
    assert await slots.not_kept(["s0", "s1", "s2"]) == ["s0", "s2"]
