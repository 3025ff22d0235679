"""
Who gets which worker: shares of slots, strategies, and what holds whatever comes in which order.
"""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.registered import PREFIX, active, register, served, worker

from dalston.orchestrator.capacity.redis_client import redis_client
from dalston.orchestrator.capacity.slots import NoCapacity, Slot, Slots, Strategy
from dalston.orchestrator.capacity.workers import Served


async def taken(slots: Slots, session: str, variant: str = "accurate", **given: Any) -> Slot | None:
    try:
        return await slots.acquire(session, variant, {"model": variant}, **given)
    except NoCapacity:
        return None


# Shares of slots.


# 002-17, C-24
async def test_degrading_adds_room_where_every_worker_has_both_variants(slots: Slots) -> None:
    await register(slots, worker("a", 2, fast_share=0.25))
    assert await taken(slots, "s1")
    assert await taken(slots, "s2", "fast")
    assert not await taken(slots, "s3")
    degraded = [await taken(slots, f"d{n}", degrade=True) for n in range(4)]
    assert [slot and slot.variant for slot in degraded] == ["fast", "fast", "fast", None]
    assert await active(slots) == {"a": 5}
    (record,) = await slots.workers()
    assert (record.status, record.used, record.available) == ("busy", 2.0, 0)


async def test_without_shares_degrading_adds_nothing(slots: Slots) -> None:
    await register(slots, worker("a", 1))
    assert await taken(slots, "s1")
    assert not await taken(slots, "s2", degrade=True)


async def test_a_session_that_is_degraded_is_recorded_as_what_it_is(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a", 1, models=["fast"]), worker("b", 1, models=["accurate"]))
    await taken(slots, "s1")
    await taken(slots, "s2", degrade=True)
    assert await client.hget(f"{PREFIX}session:s1", "model") == "accurate"
    assert await client.hget(f"{PREFIX}session:s2", "model") == "fast"


async def test_where_only_the_smaller_variant_is_loaded_every_session_takes_its_share(
    slots: Slots,
) -> None:
    await register(slots, worker("a", 1, models=["fast"], fast_share=0.5))
    assert await taken(slots, "s1", "accurate")
    assert await taken(slots, "s2", "accurate")
    assert not await taken(slots, "s3", "accurate")


async def test_what_a_session_takes_survives_a_loss_and_a_takeover(
    slots: Slots, client: Any
) -> None:
    both = [worker(id, 1, fast_share=0.5) for id in "ab"]
    await register(slots, *both)
    first, second = [await slots.acquire(f"s{n}", "fast", {}) for n in (1, 2)]
    assert (first.worker_id, second.worker_id) == ("a", "b")
    moved = await slots.acquire("s1", "fast", {}, avoid="a", epoch=first.epoch)
    assert moved.worker_id == "b"
    assert [record.used for record in await slots.workers()] == [0.0, 1.0]
    await client.flushall()
    await slots.renew([moved])
    await slots.heartbeat(both[1], served(s2=second.epoch))
    assert [record.used for record in await slots.workers()] == [1.0]
    await slots.release("s1", moved.epoch, "ended")
    await slots.release("s2", second.epoch, "ended")
    assert [record.used for record in await slots.workers()] == [0.0]


async def test_a_worker_says_what_a_session_really_takes(slots: Slots) -> None:
    # It was given for the smaller variant, which does not know its language.
    there = worker("a", 2, fast_share=0.25)
    await register(slots, there)
    slot = await slots.acquire("s1", "fast", {})
    await slots.heartbeat(there, {"s1": Served(slot.epoch, "accurate")})
    assert [record.used for record in await slots.workers()] == [1.0]


async def test_small_sessions_do_not_keep_a_larger_one_waiting_for_ever(slots: Slots) -> None:
    await register(slots, worker("a", 1, fast_share=0.5))
    early = [await slots.acquire(f"s{n}", "fast", {}) for n in (1, 2)]
    with pytest.raises(NoCapacity):
        await slots.acquire("large", "accurate", {}, ticket=True)
    await slots.release("s1", early[0].epoch, "ended")
    assert not await taken(slots, "small", "fast")  # the larger one came first
    await slots.release("s2", early[1].epoch, "ended")
    assert await taken(slots, "large", ticket=True)


# Strategies.


# L-09
async def test_round_robin_takes_one_worker_after_the_other(client: Any) -> None:
    slots = Slots(client, "round_robin")
    await register(slots, worker("a", 20), worker("b", 20), worker("c", 2))
    chosen = [(await slots.acquire(f"s{n}", "fast", {})).worker_id for n in range(10)]
    assert "".join(chosen) == "abcabcabab"
    # Who had no room for a while has one turn, and does not catch up.
    for n in (2, 5):
        await slots.release(f"s{n}", 1, "ended")
    chosen = [(await slots.acquire(f"t{n}", "fast", {})).worker_id for n in range(5)]
    assert Counter(chosen)["c"] == 2
    assert max(Counter(chosen).values()) == 2


# L-09
async def test_weighted_gives_each_worker_turns_as_it_has_slots(client: Any) -> None:
    slots = Slots(client, "weighted")
    await register(slots, worker("large", 30), worker("small", 10))
    chosen = list[str]()
    for n in range(40):  # each has ended before the next begins: the load says nothing
        slot = await slots.acquire(f"s{n}", "fast", {})
        chosen.append(slot.worker_id)
        await slots.release(slot.session_id, slot.epoch, "ended")
    assert Counter(chosen) == {"large": 30, "small": 10}
    for first in range(0, 40, 4):
        assert 2 <= chosen[first : first + 4].count("large") <= 4


# What always holds.

_WORKERS = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.sampled_from([1.0, 0.5, 0.3, 0.1]),
        st.sampled_from([["fast"], ["accurate"], ["fast", "accurate"]]),
    ),
    min_size=1,
    max_size=3,
)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("acquire"), st.sampled_from(["fast", "accurate"]), st.booleans()),
        st.tuples(st.just("wait"), st.sampled_from(["fast", "accurate"]), st.booleans()),
        st.tuples(st.just("ask"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("release"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("move"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("beat"), st.just(0), st.booleans()),
    ),
    max_size=30,
)


class Run:
    """Sessions that come, wait, move and end; and what has to hold after each step."""

    def __init__(self, slots: Slots, client: Any, workers: list[tuple[int, float, list[str]]]):
        self.slots, self.client = slots, client
        self.workers = {
            f"w{n}": worker(f"w{n}", capacity, fast_share=share, models=models)
            for n, (capacity, share, models) in enumerate(workers)
        }
        self.held = dict[str, Slot]()
        self.waiting = dict[str, str]()  # session -> variant, in order of arrival
        self.count = 0

    async def step(self, what: str, which: Any, flag: bool) -> None:
        slots = self.slots
        if what in ("acquire", "wait"):
            self.count += 1
            session = f"s{self.count}"
            await self.ask(session, which, ticket=what == "wait", degrade=flag and what != "wait")
        elif what == "ask" and self.waiting:
            session = list(self.waiting)[which % len(self.waiting)]
            await self.ask(session, self.waiting[session], ticket=True)
        elif what == "release" and self.held:
            slot = self.held.pop(list(self.held)[which % len(self.held)])
            assert await slots.release(slot.session_id, slot.epoch, "ended")
        elif what == "move" and self.held:
            slot = self.held[list(self.held)[which % len(self.held)]]
            avoid = slot.worker_id if flag else ""
            moved = await taken(slots, slot.session_id, slot.variant, avoid=avoid, epoch=slot.epoch)
            if moved:
                assert moved.epoch == slot.epoch + 1
                self.held[slot.session_id] = moved
        elif what == "beat":
            for id, registration in self.workers.items():
                here = [slot for slot in self.held.values() if slot.worker_id == id]
                sessions = {
                    s.session_id: Served(s.epoch, self.served_as(s)) for s in here if not flag
                }
                await slots.heartbeat(registration, sessions)

    async def ask(self, session: str, variant: str, **given: Any) -> None:
        if slot := await taken(self.slots, session, variant, **given):
            self.waiting.pop(session, None)
            self.held[session] = slot
        elif given.get("ticket"):
            self.waiting.setdefault(session, variant)

    def served_as(self, slot: Slot) -> str:
        models = self.workers[slot.worker_id].models
        return slot.variant if slot.variant in models else models[0]

    def used(self, id: str) -> float:
        share = self.workers[id].fast_share
        return sum(
            share if self.served_as(slot) == "fast" else 1.0
            for slot in self.held.values()
            if slot.worker_id == id
        )

    async def check(self) -> None:
        for record in await self.slots.workers():
            used = self.used(record.worker_id)
            assert used <= record.capacity + 1e-6
            assert record.used == pytest.approx(used, abs=1e-3)
            here = [s for s in self.held.values() if s.worker_id == record.worker_id]
            assert record.active_sessions == len(here)
        assert await self.client.zcard(f"{PREFIX}leases") == len(self.held)
        assert await self.client.scard(f"{PREFIX}sessions:active") == len(self.held)
        assert await self.client.zcard(f"{PREFIX}tickets") == len(self.waiting)


# K-06
@settings(max_examples=40)
@given(
    strategy=st.sampled_from(["least_loaded", "round_robin", "weighted"]),
    workers=_WORKERS,
    steps=_STEPS,
)
def test_no_worker_is_ever_given_more_than_it_has_and_nothing_is_left_behind(
    redis_url: str,
    strategy: Strategy,
    workers: list[tuple[int, float, list[str]]],
    steps: list[tuple[str, Any, bool]],
) -> None:
    async def go() -> None:
        client: Any = redis_client(redis_url)
        try:
            await client.flushall()
            run = Run(Slots(client, strategy), client, workers)
            await register(run.slots, *run.workers.values())
            for step in steps:
                await run.step(*step)
            await run.check()
            assert await run.slots.expire() == 0
            await run.check()
            for slot in run.held.values():
                assert await run.slots.release(slot.session_id, slot.epoch, "ended")
            run.held.clear()
            await run.check()
        finally:
            await client.aclose()

    asyncio.run(go())
