"""
Slots in a real Redis: who has room, and that nothing is given twice or lost.
"""

import asyncio
import datetime
import json
from typing import Any

import pytest
from support.registered import PREFIX, active, register, served, worker

from dalston.orchestrator.capacity.server import EVENTS
from dalston.orchestrator.capacity.slots import NoCapacity, Slot, Slots, WorkerIdTaken
from dalston.orchestrator.capacity.workers import Served

# Acquiring.


async def test_a_slot_names_the_worker_and_its_endpoint(slots: Slots) -> None:
    await register(slots, worker("a"))
    assert await slots.acquire("s1", "fast", {}) == Slot(
        "s1", "a", "ws://a:9000", 1, variant="fast"
    )
    assert await active(slots) == {"a": 1}


# 000-14
async def test_sessions_go_to_the_least_loaded_worker(slots: Slots) -> None:
    await register(slots, worker("a", 4), worker("b", 4))
    chosen = [(await slots.acquire(f"s{n}", "fast", {})).worker_id for n in range(6)]
    assert chosen == ["a", "b", "a", "b", "a", "b"]


async def test_load_is_relative_to_capacity(slots: Slots) -> None:
    await register(slots, worker("large", 8), worker("small", 2))
    chosen = [(await slots.acquire(f"s{n}", "fast", {})).worker_id for n in range(5)]
    assert chosen.count("small") == 1


async def test_without_workers_there_is_no_capacity(slots: Slots) -> None:
    with pytest.raises(NoCapacity) as refused:
        await slots.acquire("s1", "fast", {})
    assert refused.value.reason == "no_workers"


async def test_a_full_pool_refuses_the_next(slots: Slots) -> None:
    await register(slots, worker("a", 1), worker("b", 1))
    await slots.acquire("s1", "fast", {})
    await slots.acquire("s2", "fast", {})
    with pytest.raises(NoCapacity) as refused:
        await slots.acquire("s3", "fast", {})
    assert refused.value.reason == "full"
    assert {record.status for record in await slots.workers()} == {"busy"}


async def test_a_draining_worker_takes_no_sessions(slots: Slots) -> None:
    await register(slots, worker("a", status="draining"))
    with pytest.raises(NoCapacity) as refused:
        await slots.acquire("s1", "fast", {})
    assert refused.value.reason == "draining"


async def test_a_worker_that_has_the_variant_goes_before_an_emptier_one(slots: Slots) -> None:
    await register(slots, worker("a", models=["fast"]), worker("b", models=["fast", "accurate"]))
    await slots.acquire("s1", "accurate", {})
    assert (await slots.acquire("s2", "accurate", {})).worker_id == "b"


async def test_without_the_variant_any_worker_serves_with_another(slots: Slots) -> None:
    await register(slots, worker("a", models=["fast"]))
    assert (await slots.acquire("s1", "accurate", {})).worker_id == "a"


async def test_a_worker_without_the_variant_is_not_taken_while_another_has_it(
    slots: Slots,
) -> None:
    await register(slots, worker("a", models=["fast"]), worker("b", 1))
    await slots.acquire("s1", "accurate", {})
    with pytest.raises(NoCapacity) as refused:
        await slots.acquire("s2", "accurate", {})
    assert refused.value.reason == "full"
    assert (await slots.acquire("s2", "accurate", {}, degrade=True)).worker_id == "a"


async def test_degrading_prefers_the_variant_asked_for(slots: Slots) -> None:
    await register(slots, worker("a", models=["fast"]), worker("b"))
    chosen = [
        (await slots.acquire(f"s{n}", "accurate", {}, degrade=True)).worker_id for n in range(5)
    ]
    assert chosen == ["b", "b", "b", "b", "a"]


async def test_a_worker_can_be_avoided(slots: Slots) -> None:
    await register(slots, worker("a"), worker("b"))
    assert (await slots.acquire("s1", "fast", {}, avoid="a")).worker_id == "b"


# 000-12, 002-27, K-06
async def test_a_thousand_acquires_at_once_never_exceed_capacity(slots: Slots, client: Any) -> None:
    await register(slots, worker("a", 60), worker("b", 40))

    async def acquire(n: int) -> Slot | None:
        try:
            return await slots.acquire(f"s{n}", "fast", {})
        except NoCapacity:
            return None

    taken = [slot for slot in await asyncio.gather(*map(acquire, range(1000))) if slot]
    assert len(taken) == 100
    assert await active(slots) == {"a": 60, "b": 40}
    for id, capacity in (("a", 60), ("b", 40)):
        assert await client.scard(f"{PREFIX}worker:{id}:sessions") == capacity
    assert await client.zcard(f"{PREFIX}leases") == 100


# 002-29, K-06
async def test_acquires_and_releases_at_once_leave_nothing_behind(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a", 7), worker("b", 5))
    most = 0

    async def come_and_go(n: int) -> None:
        nonlocal most
        for turn in range(5):
            try:
                slot = await slots.acquire(f"s{n}-{turn}", "fast", {})
            except NoCapacity:
                continue
            most = max(most, sum((await active(slots)).values()))
            await slots.release(slot.session_id, slot.epoch, "ended")

    await asyncio.gather(*map(come_and_go, range(60)))
    assert 0 < most <= 12
    assert await active(slots) == {"a": 0, "b": 0}
    assert await client.zcard(f"{PREFIX}leases") == 0
    assert await client.scard(f"{PREFIX}sessions:active") == 0


# Releasing.


# 000-13, C-14
async def test_release_gives_the_slot_back_once(slots: Slots) -> None:
    await register(slots, worker("a", 1))
    slot = await slots.acquire("s1", "fast", {})
    assert await slots.release("s1", slot.epoch, "ended", 12.5)
    assert not await slots.release("s1", slot.epoch, "ended")
    assert not await slots.release("s1", slot.epoch, "error")
    assert await active(slots) == {"a": 0}
    await slots.acquire("s2", "fast", {})
    # A second release of the first must not take the second's slot.
    assert not await slots.release("s1", slot.epoch, "ended")
    assert await active(slots) == {"a": 1}


async def test_releasing_a_session_nobody_knows_is_nothing(slots: Slots) -> None:
    assert not await slots.release("never", 1, "ended")


# 002-28
async def test_the_record_of_a_session_outlives_it(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {"language": "en", "model": "fast"})
    await slots.release("s1", slot.epoch, "ended", 12.5)
    record = await client.hgetall(f"{PREFIX}session:s1")
    assert record["status"] == "ended"
    assert record["audio_duration"] == "12.500"
    assert (record["worker_id"], record["language"], record["model"]) == ("a", "en", "fast")
    assert 0 < await client.ttl(f"{PREFIX}session:s1") <= 600


# Leases.


async def test_an_owner_that_dies_gives_the_slot_back_within_the_lease(slots: Slots) -> None:
    await register(slots, worker("a", 1))
    await slots.acquire("s1", "fast", {}, lease_s=0.2)
    with pytest.raises(NoCapacity):
        await slots.acquire("s2", "fast", {})
    await asyncio.sleep(0.25)
    assert (await slots.acquire("s2", "fast", {})).worker_id == "a"


async def test_every_slot_that_came_back_with_its_lease_is_told_once(slots: Slots) -> None:
    await register(slots, worker("a", 1))
    await slots.acquire("s1", "fast", {}, lease_s=0.05)
    await asyncio.sleep(0.1)
    await slots.acquire("s2", "fast", {}, lease_s=0.05)  # which frees the first
    await asyncio.sleep(0.1)
    assert await slots.expire() == 2
    assert await slots.expire() == 0


async def test_expire_gives_back_what_nobody_asks_for(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"))
    await slots.acquire("s1", "fast", {}, lease_s=0.1)
    await slots.acquire("s2", "fast", {}, lease_s=60)
    await asyncio.sleep(0.15)
    assert await slots.expire() == 1
    assert await active(slots) == {"a": 1}
    assert await client.hget(f"{PREFIX}session:s1", "status") == "error"


async def test_a_renewed_lease_outlives_its_first_end(slots: Slots) -> None:
    await register(slots, worker("a", 1))
    slot = await slots.acquire("s1", "fast", {}, lease_s=0.3)
    for _ in range(4):
        await asyncio.sleep(0.15)
        assert await slots.renew([slot], lease_s=0.3) == set()
        await slots.expire()
    assert await active(slots) == {"a": 1}


async def test_renewing_tells_which_slots_are_lost(slots: Slots) -> None:
    await register(slots, worker("a"), worker("b"))
    kept = await slots.acquire("kept", "fast", {})
    ended = await slots.acquire("ended", "fast", {})
    await slots.release("ended", ended.epoch, "ended")
    taken = await slots.acquire("taken", "fast", {})
    await slots.acquire("taken", "fast", {}, avoid=taken.worker_id)
    assert await slots.renew([kept, ended, taken]) == {"ended", "taken"}


async def test_an_owner_that_lives_after_all_has_its_slot_again(slots: Slots, client: Any) -> None:
    # Nobody could renew: Redis hung for as long as a lease.
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {}, lease_s=0.05)
    other = await slots.acquire("s2", "fast", {}, lease_s=0.05)
    await asyncio.sleep(0.1)
    assert await slots.expire() == 2
    assert await slots.renew([slot]) == set()
    assert await active(slots) == {"a": 1}
    assert await client.hget(f"{PREFIX}session:s1", "status") == "active"
    # The worker's word will do, too.
    await slots.heartbeat(worker("a"), served(s2=other.epoch))
    assert await active(slots) == {"a": 2}
    # And once it has ended, it has.
    assert await slots.release("s1", slot.epoch, "ended")
    assert await slots.renew([slot]) == {"s1"}
    assert await active(slots) == {"a": 1}


async def test_a_lease_that_ran_out_is_not_renewed_once_the_session_ended(slots: Slots) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "fast", {}, lease_s=0.05)
    await asyncio.sleep(0.1)
    await slots.expire()
    assert not await slots.release("s1", slot.epoch, "ended")
    assert await slots.renew([slot]) == {"s1"}
    await slots.heartbeat(worker("a"), served(s1=slot.epoch))
    assert await active(slots) == {"a": 0}


# Epochs.


async def test_a_takeover_moves_the_slot_and_raises_the_epoch(slots: Slots) -> None:
    await register(slots, worker("a"), worker("b"))
    first = await slots.acquire("s1", "fast", {})
    second = await slots.acquire("s1", "fast", {}, avoid=first.worker_id)
    assert (second.epoch, second.worker_id) == (2, "b")
    assert await active(slots) == {"a": 0, "b": 1}


async def test_a_takeover_needs_no_second_slot_of_a_full_worker(slots: Slots) -> None:
    await register(slots, worker("a", 1))
    await slots.acquire("s1", "fast", {})
    assert (await slots.acquire("s1", "fast", {})).epoch == 2
    assert await active(slots) == {"a": 1}


async def test_what_an_older_epoch_says_is_ignored(slots: Slots) -> None:
    await register(slots, worker("a"), worker("b"))
    first = await slots.acquire("s1", "fast", {})
    second = await slots.acquire("s1", "fast", {}, avoid="a")
    assert not await slots.release("s1", first.epoch, "error")
    assert await slots.renew([first]) == {"s1"}
    assert await active(slots) == {"a": 0, "b": 1}
    # The first worker's heartbeat still names the session: it does not come back to it.
    await slots.heartbeat(worker("a"), served(s1=first.epoch))
    assert await active(slots) == {"a": 0, "b": 1}
    assert await slots.release("s1", second.epoch, "ended")


# Workers.


# 000-11, 002-25, 002-26, 003-13, C-12
async def test_a_worker_record_has_the_documented_fields(slots: Slots, client: Any) -> None:
    gpu: dict[str, Any] = {"gpu_memory_used": "4.2GB", "gpu_memory_total": "24.0GB"}
    await slots.heartbeat(worker("a", checkpoints={"fast": "demo"}, **gpu), {})
    record = await client.hgetall(f"{PREFIX}worker:a")
    assert await client.smembers(f"{PREFIX}workers") == {"a"}
    assert record["endpoint"] == "ws://a:9000"
    assert (record["status"], record["capacity"], record["active_sessions"]) == ("ready", "4", "0")
    assert (record["gpu_memory_used"], record["gpu_memory_total"]) == ("4.2GB", "24.0GB")
    assert json.loads(record["models"]) == ["fast", "accurate"]
    assert json.loads(record["models_loaded"]) == ["demo"]
    assert json.loads(record["models_asleep"]) == []
    assert json.loads(record["checkpoints"]) == {"fast": "demo"}
    assert [known.checkpoints for known in await slots.workers()] == [{"fast": "demo"}]
    assert json.loads(record["languages_supported"]) == ["en", "auto"]
    server_seconds = (await client.time())[0]
    written = datetime.datetime.fromisoformat(record["last_heartbeat"])
    assert abs(written.timestamp() - server_seconds) <= 2


async def test_heartbeats_never_write_the_count(slots: Slots) -> None:
    await register(slots, worker("a"))
    await slots.acquire("s1", "fast", {})
    await register(slots, worker("a"))
    assert await active(slots) == {"a": 1}


# 000-15, 002-30, L-12, C-13
async def test_a_silent_worker_goes_offline_and_is_announced_once(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a"))
    await slots.acquire("s1", "fast", {})
    channel = client.pubsub()
    await channel.subscribe(EVENTS)
    assert (await channel.get_message(timeout=5))["type"] == "subscribe"
    await client.hset(f"{PREFIX}worker:a", "heartbeat_at", 1.0)
    await slots.expire()
    await slots.expire()
    events: list[dict[str, str]] = []
    while message := await channel.get_message(timeout=0.5):
        events.append(json.loads(message["data"]))
    await channel.aclose()
    assert events == [{"type": "worker.offline", "worker_id": "a", "session_id": "s1"}]
    assert [record.status for record in await slots.workers()] == ["offline"]
    with pytest.raises(NoCapacity):
        await slots.acquire("s2", "fast", {})


# 000-15
@pytest.mark.parametrize(("silent_s", "status"), [(28, "ready"), (31, "offline")])
async def test_a_worker_is_offline_after_thirty_seconds_without_a_heartbeat(
    slots: Slots, client: Any, silent_s: int, status: str
) -> None:
    await register(slots, worker("a"))
    seconds, microseconds = await client.time()
    silent_since = seconds + microseconds / 1e6 - silent_s
    await client.hset(f"{PREFIX}worker:a", "heartbeat_at", silent_since)
    await slots.expire()
    assert [record.status for record in await slots.workers()] == [status]


async def test_a_worker_that_speaks_again_is_ready_again(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"))
    await client.hset(f"{PREFIX}worker:a", "heartbeat_at", 1.0)
    await slots.expire()
    await register(slots, worker("a"))
    assert [record.status for record in await slots.workers()] == ["ready"]
    await slots.acquire("s1", "fast", {})


async def test_a_worker_id_in_use_is_refused_to_another_process(slots: Slots) -> None:
    await register(slots, worker("a"))
    with pytest.raises(WorkerIdTaken, match="WORKER_ID"):
        await slots.heartbeat(worker("a", instance="another", endpoint="ws://b:9000"), {})


async def test_a_worker_that_was_started_again_takes_its_place_at_once(slots: Slots) -> None:
    await register(slots, worker("a"))
    await slots.heartbeat(worker("a", instance="the next process"), {})
    assert [record.status for record in await slots.workers()] == ["ready"]


# L-12
async def test_started_at_is_when_this_process_began(slots: Slots, client: Any) -> None:
    async def started(running_s: float, instance: str) -> float:
        await slots.heartbeat(worker("a", instance=instance, running_s=running_s), {})
        written = await client.hget(f"{PREFIX}worker:a", "started_at")
        return datetime.datetime.fromisoformat(written).timestamp() - (await client.time())[0]

    assert -5002 <= await started(5000, "the first") <= -4998
    assert -5002 <= await started(5010, "the first") <= -4998  # it stays
    # Killed, and started again under the same id: the record was still there.
    assert -12 <= await started(10, "the next") <= -8
    # A Redis that lost it is told the same.
    await client.flushall()
    assert -22 <= await started(20, "the next") <= -18


# 002-28
async def test_the_record_of_a_running_session_is_kept_fresh_by_its_worker(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a"))
    slot = await slots.acquire("s1", "accurate", {"language": "auto", "model": "accurate"})
    for audio_s in (1.0, 11.0):
        there = {"s1": Served(slot.epoch, "fast", "de", audio_s)}
        await slots.heartbeat(worker("a"), there)
        (record,) = await slots.sessions()
        assert (record["model"], record["language"]) == ("fast", "de")
        assert float(record["audio_duration"]) == audio_s
    # What an older epoch says of it counts for nothing.
    await slots.acquire("s1", "fast", {}, epoch=slot.epoch)
    await slots.heartbeat(worker("a"), {"s1": Served(slot.epoch, "fast", "en", 99.0)})
    (record,) = await slots.sessions()
    assert (record["language"], float(record["audio_duration"])) == ("de", 11.0)


async def test_the_id_of_a_dead_worker_is_free(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"))
    await client.hset(f"{PREFIX}worker:a", "heartbeat_at", 1.0)
    await slots.heartbeat(worker("a", instance="another", endpoint="ws://b:9000"), {})
    assert [record.status for record in await slots.workers()] == ["ready"]


async def test_a_worker_that_leaves_is_gone_and_only_its_own_process_can(
    slots: Slots, client: Any
) -> None:
    await register(slots, worker("a"))
    await slots.unregister("a", "another")
    assert len(await slots.workers()) == 1
    await slots.unregister("a", "a-process")
    assert await slots.workers() == []
    assert await client.smembers(f"{PREFIX}workers") == set()


async def test_a_record_that_ran_out_is_removed_from_the_index(slots: Slots, client: Any) -> None:
    await register(slots, worker("a"))
    await client.delete(f"{PREFIX}worker:a")
    assert await slots.workers() == []
    await slots.expire()
    assert await client.smembers(f"{PREFIX}workers") == set()


# 002-28, 003-13
async def test_sessions_are_listed_with_their_records(slots: Slots) -> None:
    await register(slots, worker("a"))
    await slots.acquire("s1", "fast", {"language": "en"})
    (record,) = await slots.sessions()
    assert (record["session_id"], record["worker_id"], record["language"]) == ("s1", "a", "en")
    assert record["started_at"].endswith("Z")


async def test_a_gateway_that_slept_does_not_take_back_what_another_has(slots: Slots) -> None:
    await register(slots, worker("a"), worker("b"))
    first = await slots.acquire("s1", "fast", {"gateway": "one"})
    await slots.acquire("s1", "fast", {"gateway": "two"})
    with pytest.raises(NoCapacity, match="taken_over"):
        await slots.acquire("s1", "fast", {"gateway": "one"}, epoch=first.epoch)
    assert sum((await active(slots)).values()) == 1


async def test_a_gateway_whose_answer_was_lost_asks_again(slots: Slots) -> None:
    await register(slots, worker("a"))
    first = await slots.acquire("s1", "fast", {"gateway": "one"})
    await slots.acquire("s1", "fast", {"gateway": "one"}, epoch=first.epoch)
    again = await slots.acquire("s1", "fast", {"gateway": "one"}, epoch=first.epoch)
    assert again.epoch == first.epoch + 2
