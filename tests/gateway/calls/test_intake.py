"""
When a caller is read, and what becomes of what was read: without a socket, and with a worker that
takes as much as the test wants.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from support.transports import Line

from dalston.gateway.calls.caller import Caller
from dalston.gateway.calls.intake import Intake
from dalston.gateway.calls.pace import Pace, PaceLimits
from dalston.gateway.calls.relay import HELD_S, Relay
from dalston.gateway.protocols import Native
from dalston.gateway.protocols.protocol import Opening
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import Frame, SessionConfig

CONFIG = SessionConfig()
SECOND = bytes(CONFIG.bytes_per_second)
PATIENT = PaceLimits(1000.0, 1000.0, 1000.0)


@dataclass
class Worker:
    """A connection to one."""

    blocked: bool = False
    unblocked: Callable[[], None] | None = None
    told: list[Frame] = field(default_factory=list[Frame])

    def send_now(self, frame: Frame) -> None:
        self.told.append(frame)


def reading(audio: PaceLimits = PATIENT) -> tuple[Intake, Line, Relay]:
    line, relay = Line(), Relay("s", CONFIG)
    caller = Caller(line, Native(Opening([], {})), Opening([], {}), 1 << 20)
    pace = Pace(audio, PATIENT, CONFIG, asyncio.get_running_loop().time())
    intake = Intake(caller, relay, pace)
    intake.begin()
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
