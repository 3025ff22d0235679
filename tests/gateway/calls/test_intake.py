"""
When a caller is read, and what becomes of what was read: without a socket, and with a worker that
takes as much as the test wants.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from support.transports import Line
from support.waiting import until

from dalston.gateway.calls import intake as intakes
from dalston.gateway.calls.caller import Caller
from dalston.gateway.calls.intake import Intake, IntakeLimits
from dalston.gateway.calls.memory import FRAME_COSTS, HeldMemory
from dalston.gateway.calls.pace import Pace, PaceLimits
from dalston.gateway.calls.relay import HELD_S, Relay
from dalston.gateway.protocols import Native
from dalston.gateway.protocols.protocol import Opening
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    Configure,
    Frame,
    SessionConfig,
    serialize,
)
from dalston.orchestrator.protocol.mute import Mute

CONFIG = SessionConfig()
SECOND = bytes(CONFIG.bytes_per_second)
PATIENT = PaceLimits(1000.0, 1000.0, 1000.0)
LIMITS = IntakeLimits(most=1 << 23, in_line_s=5, no_audio_s=600)


@dataclass
class Worker:
    """A connection to one."""

    blocked: bool = False
    unblocked: Callable[[], None] | None = None
    told: list[Frame] = field(default_factory=list[Frame])

    def send_now(self, frame: Frame) -> None:
        self.told.append(frame)


def reading(
    audio: PaceLimits = PATIENT,
    messages: PaceLimits = PATIENT,
    limits: IntakeLimits = LIMITS,
    memory: HeldMemory | None = None,
    in_line: bool = False,
    mute_s: float = 0.0,
) -> tuple[Intake, Line, Relay]:
    line, relay = Line(), Relay("s", CONFIG)
    caller = Caller(line, Native(Opening([], {})), Opening([], {}), 1 << 20)
    pace = Pace(audio, messages, CONFIG, asyncio.get_running_loop().time())
    held = memory or HeldMemory(1 << 30, 1 << 30)
    intake = Intake(caller, relay, pace, limits, held, Mute(mute_s, CONFIG))
    intake.begin()
    if not in_line:
        intake.admitted()
    return intake, line, relay


def attached(intake: Intake, worker: Worker) -> None:
    intake.pass_to(cast(Any, worker))


async def test_what_is_said_before_there_is_a_worker_is_held_and_then_passed_on() -> None:
    intake, line, relay = reading()
    line.says(b"\1\0", '{"type":"flush"}')
    assert (relay.frame(0), relay.frame(1)) == (b"\1\0", '{"type":"flush"}')
    worker = Worker()
    attached(intake, worker)
    line.says(b"\2\0")
    assert worker.told == [b"\2\0"]  # what was held is told by the call
    intake.insert('{"type":"end"}')
    assert worker.told[-1] == '{"type":"end"}'
    assert relay.frame(3) == '{"type":"end"}'


async def test_while_a_worker_takes_no_more_its_caller_is_not_read_and_nothing_is_lost() -> None:
    intake, line, _ = reading()
    worker = Worker()
    attached(intake, worker)
    worker.blocked = True
    line.says(b"\1\0")
    assert line.paused
    line.says(b"\2\0", b"\3\0")  # was read already
    assert worker.told == [b"\1\0"]
    worker.blocked = False
    assert worker.unblocked
    worker.unblocked()
    assert worker.told == [b"\1\0", b"\2\0", b"\3\0"]
    assert not line.paused


async def test_no_more_is_read_than_may_be_held() -> None:
    _, line, relay = reading()
    for _ in range(HELD_S + 1):
        line.says(SECOND)
    assert line.paused
    assert relay.full


async def test_a_caller_who_pushes_is_slowed_down_and_then_objected_to_at_once() -> None:
    intake, line, _ = reading(PaceLimits(1.0, 1.0, 0.0))
    line.says(SECOND, SECOND)
    assert line.paused
    assert not intake.refused.done()
    await asyncio.sleep(1.05)  # the longest pause between two frames
    assert not line.paused
    line.says(SECOND)
    objection = intake.refused.result()
    assert (objection.code, objection.close_code) == ("rate_limit", CloseCode.TOO_FAST)
    assert objection.at_once


async def test_a_frame_that_is_too_long_ends_the_call_once_what_was_said_is_finished() -> None:
    intake, line, relay = reading()
    line.says(b"\1\0")
    assert line.on_too_long
    line.on_too_long(5_000_000)
    objection = intake.refused.result()
    assert (objection.code, objection.close_code) == ("invalid_message", CloseCode.TOO_BIG)
    assert not objection.at_once
    line.says(b"\2\0")  # nobody hears it
    assert relay.frame(1) is None


async def test_after_the_end_nothing_is_heard() -> None:
    intake, line, relay = reading()
    intake.end()
    line.says(b"\1\0")
    assert relay.frame(0) is None


# Pings and fragments.


@pytest.mark.parametrize(("fragment", "burst"), [(False, 10), (True, 100)])
async def test_pings_and_fragments_are_paced_as_messages_are(fragment: bool, burst: int) -> None:
    intake, line, _ = reading(messages=PaceLimits(1.0, 10.0, 0.0))
    assert line.on_part
    for _ in range(burst):
        line.on_part(fragment)
    assert not line.paused
    line.on_part(fragment)
    assert line.paused
    await until(lambda: not line.paused)
    line.on_part(False)
    objection = await asyncio.wait_for(intake.refused, 5)
    assert (objection.code, objection.close_code) == ("rate_limit", CloseCode.TOO_FAST)


# A client that pushes: its pings stand in line after its audio.


def pushing(**more: Any) -> tuple[Intake, Line, Relay]:
    """Somebody who has sent more than may be passed on."""
    intake, line, relay = reading(PaceLimits(1.0, 1.0, 1000.0), **more)
    line.says(SECOND, SECOND, SECOND)
    assert line.paused
    return intake, line, relay


async def test_while_the_client_answers_in_time_no_more_is_read_than_is_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intakes, "SLOWED_S", 0.01)
    intake, line, _ = pushing()
    worker = Worker(blocked=True)
    attached(intake, worker)
    line.silent_s = intakes.LATE_S - 1
    await asyncio.sleep(0.1)
    assert line.paused


async def test_while_its_answer_is_late_more_is_read_and_passed_on_later_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intakes, "SLOWED_S", 0.01)
    intake, line, relay = reading()
    worker = Worker()
    attached(intake, worker)
    worker.blocked = True
    line.says(b"\1\0")
    line.silent_s = intakes.LATE_S + 1
    await until(lambda: not line.paused)
    line.says(b"\2\0", '{"type":"flush"}')
    assert worker.told == [b"\1\0"]
    before = intake.held_bytes - relay.held_bytes
    assert before > 2 * FRAME_COSTS
    line.says(bytes(intakes.AHEAD))
    assert line.paused  # until the next look
    await until(lambda: not line.paused)
    line.silent_s = 0.0
    worker.blocked = False
    intake.go_on()
    assert worker.told[:3] == [b"\1\0", b"\2\0", '{"type":"flush"}']
    assert intake.held_bytes == relay.held_bytes


@pytest.mark.parametrize("answers", [True, False])
async def test_where_no_more_can_be_read_a_client_that_looks_for_answers_is_told(
    monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setattr(intakes, "SLOWED_S", 0.01)
    intake, line, _ = pushing(limits=replace(LIMITS, most=1))
    attached(intake, Worker(blocked=True))
    line.answers, line.silent_s = answers, intakes.TOO_LATE_S - 1
    await asyncio.sleep(0.05)
    assert line.paused
    assert not intake.refused.done()
    line.silent_s = intakes.TOO_LATE_S + 1
    if answers:
        objection = await asyncio.wait_for(intake.refused, 5)
        assert (objection.code, objection.close_code) == ("rate_limit", CloseCode.TOO_FAST)
        assert "no faster than real time" in objection.sentence
    else:
        await asyncio.sleep(0.1)
        assert line.paused
        assert not intake.refused.done()


async def test_what_waits_is_passed_on_before_an_objection_that_is_not_at_once() -> None:
    intake, line, _ = reading()
    worker = Worker()
    attached(intake, worker)
    worker.blocked = True
    line.says(b"\1\0", b"\2\0")
    assert line.on_too_long
    line.on_too_long(5_000_000)
    assert not intake.refused.done()
    worker.blocked = False
    intake.go_on()
    assert worker.told == [b"\1\0", b"\2\0"]
    assert intake.refused.result().close_code == CloseCode.TOO_BIG


async def test_after_an_end_that_we_make_nothing_comes_that_was_read_ahead() -> None:
    intake, line, relay = reading()
    worker = Worker()
    attached(intake, worker)
    worker.blocked = True
    line.says(b"\1\0", b"\2\0")
    intake.insert('{"type":"end"}')
    worker.blocked = False
    intake.go_on()
    assert worker.told == [b"\1\0", '{"type":"end"}']
    assert intake.held_bytes == relay.held_bytes


# What one may hold, and all.


async def test_of_a_caller_in_line_seconds_are_held_and_more_once_there_is_a_slot() -> None:
    intake, line, relay = reading(in_line=True)
    for _ in range(10):
        line.says(SECOND)
    assert line.paused
    assert relay.held_bytes < 7.1 * len(SECOND)
    intake.admitted()
    assert not line.paused
    assert relay.audio_s == 10


async def test_callers_in_line_hold_less_where_there_are_many() -> None:
    memory = HeldMemory(1 << 30, 2 * len(SECOND))
    both = [reading(in_line=True, memory=memory) for _ in range(2)]
    for _, line, _ in both:
        line.says(SECOND, SECOND)
    memory.look([intake for intake, _, _ in both], 0.0)
    for _, line, _ in both:
        assert not line.paused
        line.says(b"\0\0")
        assert line.paused


async def test_who_holds_most_is_not_read_while_too_much_is_held_and_others_are() -> None:
    memory = HeldMemory(20 * len(SECOND), 1 << 30)
    large, little = reading(memory=memory), reading(memory=memory)
    large[1].says(*[SECOND] * 30)
    memory.look([large[0], little[0]], 0.0)
    for _, line, _ in (large, little):
        line.says(SECOND)
    assert large[1].paused
    assert not little[1].paused
    memory.look([large[0], little[0]], 6.0)
    assert large[0].refused.result().code == "rate_limit"
    assert not little[0].refused.done()


async def test_messages_without_audio_end_the_call_once_they_are_too_many() -> None:
    intake, line, _ = reading(messages=PaceLimits(1e6, 1e6, 1000.0))
    for number in range(200):
        line.says(serialize(Configure(prompt=f"{number:03}".ljust(15_000, "x"))))
    objection = intake.refused.result()
    assert (objection.code, objection.at_once) == ("rate_limit", True)


async def test_a_session_without_audio_ends_whatever_else_its_client_sends() -> None:
    intake, line, _ = reading(limits=replace(LIMITS, no_audio_s=60))
    now = asyncio.get_running_loop().time()
    line.says('{"type":"ping"}', b"")
    intake.look_after(now + 59)
    assert not intake.refused.done()
    intake.look_after(now + 61)
    objection = intake.refused.result()
    assert (objection.code, objection.close_code) == ("session_timeout", CloseCode.TIMEOUT)
    assert (objection.at_once, objection.reason) == (False, "idle_timeout")
    assert "no audio was received for 60 s" in objection.sentence


async def test_with_audio_it_goes_on_and_so_does_one_that_may_be_silent() -> None:
    intake, line, _ = reading(limits=replace(LIMITS, no_audio_s=0.05))
    await asyncio.sleep(0.1)
    line.says(b"\0\0")
    intake.look_after(asyncio.get_running_loop().time())
    patient, _, _ = reading(limits=replace(LIMITS, no_audio_s=0))
    patient.look_after(asyncio.get_running_loop().time() + 1e6)
    assert not intake.refused.done()
    assert not patient.refused.done()


def flushed(told: list[Frame]) -> int:
    return sum(isinstance(frame, str) and "flush" in frame for frame in told)


async def test_a_muted_client_is_flushed_where_it_stopped_and_the_next_worker_is_told_so_too() -> (
    None
):
    intake, line, relay = reading(mute_s=2.0)
    worker = Worker()
    attached(intake, worker)
    line.says(SECOND)
    now = asyncio.get_running_loop().time()
    for look in (now + 1.0, now + 2.9, now + 3.1, now + 3.2, now + 9.0, now + 9.1):
        intake.look_for_mute(look)
    assert worker.told[0] == SECOND
    assert (flushed(worker.told), len(worker.told)) == (1, 2)
    # It stands among what is held, so whoever goes on with the session flushes there.
    relay.start_again()
    assert relay.frame(0) == SECOND
    assert "flush" in str(relay.frame(1))


async def test_who_does_not_answer_may_come_back_and_is_not_muted() -> None:
    intake, line, _ = reading(mute_s=2.0)
    worker = Worker()
    attached(intake, worker)
    line.lived_at = -math.inf
    line.says(SECOND)
    now = asyncio.get_running_loop().time()
    for look in (now + 3.1, now + 3.2, now + 60.0):
        intake.look_for_mute(look)
    assert flushed(worker.told) == 0
    line.lived_at = now + 2.9  # before it was silent for so long
    intake.look_for_mute(now + 61.0)
    assert flushed(worker.told) == 0
    line.lived_at = now + 61.5
    for look in (now + 62.0, now + 62.1):
        intake.look_for_mute(look)
    assert flushed(worker.told) == 1


async def test_who_is_not_read_because_a_worker_takes_nothing_is_not_muted() -> None:
    intake, line, _ = reading(mute_s=2.0)
    worker = Worker()
    attached(intake, worker)
    worker.blocked = True
    line.says(SECOND, SECOND)
    now = asyncio.get_running_loop().time()
    for look in (now + 5.0, now + 6.0, now + 7.0):
        intake.look_for_mute(look)
    assert flushed(worker.told) == 0
    worker.blocked = False
    assert worker.unblocked
    worker.unblocked()
    assert worker.told == [SECOND, SECOND]
    for look in (now + 1.5, now + 2.5):  # what was read late counts from when it was passed on
        intake.look_for_mute(look)
    assert flushed(worker.told) == 0
