"""
What is written to the register of a session, and what is written again: with a register that
answers what the test wants. With a real Redis: test_call.py and capacity/test_resume_record.py.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from redis.exceptions import RedisError
from support.registered import final, snapshot

from dalston.gateway.calls.record import Away, Record
from dalston.gateway.calls.relay import Relay
from dalston.orchestrator.capacity.slots import Slot
from dalston.orchestrator.protocol.messages import Ack, SessionConfig, serialize

SLOT = Slot("s", "w", "ws://w", 3, key_id="kiosk")


@dataclass
class Register:
    answers: list[str | Exception] = field(default_factory=list[str | Exception])
    forgotten: list[str] = field(default_factory=list[str])
    kept: list[tuple[set[str], bool]] = field(default_factory=list[tuple[set[str], bool]])
    missing: list[str] = field(default_factory=list[str])
    before: list[int] = field(default_factory=list[int])
    answering: asyncio.Event | None = None  # when there is an answer; None: at once

    async def forget(self, id: str) -> None:
        self.forgotten.append(id)

    async def keep(
        self,
        id: str,
        epoch: int,
        fields: Mapping[str, str],
        key_id: str,
        whole: bool,
        before: int = 0,
    ) -> str:
        assert (id, epoch, key_id) == ("s", 3, "kiosk")
        self.kept.append((set(fields), whole))
        self.before.append(before)
        if self.answering:
            await self.answering.wait()
        answer = self.answers.pop(0) if self.answers else "kept"
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def not_kept(self, session_ids: list[str]) -> list[str]:
        return [id for id in session_ids if id in self.missing]


def recorded(*answers: str | Exception) -> tuple[Record, Relay, Register]:
    relay, register = Relay("s", SessionConfig()), Register(list(answers))
    relay.pass_on(final(0))
    return Record(relay, cast(Any, register), kept=True), relay, register


async def test_what_is_new_is_written_once() -> None:
    record, relay, register = recorded()
    assert await record.write(SLOT) == "kept"
    assert await record.write(SLOT) == "kept"
    assert register.kept == [({"seg_0000"}, False)]
    assert not relay.has_unsaved


async def test_a_register_that_has_lost_the_session_is_told_everything() -> None:
    record, _, register = recorded("lost")
    assert await record.write(SLOT) == "kept"
    assert register.kept == [({"seg_0000"}, False), ({"config", "seg_0000"}, True)]


async def test_the_register_is_told_how_much_it_has_of_what_is_added_to() -> None:
    record, relay, register = recorded()
    relay.nothing_is_saved()
    for number in (1, 2):
        assert await record.write(SLOT) == "kept"
        relay.pass_on(final(number))
        relay.pass_on(snapshot(number))
    assert await record.write(SLOT) == "kept"
    assert register.kept == [
        ({"config", "seg_0000"}, True),
        ({"seg_0001", "snapshot"}, False),
        ({"seg_0002", "snapshot"}, False),
    ]
    assert register.before == [0, 2, 4]


async def test_what_somebody_wrote_who_was_cancelled_is_written_by_the_next() -> None:
    record, relay, register = recorded()
    register.answering = asyncio.Event()
    writing = asyncio.create_task(record.write(SLOT))
    await asyncio.sleep(0)
    relay.pass_on(snapshot(1))
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    register.answering.set()
    assert await record.write(SLOT) == "kept"
    assert register.kept == [({"seg_0000"}, False), ({"seg_0000", "snapshot"}, False)]


async def test_nothing_newer_is_written_before_what_it_adds_to() -> None:
    record, relay, register = recorded(RedisError("away"))
    register.answering = asyncio.Event()
    first = asyncio.create_task(record.write(SLOT))
    await asyncio.sleep(0)
    relay.pass_on(snapshot(1))
    second = asyncio.create_task(record.write(SLOT))
    await asyncio.sleep(0)
    assert register.kept == [({"seg_0000"}, False)]
    register.answering.set()
    assert (await first, await second) == ("not yet", "kept")
    assert register.kept[1:] == [({"seg_0000", "snapshot"}, False)]


async def test_what_could_not_be_written_is_written_later() -> None:
    record, relay, register = recorded(RedisError("away"))
    assert await record.write(SLOT) == "not yet"
    assert relay.has_unsaved
    assert await record.write(SLOT) == "kept"
    assert register.kept == [({"seg_0000"}, False)] * 2


async def test_a_session_that_another_gateway_has_is_not_written() -> None:
    record, _, register = recorded("stale")
    assert await record.write(SLOT) == "taken over"
    assert len(register.kept) == 1


async def test_writing_goes_on_until_the_end_and_once_more_after_a_failure() -> None:
    record, _, _ = recorded()
    written = list[bool]()

    async def write() -> bool:
        written.append(len(written) > 0)
        return written[-1]

    keeping = asyncio.create_task(record.keep(write))
    record.more()
    async with asyncio.timeout(5):
        while len(written) < 2:
            await asyncio.sleep(0.01)
    record.end()
    await asyncio.wait_for(keeping, 5)
    assert written[:2] == [False, True]


async def test_the_record_of_a_caller_who_left_is_written_again_while_they_may_come_back() -> None:
    _, relay, register = recorded()
    away = Away(cast(Any, register), 120.0)
    away.leave(SLOT, relay)
    await away.write()
    assert register.kept == [({"config", "seg_0000"}, True)]
    away.is_back("s")
    await away.write()
    assert len(register.kept) == 1


async def test_what_a_caller_said_is_forgotten_who_did_not_come_back_in_time() -> None:
    _, relay, register = recorded()
    away = Away(cast(Any, register), -1.0)
    away.leave(SLOT, relay)
    away.forget()
    await away.write()
    assert register.kept == []


async def test_where_nothing_is_kept_nothing_is_written_and_the_client_may_forget() -> None:
    relay, register = Relay("s", SessionConfig()), Register()
    record = Record(relay, cast(Any, register), kept=False)
    for said in (final(0), snapshot(16_000, next_segment=1)):
        relay.pass_on(said)
    assert await record.write(SLOT) == "kept"
    assert not relay.has_unsaved
    told = relay.pass_on(serialize(Ack(received=2.0, processed=2.0, finalised=1.0)))
    assert told
    assert json.loads(told)["finalised"] == 1.0
    await record.forget("s")
    assert register.kept == register.forgotten == []
