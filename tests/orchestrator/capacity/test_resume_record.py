"""
What a session is continued from, kept in a real Redis.
"""

from typing import Any

from support.registered import PREFIX, register, worker

from dalston.orchestrator.capacity.slots import Slots

KEY = f"{PREFIX}session:s1:resume"


async def test_what_is_kept_adds_up(slots: Slots) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {})
    assert await slots.kept("s1") is None
    first = {"snapshot": "{}", "seg_0001": "a"}
    assert await slots.keep("s1", slot.epoch, first, "key", whole=True) == "kept"
    then = {"snapshot": '{"x":1}', "seg_0002": "b"}
    assert await slots.keep("s1", slot.epoch, then, "another") == "kept"
    assert await slots.kept("s1") == {
        "snapshot": '{"x":1}',
        "seg_0001": "a",
        "seg_0002": "b",
        "key_id": "key",
    }


async def test_it_is_kept_for_two_minutes_after_the_last_word_of_its_gateway(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {})
    await slots.keep("s1", slot.epoch, {"snapshot": "{}"}, whole=True)
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
    await slots.keep("s1", slot.epoch, {"snapshot": "{}"}, whole=True)
    await slots.release("s1", slot.epoch, "error")
    assert await slots.keep("s1", slot.epoch, {"seg_0001": "a"}) == "kept"
    assert await slots.kept("s1") == {"snapshot": "{}", "seg_0001": "a", "key_id": ""}


async def test_an_older_epoch_keeps_nothing(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"), worker("b"))
    first = await slots.acquire("s1", "fast", {})
    await slots.keep("s1", first.epoch, {"snapshot": "old"}, whole=True)
    second = await slots.acquire("s1", "fast", {})
    assert await slots.keep("s1", first.epoch, {"snapshot": "older"}) == "taken_over"
    assert await slots.kept("s1") == {"snapshot": "old", "key_id": ""}
    await client.expire(KEY, 5)
    assert await slots.renew([first]) == {"s1"}
    assert await client.ttl(KEY) <= 5
    assert await slots.keep("s1", second.epoch, {"snapshot": "new"}) == "kept"
    assert await slots.kept("s1") == {"snapshot": "new", "key_id": ""}


async def test_it_is_kept_for_a_session_that_redis_has_lost(slots: Slots, client: Any) -> None:
    assert await slots.keep("s1", 2, {"snapshot": "{}"}, whole=True) == "kept"
    assert await slots.keep("s1", 1, {"snapshot": "older"}, whole=True) == "taken_over"
    assert await slots.kept("s1") == {"snapshot": "{}", "key_id": ""}
    assert 118 <= await client.ttl(KEY) <= 120


async def test_a_part_is_not_kept_without_the_rest(slots: Slots, client: Any) -> None:
    assert await slots.keep("s1", 1, {"config": "{}", "seg_0001": "a"}, whole=True) == "kept"
    await client.flushall()
    assert await slots.keep("s1", 1, {"seg_0002": "b"}) == "lost"
    assert await slots.kept("s1") is None


async def test_an_older_epoch_on_record_is_no_owner(slots: Slots) -> None:
    await register(slots, worker("a"))
    await slots.acquire("s1", "fast", {})
    assert await slots.keep("s1", 2, {"config": "{}"}, whole=True) == "kept"
