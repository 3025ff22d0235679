"""
What a session is continued from, kept in a real Redis.
"""

import asyncio
from typing import Any

import pytest
from support.registered import PREFIX, final, register, snapshot, worker

from dalston.orchestrator.capacity.slots import PART, Slots

KEY = f"{PREFIX}session:s1:resume"


async def test_what_is_kept_adds_up(slots: Slots) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {})
    assert await slots.kept("s1") is None
    first = {"snapshot": "{}", "seg_0001": "a", "config": "{}"}
    assert await slots.keep("s1", slot.epoch, first, "key", whole=True) == "kept"
    then = {"snapshot": '{"x":1}', "seg_0002": "b"}
    assert await slots.keep("s1", slot.epoch, then, "another") == "kept"
    assert await slots.kept("s1") == {
        "snapshot": '{"x":1}',
        "seg_0001": "a",
        "seg_0002": "b",
        "config": "{}",
        "key_id": "key",
    }


async def test_it_is_kept_for_two_minutes_after_the_last_word_of_its_gateway(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {})
    await slots.keep("s1", slot.epoch, {"snapshot": "{}", "config": "{}"}, whole=True)
    assert 118 <= await client.ttl(KEY) <= 120
    await client.expire(KEY, 5)
    await slots.renew([slot])
    assert 118 <= await client.ttl(KEY) <= 120
    await client.expire(KEY, 5)
    await slots.keep("s1", slot.epoch, {})
    assert 118 <= await client.ttl(KEY) <= 120


async def test_it_outlives_the_slot(slots: Slots) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {})
    await slots.keep("s1", slot.epoch, {"snapshot": "{}", "config": "{}"}, whole=True)
    await slots.release("s1", slot.epoch, "error")
    assert await slots.keep("s1", slot.epoch, {"seg_0001": "a"}) == "kept"
    assert await slots.kept("s1") == {
        "snapshot": "{}",
        "config": "{}",
        "seg_0001": "a",
        "key_id": "",
    }


async def test_an_older_epoch_keeps_nothing(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"), worker("b"))
    first = await slots.acquire("s1", "fast", {})
    await slots.keep("s1", first.epoch, {"snapshot": "old", "config": "{}"}, whole=True)
    second = await slots.acquire("s1", "fast", {})
    assert await slots.keep("s1", first.epoch, {"snapshot": "older"}) == "taken_over"
    assert await slots.kept("s1") == {"snapshot": "old", "config": "{}", "key_id": ""}
    await client.expire(KEY, 5)
    assert await slots.renew([first]) == {"s1"}
    assert await client.ttl(KEY) <= 5
    assert await slots.keep("s1", second.epoch, {"snapshot": "new"}) == "kept"
    assert await slots.kept("s1") == {"snapshot": "new", "config": "{}", "key_id": ""}


async def test_it_is_kept_for_a_session_that_redis_has_lost(slots: Slots, client: Any) -> None:
    assert await slots.keep("s1", 2, {"snapshot": "{}", "config": "{}"}, whole=True) == "kept"
    assert (
        await slots.keep("s1", 1, {"snapshot": "older", "config": "{}"}, whole=True) == "taken_over"
    )
    assert await slots.kept("s1") == {"snapshot": "{}", "config": "{}", "key_id": ""}
    assert 118 <= await client.ttl(KEY) <= 120


async def test_a_part_is_not_kept_without_the_rest(slots: Slots, client: Any) -> None:
    assert await slots.keep("s1", 1, {"config": "{}", "seg_0001": "a"}, whole=True) == "kept"
    await client.flushall()
    assert await slots.keep("s1", 1, {"seg_0002": "b"}) == "lost"
    assert await slots.kept("s1") is None


async def test_a_part_is_not_kept_where_some_of_the_rest_is_missing(
    slots: Slots, client: Any
) -> None:
    """As on a replica that lacks the last write when it is promoted."""
    fields = {"seg_0000": "a", "snapshot": "{}", "config": "{}"}
    assert await slots.keep("s1", 1, fields, whole=True) == "kept"
    behind = await client.dump(KEY)
    assert await slots.keep("s1", 1, {"seg_0001": "b"}, before=3) == "kept"
    await client.restore(KEY, 120_000, behind, replace=True)
    then = {"seg_0002": "c", "snapshot": '{"x":1}'}
    assert await slots.keep("s1", 1, then, before=4) == "lost"
    assert await slots.kept("s1") == fields | {"key_id": ""}
    everything = fields | then | {"seg_0001": "b"}
    assert await slots.keep("s1", 1, everything, whole=True) == "kept"
    assert await slots.kept("s1") == everything | {"key_id": ""}


async def test_an_older_epoch_on_record_is_no_owner(slots: Slots) -> None:
    await register(slots, worker("a"))
    await slots.acquire("s1", "fast", {})
    assert await slots.keep("s1", 2, {"config": "{}"}, whole=True) == "kept"


async def test_a_record_of_twenty_thousand_finals_can_be_written(slots: Slots, client: Any) -> None:
    finals = {f"seg_{number:04d}": final(0) for number in range(20_000)}
    fields = {**finals, "config": "{}", "snapshot": snapshot(0)}
    await client.config_resetstat()
    assert await slots.keep("s1", 1, fields, whole=True) == "kept"
    assert await client.hlen(KEY) == len(fields) + 2
    # In parts, so that others are answered in between.
    calls = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert calls >= 20_000 / PART


async def test_a_record_is_seen_only_when_it_is_whole(
    slots: Slots, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dalston.orchestrator.capacity.slots.PART", 10)
    fields = {**{f"seg_{number:04d}": final(0) for number in range(200)}, "config": "{}"}
    writing = asyncio.create_task(slots.keep("s1", 1, fields, whole=True))
    parts = 0
    while not writing.done():
        parts += 0 < await client.hlen(KEY) < len(fields)
        kept = await slots.kept("s1")
        assert kept is None or kept.keys() > fields.keys()
    assert parts > 1
    assert await slots.kept("s1") == fields | {"key_id": ""}
