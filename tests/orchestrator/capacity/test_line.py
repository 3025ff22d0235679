"""
The line for a slot, in a real Redis: nobody overtakes, nobody blocks whom he does not concern.
"""

from typing import Any

import pytest
from support.registered import PREFIX, register, worker

from dalston.orchestrator.capacity.slots import NoCapacity, Slot, Slots


async def ask(
    slots: Slots, session: str, ticket: bool | str = True, variant: str = "fast", **given: Any
) -> Slot | NoCapacity:
    try:
        return await slots.acquire(session, variant, {}, ticket=ticket, **given)
    except NoCapacity as refused:
        return refused


async def position(slots: Slots, session: str, variant: str = "fast") -> int:
    answer = await ask(slots, session, variant=variant)
    assert isinstance(answer, NoCapacity)
    return answer.position


async def served(slots: Slots, session: str, variant: str = "fast", **given: Any) -> bool:
    return isinstance(await ask(slots, session, variant=variant, **given), Slot)


async def full(slots: Slots, *capacities: int) -> list[Slot]:
    """Workers, every slot of them taken."""
    await register(slots, *(worker(f"w{n}", c) for n, c in enumerate(capacities)))
    return [await slots.acquire(f"early{n}", "fast", {}) for n in range(sum(capacities))]


async def end(slots: Slots, slot: Slot) -> None:
    assert await slots.release(slot.session_id, slot.epoch, "ended")


async def test_positions_are_in_order_of_arrival(slots: Slots) -> None:
    await full(slots, 1)
    assert [await position(slots, s) for s in "abc"] == [1, 2, 3]
    assert [await position(slots, s) for s in "cab"] == [3, 1, 2]
    await slots.leave("a")
    assert [await position(slots, s) for s in "bc"] == [1, 2]


async def test_the_first_in_line_has_the_free_slot_whoever_asks_first(slots: Slots) -> None:
    (slot,) = await full(slots, 1)
    assert [await position(slots, s) for s in "ab"] == [1, 2]
    await end(slots, slot)
    assert await position(slots, "b") == 2
    assert await served(slots, "a")
    assert await position(slots, "b") == 1


async def test_so_many_are_served_as_slots_are_free(slots: Slots) -> None:
    early = await full(slots, 2, 1)
    for session in "abc":
        await position(slots, session)
    await end(slots, early[0])
    await end(slots, early[2])
    assert not await served(slots, "c")
    assert await served(slots, "b")
    assert not await served(slots, "c")
    assert await served(slots, "a")


@pytest.mark.parametrize("degrade", [False, True])
async def test_who_does_not_wait_takes_nothing_from_those_who_do(
    slots: Slots, degrade: bool
) -> None:
    early = await full(slots, 3)
    assert await position(slots, "a") == 1
    await end(slots, early[0])
    refused = await ask(slots, "b", False, degrade=degrade)
    assert isinstance(refused, NoCapacity)
    assert (refused.reason, refused.position) == ("full", 0)
    # What the waiting leave is for everybody.
    await end(slots, early[1])
    assert await served(slots, "b", ticket=False, degrade=degrade)
    assert await served(slots, "a")


async def test_a_takeover_waits_for_nobody(slots: Slots) -> None:
    first, _ = await full(slots, 1, 1)
    assert await position(slots, "a") == 1
    assert (await slots.acquire(first.session_id, "fast", {})).epoch == 2


async def test_who_waits_for_a_variant_that_has_no_room_does_not_hold_up_others(
    slots: Slots,
) -> None:
    await register(slots, worker("a", 1, models=["accurate"]), worker("f", 1, models=["fast"]))
    accurate = await slots.acquire("early1", "accurate", {})
    fast = await slots.acquire("early2", "fast", {})
    assert [await position(slots, s, "accurate") for s in "ab"] == [1, 2]
    assert await position(slots, "c", "fast") == 1
    await end(slots, fast)
    assert await served(slots, "c", "fast")
    await end(slots, accurate)
    assert not await served(slots, "b", "accurate")
    assert await served(slots, "a", "accurate")


async def test_a_worker_with_both_variants_goes_to_who_came_first(slots: Slots) -> None:
    early = await full(slots, 2)
    assert await position(slots, "a", "accurate") == 1
    assert await position(slots, "b", "fast") == 2
    await end(slots, early[0])
    assert not await served(slots, "b", "fast")
    assert await served(slots, "a", "accurate")
    await end(slots, early[1])
    assert await served(slots, "b", "fast")


async def test_of_two_free_slots_the_one_that_those_before_cannot_use_is_taken(
    slots: Slots,
) -> None:
    await register(slots, worker("both", 2), worker("fast", 4, models=["fast"]))
    early = [await slots.acquire(f"a{n}", "accurate", {}) for n in range(2)]
    early += [await slots.acquire(f"f{n}", "fast", {}) for n in range(4)]
    assert [await position(slots, s, "accurate") for s in "ab"] == [1, 2]
    assert await position(slots, "c", "fast") == 3
    await end(slots, early[0])
    await end(slots, early[5])
    answer = await ask(slots, "c")
    assert isinstance(answer, Slot)
    assert answer.worker_id == "fast"  # though it is the fuller one
    assert await served(slots, "a", "accurate")


async def test_degrading_takes_nothing_from_those_who_wait(slots: Slots) -> None:
    await register(slots, worker("a", 1, models=["accurate"]), worker("f", 2, models=["fast"]))
    early = [await slots.acquire("e0", "accurate", {})]
    early += [await slots.acquire(f"e{n}", "fast", {}) for n in (1, 2)]
    assert await position(slots, "waits", "fast") == 1
    await end(slots, early[1])
    assert not await served(slots, "x", "accurate", ticket=False, degrade=True)
    await end(slots, early[2])
    assert await served(slots, "x", "accurate", ticket=False, degrade=True)
    assert await served(slots, "waits", "fast")


async def test_a_variant_that_no_worker_has_is_waited_for_at_any(slots: Slots) -> None:
    await register(slots, worker("f", 1, models=["fast"]))
    slot = await slots.acquire("early", "fast", {})
    assert await position(slots, "a", "accurate") == 1
    assert await position(slots, "b", "fast") == 2
    await end(slots, slot)
    assert not await served(slots, "b", "fast")
    assert await served(slots, "a", "accurate")


async def test_who_asks_no_more_has_his_place_until_his_ticket_ends(
    slots: Slots, client: Any
) -> None:
    (slot,) = await full(slots, 1)
    assert [await position(slots, s) for s in "ab"] == [1, 2]
    seconds = (await client.time())[0]
    assert 4 <= await client.zscore(f"{PREFIX}tickets", "a") - seconds <= 6
    await client.zadd(f"{PREFIX}tickets", {"a": seconds + 1})
    await position(slots, "a")
    assert 4 <= await client.zscore(f"{PREFIX}tickets", "a") - seconds <= 6
    await end(slots, slot)
    assert not await served(slots, "b")
    # Its gateway died five seconds ago.
    await client.zadd(f"{PREFIX}tickets", {"a": seconds - 1})
    assert await served(slots, "b")
    assert not await client.exists(f"{PREFIX}session:a")
    assert await client.zcard(f"{PREFIX}queue:fast") == 0


async def test_a_line_that_redis_lost_is_the_same_again(slots: Slots, client: Any) -> None:
    await full(slots, 1)
    came: dict[str, str] = {}
    for session in "abc":
        answer = await ask(slots, session)
        assert isinstance(answer, NoCapacity)
        came[session] = answer.came
    await client.flushall()
    # No worker has registered yet: they wait all the same, in whatever order they ask.
    for session in "cba":
        answer = await ask(slots, session, came[session])
        assert isinstance(answer, NoCapacity)
        assert (answer.reason, answer.came) == ("no_workers", came[session])
    await register(slots, worker("w0", 1))
    assert await position(slots, "new") == 4
    assert await position(slots, "c") == 3
    assert await served(slots, "a")


async def test_where_there_is_no_worker_nobody_begins_to_wait(slots: Slots) -> None:
    refused = await ask(slots, "a")
    assert isinstance(refused, NoCapacity)
    assert (refused.reason, refused.position) == ("no_workers", 0)


async def test_while_workers_are_restarted_callers_wait(slots: Slots) -> None:
    await register(slots, worker("a", status="draining"))
    assert await position(slots, "a") == 1
    await register(slots, worker("b"))
    assert await served(slots, "a")


async def test_the_line_has_an_end(slots: Slots, client: Any) -> None:
    await full(slots, 1)
    assert await position(slots, "a") == 1
    later = (await client.time())[0] + 60
    await client.zadd(f"{PREFIX}tickets", {f"waiter{n}": later for n in range(999)})
    refused = await ask(slots, "one too many")
    assert isinstance(refused, NoCapacity)
    assert refused.position == 0
    assert await position(slots, "a") == 1


async def test_leaving_takes_no_slot_from_who_has_one(slots: Slots) -> None:
    await register(slots, worker("a", 1))
    assert await served(slots, "s1")
    await slots.leave("s1")
    assert not await served(slots, "s2")


async def test_a_session_that_waits_to_go_on_keeps_its_epoch(slots: Slots, client: Any) -> None:
    (slot,) = await full(slots, 1)
    await end(slots, slot)
    other = await slots.acquire("other", "fast", {})
    assert await position(slots, slot.session_id) == 1
    await slots.leave(slot.session_id)
    assert await client.hget(f"{PREFIX}session:{slot.session_id}", "status") == "ended"
    assert await position(slots, slot.session_id) == 1
    await end(slots, other)
    again = await ask(slots, slot.session_id)
    assert isinstance(again, Slot)
    assert again.epoch == 2
